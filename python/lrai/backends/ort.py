"""Runs a model with onnxruntime, on buffers bound to the slabs: no copy of a numeric tensor."""

import base64
import ctypes
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime  # noqa: TID253 - only the processes of this engine import this file

from lrai.backends.base import (
    Backend,
    BackendSpec,
    Batch,
    BatchFaultError,
    LocalBatch,
    Place,
    Slabs,
)
from lrai.backends.onnx_file import read_facts
from lrai.backends.onnx_signature import Dim, Tensor, probe, read_graph
from lrai.backends.ragged import find_ragged
from lrai.backends.tensors import Array, SlotWriter, read_inputs, write_outputs
from lrai.errors import ModelLoadError

# A miss costs 5 microseconds, so the bound is about memory, not about hits.
_MAX_BINDINGS: Final = 512
# Stands for the first dimension of everything where requests share a batch.
_ROWS: Final = ""
_PROVIDERS: Final[Mapping[str, tuple[str, str]]] = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "migraphx": ("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
}
_INVALID: Final = "INVALID_ARGUMENT"
_OUT_OF_MEMORY: Final = re.compile(r"bad_alloc|Failed to allocate memory|[Oo]ut of memory")
# Said when an output bound in place turns out to have another shape than its symbols promised.
_WRONG_SHAPE: Final = re.compile(r"OrtValue provided for output|re-use buffer")
# A node that fails does so because of the values or the shapes that it was given.
_NODE: Final = re.compile(r"while running (\w+) node\..*?Status Message: (.*)", re.DOTALL)
_STATUS: Final = re.compile(r"^.*?\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", re.DOTALL)
_REHEARSALS: Final = 10
# y[n,1] = relu(gemm(x[n,2], w[2,1], b[1])), opset 17.
_TINY_MODEL: Final = (
    "CAg6dQoSCgF4CgF3CgFiEgFoIgRHZW1tCgwKAWgSAXkiBFJlbHUSAWcqEwgCCAEQAUIBd0oIAACAPwAAgD8qDQgBEAFC"
    "AWJKBAAAgD9aFAoBeBIPCg0IARIJCgMSAW4KAggCYhQKAXkSDwoNCAESCQoDEgFuCgIIAUIECgAQEQ=="
)


@dataclass(frozen=True, slots=True)
class _Binding:
    """Buffers bound for one slot and one set of input places."""

    io: Any
    places: list[Place | None]
    """Where the outputs go; None = onnxruntime allocates, and the output is copied."""
    whole: list[Place] | None
    """The same, if every output is written in place."""
    writer: SlotWriter


