"""Tries one thing in this process and prints the result; `lrai doctor` starts it as a child.

Processor flags lie in virtual machines, and an engine that believes them dies with SIGILL: so an
instruction set counts as present only when an engine has computed something right with it.
"""

import base64
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
from lrai.backends.tensors import Array

_SIZE: Final = 256
_RUNS: Final = 50
# y[1,256] = matmul(x[1,256], w[256,256]), opset 13: in fp32, and of uint8 and int8 to int32.
_MATMUL: Final = (
    "CAg6WQoRCgF4CgF3EgF5IgZNYXRNdWwSAXRaFAoBeBIPCg0IARIJCgIIAQoDCIACWhUKAXcSEAoOCAESCgoDCIACCgMI"
    "gAJiFAoBeRIPCg0IARIJCgIIAQoDCIACQgQKABAN"
)
_MATMUL_INTEGER: Final = (
    "CAg6YAoYCgF4CgF3EgF5Ig1NYXRNdWxJbnRlZ2VyEgF0WhQKAXgSDwoNCAISCQoCCAEKAwiAAloVCgF3EhAKDggDEgoK"
    "AwiAAgoDCIACYhQKAXkSDwoNCAYSCQoCCAEKAwiAAkIECgAQDQ=="
)


def main(arguments: list[str]) -> int:
    """Run the probe of that name."""
    print(json.dumps(PROBES[arguments[0]]()))
    return 0


def _onnxruntime_fp32() -> Mapping[str, object]:
    row = np.arange(_SIZE, dtype=np.float32)
    return _run_onnxruntime(_MATMUL, row, np.eye(_SIZE, dtype=np.float32), row)


def _onnxruntime_int8() -> Mapping[str, object]:
    row, weights = np.arange(_SIZE, dtype=np.uint8), np.eye(_SIZE, dtype=np.int8)
    return _run_onnxruntime(_MATMUL_INTEGER, row, weights, row.astype(np.int32))


def _run_onnxruntime(model: str, row: Array, weights: Array, right: Array) -> Mapping[str, object]:
    """Serve the model with the backend that actors use, on slabs of ordinary memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.onnx")
        path.write_bytes(base64.b64decode(model))
        backend = open_backend("onnxruntime", BackendSpec(path=str(path), threads=1))
    inputs, outputs = memoryview(row.tobytes() + weights.tobytes()), bytearray(1 << 16)
    backend.bind(Slabs(inputs, memoryview(outputs), len(outputs)))
    places = ((0, row.nbytes, (1, _SIZE)), (row.nbytes, weights.nbytes, weights.shape))
    batch = LocalBatch(places)
    started = time.perf_counter()
    for _ in range(_RUNS):
        ((offset, length, _dims),) = backend.run(batch)
    took_us = (time.perf_counter() - started) / _RUNS * 1e6
    found = bytes(outputs[offset : offset + length])
    return {"right": found == right.tobytes(), "us": round(took_us, 1)}


def _openvino() -> Mapping[str, object]:
    """Compile and run a model as OpenVINO likes best here (it may choose bf16 by itself)."""
    library = importlib.import_module("openvino")
    core = library.Core()
    compiled = core.compile_model(core.read_model(base64.b64decode(_MATMUL)), "CPU")
    row = np.arange(_SIZE, dtype=np.float32).reshape(1, _SIZE)
    found = compiled([row, np.eye(_SIZE, dtype=np.float32)])[compiled.output(0)]
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
