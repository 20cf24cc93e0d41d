"""Signatures of real .onnx graphs, built here."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrai.backends.base import BackendSpec, BatchFaultError
from lrai.backends.onnx_file import OnnxFacts, read_facts
from lrai.backends.ort import OrtBackend
from lrai.errors import ModelLoadError

FLOAT = TensorProto.FLOAT


def value(name, dims, element=FLOAT):
    return helper.make_tensor_value_info(name, element, dims)


@pytest.fixture
def save(tmp_path):
    def save(nodes, inputs, outputs, weights=(), opset=17, ir=9, more_opsets=()):
        graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
        opsets = [helper.make_opsetid("", opset), *more_opsets]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
        onnx.save(model, tmp_path / "model.onnx")
        return BackendSpec(str(tmp_path / "model.onnx"))

    return save


def test_symbols_are_free_dimensions_and_one_symbol_is_a_batch(save):
    node = helper.make_node("Relu", ["x"], ["y"])
    spec = save([node], [value("x", ["n", "t", 3])], [value("y", ["n", "t", 3])])
    signature = OrtBackend(spec).signature
    assert signature.platform == "onnxruntime_onnx"
    assert signature.inputs[0].shape == (-1, -1, 3)
    assert signature.batchable
    assert signature.notes == ()


def test_a_fixed_first_dimension_is_no_batch(save):
    node = helper.make_node("Relu", ["x"], ["y"])
    signature = OrtBackend(save([node], [value("x", [1, 3])], [value("y", [1, 3])])).signature
    assert not signature.batchable
    assert signature.inputs[0].shape == (1, 3)


def test_two_inputs_with_different_symbols_are_no_batch(save):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    spec = save([node], [value("x", ["n", 3]), value("w", ["k", 3, 2])], [value("y", None)])
    assert not OrtBackend(spec).signature.batchable


def test_a_state_with_the_batch_in_another_dimension_is_no_batch(save):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Relu", ["state"], ["state_out"]),
    ]
    spec = save(
        nodes,
        [value("x", ["n", 3]), value("state", [2, "n", 4])],
        [value("y", ["n", 3]), value("state_out", [2, "n", 4])],
    )
    assert not OrtBackend(spec).signature.batchable


def test_an_output_that_does_not_follow_the_rows_is_found_by_running_zeros(save):
    flat = numpy_helper.from_array(np.array([-1]), "flat")
    node = helper.make_node("Reshape", ["x", "flat"], ["y"])
    spec = save([node], [value("x", ["n", 3])], [value("y", ["m"])], [flat])
    signature = OrtBackend(spec).signature
    assert not signature.batchable
    assert signature.notes == ("an output does not follow the rows, so requests run alone",)


def test_a_graph_that_only_takes_one_row_runs_alone_with_a_note(save):
    one_row = numpy_helper.from_array(np.array([1, 3]), "one_row")
    nodes = [
        helper.make_node("Reshape", ["x", "one_row"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    spec = save(nodes, [value("x", ["n", 3])], [value("y", ["n", 3])], [one_row])
    signature = OrtBackend(spec).signature
    assert not signature.batchable
    assert "runs one row but not two, so requests run alone" in signature.notes[0]


def test_an_output_named_otherwise_is_a_batch_when_it_follows_the_rows(save):
    node = helper.make_node("Relu", ["x"], ["y"])
    spec = save([node], [value("x", ["n", 3, "h", "w"])], [value("y", ["m", 3, "a", "b"])])
    assert OrtBackend(spec).signature.batchable


def test_an_input_with_a_default_is_optional_and_never_batched(save):
    scale = numpy_helper.from_array(np.array([2.0], np.float32), "scale")
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    spec = save(
        [node], [value("x", ["n", 3]), value("scale", [1])], [value("y", ["n", 3])], [scale]
    )
    signature = OrtBackend(spec).signature
    assert [(t.name, t.optional) for t in signature.inputs] == [("x", False), ("scale", True)]
    assert not signature.batchable


def test_an_old_opset_is_noted(save):
    node = helper.make_node("Relu", ["x"], ["y"])
    spec = save([node], [value("x", ["n", 3])], [value("y", ["n", 3])], opset=11, ir=6)
    assert OrtBackend(spec).signature.notes == ("opset 11 is old; the model is served as it is",)


@pytest.mark.parametrize(
    ("element", "datatype"),
    [
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.BFLOAT16, "BF16"),
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.UINT64, "UINT64"),
        (TensorProto.STRING, "BYTES"),
    ],
)
def test_every_datatype_has_its_protocol_name(save, element, datatype):
    node = helper.make_node("Identity", ["x"], ["y"])
    spec = save([node], [value("x", ["n", 3], element)], [value("y", ["n", 3], element)])
    signature = OrtBackend(spec).signature
    assert (signature.inputs[0].datatype, signature.outputs[0].datatype) == (datatype, datatype)


def test_a_sequence_is_refused_in_a_sentence(save):
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    with pytest.raises(ModelLoadError, match=r"'y' has type seq\(tensor\(float\)\), which the"):
        OrtBackend(save([node], [value("x", ["n", 3])], [sequence]))


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", bytes(range(256)) * 20])
def test_a_broken_file_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(ModelLoadError) as refusal:
        OrtBackend(BackendSpec(str(tmp_path / "broken.onnx")))
    assert refusal.value.message.startswith("onnxruntime cannot load broken.onnx: ")
    assert "\n" not in str(refusal.value)
    assert "ONNXRuntimeError" not in str(refusal.value)
    assert read_facts(str(tmp_path / "broken.onnx")).labels == {}


def test_a_truncated_file_is_refused(save):
    weights = numpy_helper.from_array(np.ones((64, 3), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    spec = save([node], [value("x", ["n", 64])], [value("y", ["n", 3])], [weights])
    with open(spec.path, "r+b") as file:
        file.truncate(300)
    with pytest.raises(ModelLoadError, match="onnxruntime cannot load"):
        OrtBackend(spec)


@pytest.mark.parametrize(
    ("provider", "hint"), [("cuda", "onnxruntime-gpu"), ("abacus", "use one of cpu, cuda")]
)
def test_an_absent_provider_stops_the_model_with_a_hint(save, provider, hint):
    node = helper.make_node("Relu", ["x"], ["y"])
    spec = save([node], [value("x", ["n", 3])], [value("y", ["n", 3])])
    absent = BackendSpec(spec.path, provider=provider)
    with pytest.raises(ModelLoadError, match=f"has no provider '{provider}'.*{hint}"):
        OrtBackend(absent)


def test_external_data_is_found_beside_the_model(tmp_path):
    weights = numpy_helper.from_array(np.full((3, 2), 5, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", ["n", 3])],
        [value("y", ["n", 2])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    assert OrtBackend(BackendSpec(str(path))).signature.batchable
    (tmp_path / "data.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"data\.bin"):
        OrtBackend(BackendSpec(str(path)))


def test_facts_of_nothing_are_empty(tmp_path):
    assert read_facts(str(tmp_path / "absent.onnx")) == OnnxFacts()


def test_a_fault_says_whose_it_is():
    assert BatchFaultError("no").code == 0