class OrtBackend(Backend):
    """An onnxruntime session on one .onnx file."""

    def __init__(self, spec: BackendSpec) -> None:
        """Open the session, read the signature, and run zeros where the shapes are known."""
        self._session = _open_session(spec)
        graph = read_graph(
            self._session.get_inputs(),
            self._session.get_overridable_initializers(),
            self._session.get_outputs(),
            read_facts(spec.path),
        )
        self._graph = probe(graph, lambda feeds: self._session.run(None, dict(feeds)))
        self.signature = self._graph.signature
        if spec.padding.mode != "off" and self._graph.is_batchable:
            found = find_ragged(self._graph, self._try, spec.padding)
            self.signature = replace(self.signature, ragged=found)
        self._is_plain = all(t.is_plain for t in (*graph.inputs, *graph.outputs))
        self._is_in_place = True
        self._bindings: OrderedDict[object, _Binding] = OrderedDict()

    @classmethod
    def rehearse(cls) -> None:
        """Load and run a tiny model, and forget it.

        The first session builds registries of all kernels; that saves each fork 2 MB and half of a
        small model's load time. Repeating it lets the interpreter specialise the code.
        """
        descriptor = os.memfd_create("tiny")
        try:
            os.write(descriptor, base64.b64decode(_TINY_MODEL))
            for _ in range(_REHEARSALS):
                backend = cls(BackendSpec(f"/proc/self/fd/{descriptor}"))
                backend.bind(Slabs(memoryview(bytes(64)), memoryview(bytearray(64)), 64))
                backend.run(LocalBatch(((0, 8, (1, 2)),)))
        finally:
            os.close(descriptor)

    def _try(self, feeds: Mapping[str, Array]) -> Sequence[Any]:
        """Run once, and give the memory back: tried inputs may be larger than any request.

        Raises `BatchFaultError` where the engine refuses, and MemoryError.
        """
        options = onnxruntime.RunOptions()
        if self._session.get_session_options().enable_cpu_mem_arena:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            outputs: Sequence[Any] = self._session.run(None, dict(feeds), options)
        except Exception as error:
            raise _fault(error) from error
        return outputs

    def bind(self, slabs: Slabs) -> None:
        """Keep the slabs and their addresses."""
        super().bind(slabs)
        self._bindings.clear()
        self._input_address = _address(slabs.inputs)
        self._output_address = _address(slabs.outputs)

    def run(self, batch: Batch) -> list[Place]:
        """Run on bound buffers, or on arrays where strings or maps are among the tensors."""
        try:
            return self._run_bound(batch) if self._is_plain else self._run_arrays(batch)
        except BatchFaultError:
            raise
        except Exception as error:
            raise _fault(error) from error

    def _run_bound(self, batch: Batch) -> list[Place]:
        key = (batch.output_slot, batch.inputs)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bind_batch(batch)
            if binding.whole is not None:
                self._keep(key, binding)
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:
            if not self._is_in_place or not _WRONG_SHAPE.search(str(error)):
                raise
            self._is_in_place = False
            self._bindings.clear()
            binding = self._bind_batch(batch)
            self._session.run_with_iobinding(binding.io)
        if binding.whole is not None:
            return binding.whole
        return self._collect(binding, batch.output_slot)

    def _keep(self, key: object, binding: _Binding) -> None:
        self._bindings[key] = binding
        if len(self._bindings) > _MAX_BINDINGS:
            self._bindings.popitem(last=False)

    def _bind_batch(self, batch: Batch) -> _Binding:
        io = self._session.io_binding()
        sizes: dict[Dim, int] = {}
        for tensor, place in zip(self._graph.inputs, batch.inputs, strict=True):
            if place is not None:
                offset, _, dims = place
                address = self._input_address + offset
                io.bind_input(tensor.info.name, "cpu", 0, tensor.element, dims, address)
                sizes |= zip(tensor.dims, dims, strict=True)
                if self._graph.is_batchable:
                    sizes[_ROWS] = dims[0]
        writer = SlotWriter(self.slabs, batch.output_slot)
        slot_address = self._output_address + batch.output_slot * self.slabs.output_slot_bytes
        places: list[Place | None] = []
        for tensor in self._graph.outputs:
            shape = self._known_shape(tensor, sizes)
            if shape is None:
                places.append(None)
                io.bind_output(tensor.info.name, "cpu")
                continue
            place = writer.place(tensor.info.datatype, shape)
            places.append(place)
            address = slot_address + place[0]
            io.bind_output(tensor.info.name, "cpu", 0, tensor.element, shape, address)
        whole = [place for place in places if place is not None]
        return _Binding(io, places, whole if len(whole) == len(places) else None, writer)

    def _known_shape(self, tensor: Tensor, sizes: Mapping[Dim, int]) -> tuple[int, ...] | None:
        """Return an output's shape if the inputs' shapes tell it."""
        if not self._is_in_place or not tensor.dims:
            return None
        first = sizes.get(_ROWS, tensor.dims[0])
        dims = [
            dim if isinstance(dim, int) else sizes.get(dim) if dim else None
            for dim in (first, *tensor.dims[1:])
        ]
        shape = tuple(dim for dim in dims if dim is not None)
        return shape if len(shape) == len(dims) else None

    def _collect(self, binding: _Binding, slot: int) -> list[Place]:
        """Copy the outputs that onnxruntime allocated."""
        slot_address = self._output_address + slot * self.slabs.output_slot_bytes
        places: list[Place] = []
        values = binding.io.get_outputs()
        for tensor, known, value in zip(self._graph.outputs, binding.places, values, strict=True):
            place = known or binding.writer.place(tensor.info.datatype, tuple(value.shape()))
            if known is None:
                ctypes.memmove(slot_address + place[0], value.data_ptr(), place[1])
            places.append(place)
        return places

    def _run_arrays(self, batch: Batch) -> list[Place]:
        inputs, outputs = self.signature.inputs, self.signature.outputs
        arrays = read_inputs(self.slabs, batch, inputs)
        feeds = {name: _as_feed(array) for name, array in arrays.items()}
        answer = zip(self._graph.outputs, self._session.run(None, feeds), strict=True)
        return write_outputs(self.slabs, batch, outputs, (_as_array(*pair) for pair in answer))


