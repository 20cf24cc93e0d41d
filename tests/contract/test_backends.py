"""What every backend promises, asked of each of them: a model that doubles FP32 rows of three."""

from dataclasses import dataclass

import numpy as np
import pytest

from lrai.backends import BACKENDS, open_backend
from lrai.backends.base import BackendSpec, BatchFaultError, Slabs
from lrai.errors import ModelLoadError

SLOT_BYTES = 4096
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@dataclass(frozen=True)
class Batch:
    inputs: tuple
    output_slot: int = 0


class Memory:
    """Slabs in this process."""

    def __init__(self, slot_bytes=SLOT_BYTES):
        self.inputs = bytearray(1 << 16)
        self.outputs = bytearray(3 * slot_bytes)
        self.slot_bytes = slot_bytes
        self.slabs = Slabs(
            memoryview(self.inputs).toreadonly(), memoryview(self.outputs), slot_bytes
        )

    def put(self, array, offset=0):
        self.inputs[offset : offset + array.nbytes] = array.tobytes()
        return offset, array.nbytes, array.shape

    def get(self, place, slot=0):
        offset, byte_len, dims = place
        start = slot * self.slot_bytes + offset
        assert offset + byte_len <= self.slot_bytes
        return np.frombuffer(self.outputs[start : start + byte_len], np.float32).reshape(dims)


def write_onnx(folder):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    return BackendSpec(str(folder / "model.onnx"))


def write_python(folder):
    (folder / "model.py").write_text(
        "INPUTS = [('x', 'FP32', [-1, 3])]\n"
        "OUTPUTS = [('y', 'FP32', [-1, 3])]\n"
        "def predict(inputs):\n"
        "    return {'y': inputs['x'] * 2}\n"
    )
    return BackendSpec(str(folder))


def write_null(folder):
    return BackendSpec("", options={"inputs": '[["x", "FP32", [-1, 3]]]'})


WRITERS = {"null": write_null, "onnxruntime": write_onnx, "python": write_python}
FACTORS = {"null": 1}


@pytest.fixture(params=sorted(BACKENDS))
def name(request):
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    return request.param


@pytest.fixture
def backend(name, tmp_path):
    return open_backend(name, WRITERS[name](tmp_path))


@pytest.fixture
def expected(name):
    return ROWS * FACTORS.get(name, 2)


def test_the_signature_tells_tensors_and_that_requests_can_share_a_batch(backend):
    signature = backend.signature
    assert [(t.name, t.datatype, t.shape) for t in signature.inputs] == [("x", "FP32", (-1, 3))]
    assert [(t.datatype, t.shape) for t in signature.outputs] == [("FP32", (-1, 3))]
    assert signature.batchable
    assert signature.platform


def test_outputs_are_written_into_the_slot(backend, expected):
    memory = Memory()
    backend.bind(memory.slabs)
    (place,) = backend.run(Batch((memory.put(ROWS),)))
    assert (memory.get(place) == expected).all()


def test_inputs_may_lie_anywhere_and_slots_do_not_touch(backend, expected):
    memory = Memory()
    backend.bind(memory.slabs)
    (first,) = backend.run(Batch((memory.put(ROWS, 640),), output_slot=2))
    (second,) = backend.run(Batch((memory.put(ROWS + 1, 64),), output_slot=1))
    assert (memory.get(first, 2) == expected).all()
    assert (memory.get(second, 1) != expected).all()
    assert not any(memory.outputs[:SLOT_BYTES])


def test_the_same_place_with_other_rows_gives_other_answers(backend, expected):
    memory = Memory()
    backend.bind(memory.slabs)
    for factor in (1, 3):
        (place,) = backend.run(Batch((memory.put(ROWS * np.float32(factor)),)))
        assert (memory.get(place) == expected * factor).all()


@pytest.mark.parametrize("rows", [1, 4, 0])
def test_any_number_of_rows_is_answered(backend, expected, rows):
    memory = Memory()
    backend.bind(memory.slabs)
    (place,) = backend.run(Batch((memory.put(ROWS[:rows]),)))
    assert place[2] == (rows, 3)
    assert (memory.get(place) == expected[:rows]).all()


def test_outputs_that_do_not_fit_are_a_fault_with_a_hint(backend):
    memory = Memory(slot_bytes=32)
    backend.bind(memory.slabs)
    with pytest.raises(BatchFaultError, match="hint: raise max_output_bytes"):
        backend.run(Batch((memory.put(ROWS),)))
    assert not any(memory.outputs)


def test_after_a_fault_the_next_batch_is_right(backend, expected):
    memory = Memory(slot_bytes=32)
    backend.bind(memory.slabs)
    with pytest.raises(BatchFaultError):
        backend.run(Batch((memory.put(ROWS),)))
    (place,) = backend.run(Batch((memory.put(ROWS[:1]),)))
    assert (memory.get(place) == expected[:1]).all()


def test_a_model_that_is_not_there_is_refused_in_a_sentence(name):
    if name == "null":
        pytest.skip("null needs no file")
    with pytest.raises(ModelLoadError, match="nowhere"):
        open_backend(name, BackendSpec("/nowhere/model.onnx"))
