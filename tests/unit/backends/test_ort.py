"""Answers through the slabs equal onnxruntime's own, whatever the tensors are."""

import gc

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrai.backends.base import BackendSpec, BatchFaultError
from lrai.backends.ort import OrtBackend, _fault

FLOAT = TensorProto.FLOAT


@pytest.fixture
def save(tmp_path):
    def save(nodes, inputs, outputs, weights=()):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "g",
            [value(name, element, dims) for name, element, dims in inputs],
            [value(name, element, dims) for name, element, dims in outputs],
            list(weights),
        )
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.save(model, tmp_path / "model.onnx")
        return BackendSpec(str(tmp_path / "model.onnx"))

    return save


def identity(save, element, dims):
    return save(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", element, dims)], [("y", element, dims)]
    )


@pytest.mark.parametrize(
    ("element", "numpy_type"),
    [
        (FLOAT, np.float32),
        (TensorProto.DOUBLE, np.float64),
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.BFLOAT16, np.uint16),
        (TensorProto.INT64, np.int64),
        (TensorProto.INT8, np.int8),
        (TensorProto.UINT16, np.uint16),
        (TensorProto.BOOL, np.bool_),
    ],
)
def test_every_numeric_type_passes_unchanged(save, runner, element, numpy_type):
    x = np.arange(6).reshape(2, 3).astype(numpy_type)
    (y,) = runner(OrtBackend(identity(save, element, ["n", 3]))).run(x)
    assert (y == x).all()
    assert y.dtype == x.dtype


def test_a_scalar_and_an_empty_tensor_pass(save, runner):
    (y,) = runner(OrtBackend(identity(save, FLOAT, []))).run(np.float32(3.5).reshape(()))
    assert y.shape == ()
    assert y == 3.5
    (y,) = runner(OrtBackend(identity(save, FLOAT, ["n", 0]))).run(np.zeros((2, 0), np.float32))
    assert y.shape == (2, 0)


def test_strings_pass_and_broken_utf8_is_the_clients_fault(save, runner):
    model = runner(OrtBackend(identity(save, TensorProto.STRING, ["n"])))
    words = np.array([b"", "größe".encode(), b"x" * 300], object)
    assert model.run(words) == [list(words)]
    with pytest.raises(BatchFaultError, match="not UTF-8") as fault:
        model.run(np.array([b"\xff\xfe"], object))
    assert fault.value.code == 1


def test_an_output_whose_shape_depends_on_data_is_copied(save, runner):
    spec = save(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [("x", FLOAT, ["n", 3])],
        [("y", TensorProto.INT64, [2, "k"])],
    )
    model = runner(OrtBackend(spec))
    for x in (np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)):
        (y,) = model.run(x)
        assert (y == np.array(np.nonzero(x))).all()


def test_an_output_that_is_too_large_to_copy_is_a_fault_with_a_hint(save, runner):
    spec = save(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [("x", FLOAT, ["n", 3])],
        [("y", TensorProto.INT64, [2, "k"])],
    )
    model = runner(OrtBackend(spec), slot_bytes=64)
    with pytest.raises(BatchFaultError, match="hint: raise max_output_bytes"):
        model.run(np.ones((9, 3), np.float32))


def test_a_symbol_that_lies_costs_one_repetition_and_no_answer(save, runner):
    flat = numpy_helper.from_array(np.array([-1]), "flat")
    spec = save(
        [helper.make_node("Reshape", ["x", "flat"], ["y"])],
        [("x", FLOAT, [1, "n"])],
        [("y", FLOAT, ["n"])],
        [flat],
    )
    spec_lying = save(
        [
            helper.make_node("Concat", ["x", "x"], ["c"], axis=1),
            helper.make_node("Reshape", ["c", "flat"], ["y"]),
        ],
        [("x", FLOAT, [1, "n"])],
        [("y", FLOAT, ["n"])],
        [flat],
    )
    assert spec.path == spec_lying.path
    model = runner(OrtBackend(spec_lying))
    x = np.arange(3, dtype=np.float32).reshape(1, 3)
    for _ in range(2):
        (y,) = model.run(x)
        assert y.tolist() == [0, 1, 2, 0, 1, 2]