def _open_session(spec: BackendSpec) -> "onnxruntime.InferenceSession":
    provider, package = _PROVIDERS.get(spec.provider, (spec.provider, ""))
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ModelLoadError(
            f"this onnxruntime has no provider '{spec.provider}', it has {', '.join(available)}",
            hint=f"pip install {package}" if package else f"use one of {', '.join(_PROVIDERS)}",
        )
    try:
        session = onnxruntime.InferenceSession(
            spec.path, _session_options(spec), providers=[provider]
        )
    except Exception as error:
        if isinstance(fault := _fault(error), MemoryError):
            raise fault from error
        raise ModelLoadError(
            f"onnxruntime cannot load {Path(spec.path).name}: {_reason(error)}",
            hint="python -m onnx.checker says what is wrong with a file",
        ) from error
    if session.get_providers()[0] != provider:
        raise ModelLoadError(
            f"provider '{spec.provider}' is installed but did not start",
            hint="its libraries or its device are missing",
        )
    return session


def _session_options(spec: BackendSpec) -> "onnxruntime.SessionOptions":
    options = onnxruntime.SessionOptions()
    # Faults are told as exceptions, and the log is not for clients to fill.
    # (Quieter run options would do too, but cost 25 microseconds a run.)
    options.log_severity_level = 4
    given = spec.options
    options.intra_op_num_threads = int(given.get("intra_op_thread_count", "0")) or spec.threads
    options.inter_op_num_threads = int(given.get("inter_op_thread_count", "0")) or 1
    options.execution_mode = onnxruntime.ExecutionMode(int(given.get("execution_mode", "0")))
    options.enable_cpu_mem_arena = given.get("enable_mem_arena", "1") != "0"
    options.enable_mem_pattern = given.get("enable_mem_pattern", "1") != "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Else weights in 8 bits have the engine quantise activations too, about 1% off what the model
    # says; nobody asked for that, and no proof covers it.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    for key, value in given.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    return options


def _address(memory: memoryview) -> int:
    address: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return address


def _as_feed(array: Array) -> Array:
    """Decode strings: onnxruntime takes text, clients send bytes."""
    if array.dtype != np.object_:
        return array
    try:
        text = [element.decode() for element in array.flat]
    except UnicodeDecodeError as error:
        raise BatchFaultError(f"a string is not UTF-8: {error}", code=1) from error
    return np.array(text, np.object_).reshape(array.shape)


def _as_array(tensor: Tensor, output: object) -> Array:
    """Turn a ZipMap's list of maps into rows of probabilities, in the order of its labels."""
    if tensor.element or not isinstance(output, list):
        return np.asarray(output)
    labels: Sequence[str] = tensor.info.labels
    rows = [{str(label): value for label, value in row.items()} for row in output]
    table = [[row[label] for label in labels] for row in rows]
    return np.array(table, np.float32).reshape(len(rows), len(labels))


def _fault(error: Exception) -> Exception:
    """Say whose fault a failed run is; running out of memory must end the actor."""
    text = str(error)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return MemoryError(_reason(error))
    if node := _NODE.search(text):
        reason = _first_line(node[2])
        return BatchFaultError(f"the model's {node[1]} node refused its input: {reason}", code=1)
    return BatchFaultError(_reason(error), code=1 if _INVALID in text else 0)


def _reason(error: Exception) -> str:
    """Return the first line of onnxruntime's text without its status prefix."""
    return _first_line(_STATUS.sub("", str(error))) or type(error).__name__


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0].rstrip(".")
