"""Tries one thing in this process and prints the result; `lrai doctor` starts it as a child.

Processor flags lie in virtual machines, and an engine that believes them dies with SIGILL: so an
instruction set counts as present only when an engine has computed something right with it.
"""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from lrai.backends import open_backend
from lrai.backends.base import BackendSpec, LocalBatch, Slabs
from lrai.cli import tiny_model

_SIZE: Final = 256
_RUNS: Final = 50


def main(arguments: list[str]) -> int:
    """Run the probe of that name."""
    print(json.dumps(PROBES[arguments[0]]()))
    return 0


def _onnxruntime_fp32() -> Mapping[str, object]:
    weights = np.eye(_SIZE, dtype=np.float32)
    types = {"x": tiny_model.FLOAT, "w": tiny_model.FLOAT, "y": tiny_model.FLOAT}
    model = tiny_model.matmul_model(_SIZE, "MatMul", types, weights.tobytes())
    row = np.arange(_SIZE, dtype=np.float32)
    return _run_onnxruntime(model, row.tobytes(), row.tobytes())


def _onnxruntime_int8() -> Mapping[str, object]:
    weights = np.eye(_SIZE, dtype=np.int8)
    types = {"x": tiny_model.UINT8, "w": tiny_model.INT8, "y": tiny_model.INT32}
    model = tiny_model.matmul_model(_SIZE, "MatMulInteger", types, weights.tobytes())
    row = np.arange(_SIZE, dtype=np.uint8)
    return _run_onnxruntime(model, row.tobytes(), row.astype(np.int32).tobytes())


def _run_onnxruntime(model: bytes, row: bytes, expected: bytes) -> Mapping[str, object]:
    """Serve the model with the backend that actors use, on slabs of ordinary memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.onnx")
        path.write_bytes(model)
        backend = open_backend("onnxruntime", BackendSpec(path=str(path), threads=1))
    inputs, outputs = bytearray(row), bytearray(1 << 16)
    backend.bind(Slabs(memoryview(inputs), memoryview(outputs), len(outputs)))
    batch = LocalBatch(((0, len(row), (1, _SIZE)),))
    started = time.perf_counter()
    for _ in range(_RUNS):
        ((offset, length, _dims),) = backend.run(batch)
    took_us = (time.perf_counter() - started) / _RUNS * 1e6
    found = bytes(outputs[offset : offset + length])
    return {"right": found == expected, "us": round(took_us, 1)}


def _openvino() -> Mapping[str, object]:
    """Compile and run a model as OpenVINO likes best here (it may choose bf16 by itself)."""
    library = importlib.import_module("openvino")
    weights = np.eye(_SIZE, dtype=np.float32)
    types = {"x": tiny_model.FLOAT, "w": tiny_model.FLOAT, "y": tiny_model.FLOAT}
    model = tiny_model.matmul_model(_SIZE, "MatMul", types, weights.tobytes())
    core = library.Core()
    compiled = core.compile_model(core.read_model(model), "CPU")
    row = np.arange(_SIZE, dtype=np.float32).reshape(1, _SIZE)
    found = compiled([row])[compiled.output(0)]
    return {"right": bool(np.allclose(found, row, rtol=1e-2)), "version": library.__version__}


def _fork() -> Mapping[str, object]:
    """Fork twice below a subreaper, as the template of actors does; the orphan must come back."""
    import ctypes

    set_child_subreaper = 36
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_child_subreaper, 1, 0, 0, 0) != 0:
        return {"right": False, "why": os.strerror(ctypes.get_errno())}
    exit_code = 7
    middle = os.fork()
    if middle == 0:
        os._exit(0 if os.fork() else exit_code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) for _ in range(2)]
    return {"right": sorted(codes) == [0, exit_code]}


PROBES: Final[Mapping[str, Callable[[], Mapping[str, object]]]] = {
    "fork": _fork,
    "onnxruntime_fp32": _onnxruntime_fp32,
    "onnxruntime_int8": _onnxruntime_int8,
    "openvino": _openvino,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