def test_an_index_out_of_range_is_the_clients_fault_in_one_line(save, runner):
    table = numpy_helper.from_array(np.ones((4, 2), np.float32), "table")
    spec = save(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", TensorProto.INT64, ["n"])],
        [("y", FLOAT, ["n", 2])],
        [table],
    )
    model = runner(OrtBackend(spec))
    with pytest.raises(
        BatchFaultError, match="^the model's Gather node refused its input: indices.*must be within"
    ) as fault:
        model.run(np.array([99]))
    assert fault.value.code == 1
    assert "\n" not in str(fault.value)
    assert model.run(np.array([1]))[0].tolist() == [[1.0, 1.0]]


def test_running_out_of_memory_is_no_batch_fault():
    text = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for 99"
    assert isinstance(_fault(RuntimeError(text)), MemoryError)
    assert isinstance(_fault(RuntimeError("std::bad_alloc")), MemoryError)
    assert isinstance(_fault(RuntimeError("other")), BatchFaultError)


def test_an_allocation_that_fails_is_seen_as_running_out_of_memory(save, runner):
    spec = save(
        [helper.make_node("ConstantOfShape", ["x"], ["y"])],
        [("x", TensorProto.INT64, [1])],
        [("y", FLOAT, ["k"])],
    )
    model = runner(OrtBackend(spec))
    assert model.run(np.array([3]))[0].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(MemoryError):
        model.run(np.array([1 << 58]))


def test_an_optional_input_may_be_left_out(save, runner):
    scale = numpy_helper.from_array(np.array([2.0], np.float32), "scale")
    spec = save(
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        [("x", FLOAT, ["n", 1]), ("scale", FLOAT, [1])],
        [("y", FLOAT, ["n", 1])],
        [scale],
    )
    model = runner(OrtBackend(spec))
    x = np.ones((2, 1), np.float32)
    assert model.run(x, None)[0].tolist() == [[2.0], [2.0]]
    assert model.run(x, np.array([5.0], np.float32))[0].tolist() == [[5.0], [5.0]]


def test_the_cache_of_bindings_is_bounded(save, runner, monkeypatch):
    monkeypatch.setattr("lrai.backends.ort._MAX_BINDINGS", 4)
    model = runner(OrtBackend(identity(save, FLOAT, ["n", 3])))
    for rows in [*range(1, 20), 1, 2]:
        x = np.full((rows, 3), rows, np.float32)
        assert (model.run(x)[0] == x).all()
    assert len(model.backend._bindings) == 4


class TestClassicalModels:
    """Models that scikit-learn trained: ai.onnx.ml operators, ZipMap, strings."""

    @pytest.fixture
    def iris(self):
        sklearn_datasets = pytest.importorskip("sklearn.datasets")
        return sklearn_datasets.load_iris(return_X_y=True)

    @pytest.fixture
    def export(self, tmp_path):
        skl2onnx = pytest.importorskip("skl2onnx")

        def export(model, **more):
            text = skl2onnx.to_onnx(model, **more).SerializeToString()
            (tmp_path / "model.onnx").write_bytes(text)
            return BackendSpec(str(tmp_path / "model.onnx"))

        return export

    def test_a_zip_map_is_served_as_rows_of_probabilities(self, iris, export, runner):
        from sklearn.linear_model import LogisticRegression

        x, y = iris
        names = np.array(["setosa", "versicolor", "virginica"])[y]
        model = LogisticRegression(max_iter=500).fit(x, names)
        backend = OrtBackend(export(model, X=x[:1].astype(np.float32)))
        label, probabilities = backend.signature.outputs
        assert (label.datatype, label.shape) == ("BYTES", (-1,))
        assert (probabilities.datatype, probabilities.shape) == ("FP32", (-1, 3))
        assert probabilities.labels == ("setosa", "versicolor", "virginica")
        assert backend.signature.batchable
        labels, values = runner(backend).run(x[::30].astype(np.float32))
        assert [text.decode() for text in labels] == list(model.predict(x[::30]))
        assert np.abs(values - model.predict_proba(x[::30])).max() < 1e-5

    def test_numeric_labels_are_texts_in_the_order_of_the_columns(self, iris, export, runner):
        from sklearn.ensemble import RandomForestClassifier

        x, y = iris
        model = RandomForestClassifier(5, random_state=0).fit(x, y - 1)
        backend = OrtBackend(export(model, X=x[:1].astype(np.float32)))
        assert backend.signature.outputs[1].labels == ("-1", "0", "1")
        _, values = runner(backend).run(x[::30].astype(np.float32))
        assert np.abs(values - model.predict_proba(x[::30])).max() < 1e-5

    def test_without_a_zip_map_the_labels_are_known_too(self, iris, export, runner):
        from sklearn.tree import DecisionTreeClassifier

        x, y = iris
        model = DecisionTreeClassifier(random_state=0).fit(x, y)
        spec = export(model, X=x[:1].astype(np.float32), options={"zipmap": False})
        backend = OrtBackend(spec)
        assert backend.signature.outputs[1].labels == ("0", "1", "2")
        labels, _ = runner(backend).run(x[::30].astype(np.float32))
        assert (labels == model.predict(x[::30])).all()

    def test_string_columns_go_in(self, export, runner):
        pytest.importorskip("sklearn")
        from skl2onnx.common.data_types import StringTensorType
        from sklearn.preprocessing import OneHotEncoder

        words = np.array([["red"], ["green"], ["blue"]], object)
        model = OneHotEncoder(sparse_output=False, handle_unknown="ignore").fit(words)
        types = [("colour", StringTensorType([None, 1]))]
        backend = OrtBackend(export(model, initial_types=types))
        assert backend.signature.inputs[0].datatype == "BYTES"
        (y,) = runner(backend).run(np.array([[b"green"], [b"violet"]], object))
        assert (y == model.transform([["green"], ["violet"]])).all()


SILERO = (
    "silero_vad.onnx",
    "silero_vad_16k_op15.onnx",
    "silero_vad_16k_sequence.onnx",
    "silero_vad_half.onnx",
    "silero_vad_op18_ifless.onnx",
    "silero_vad_openvino_16k.onnx",
)


@pytest.mark.parametrize("name", SILERO)
def test_a_stateful_voice_detector_answers_as_in_process(name, runner):
    import importlib.util
    from pathlib import Path

    package = importlib.util.find_spec("silero_vad")
    if package is None:
        pytest.skip("silero-vad is not installed")
    path = Path(package.origin).parent / "data" / name
    backend = OrtBackend(BackendSpec(str(path)))
    assert not backend.signature.batchable
    session = onnxruntime.InferenceSession(str(path))
    random = np.random.default_rng(0)
    model = runner(backend)
    for rows in (1, 3):
        feeds = {}
        for node in session.get_inputs():
            dims = [d if isinstance(d, int) else rows for d in node.shape]
            if node.name == "input":
                dims[-1] = 576
                if isinstance(session.get_inputs()[0].shape[0], int):
                    dims[0] = 1
            if node.name == "sr":
                feeds[node.name] = np.array(16000, np.int64)
            else:
                feeds[node.name] = random.standard_normal(dims).astype(np.float32)
        expected = session.run(None, feeds)
        for got, want in zip(model.run(*feeds.values()), expected, strict=True):
            assert got.shape == want.shape
            assert np.abs(got - want).max() < 1e-5


def test_views_of_the_slab_do_not_outlive_a_batch(save, runner):
    spec = identity(save, TensorProto.STRING, ["n"])
    model = runner(OrtBackend(spec))
    model.run(np.array([b"a"], object))
    gc.collect()
    # A bytearray that somebody views refuses to change its size.
    views = len(
        [o for o in gc.get_objects() if isinstance(o, memoryview) and o.obj is model.inputs]
    )
    assert views <= 2
