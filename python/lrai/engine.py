"""`lrai.Engine`: a model in the caller's own process, for the lowest latency; no server, no port.

It runs the backends of the server on buffers that are allocated once: the arguments are copied
in, the engine computes on bound memory, and the results are copied out unless the caller asks for
views.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from lrai.backends import open_backend
from lrai.backends.base import BackendSpec, BatchFaultError, LocalBatch, Place, Slabs
from lrai.core.model import Signature, TensorInfo
from lrai.errors import InferenceError, InvalidInputError
from lrai.machine import available_cpus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Inputs = Array | Mapping[str, npt.ArrayLike]

# Enough for a 99.9th percentile of 65 values; the oldest latency makes room for the newest.
_WINDOW: Final = 65_536
_ALIGNMENT: Final = 64


@dataclass(frozen=True)
class Result:
    """One answer."""

    outputs: Mapping[str, "Array"]
    """Every output by its name."""
    latency_ms: float
    """From the call to the answer, copies included, in milliseconds."""


@dataclass(frozen=True)
class EngineStats:
    """Latencies of the last 65,536 predictions, in milliseconds; measured."""

    count: int
    """Predictions since the start."""
    violations: int
    """Predictions slower than the target."""
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Engine:
    """A loaded model that answers in the caller's thread.

    >>> engine = Engine("model.onnx", target_latency_ms=1.0)
    >>> result = engine.predict({"x": rows})
    >>> result.outputs["y"], result.latency_ms

    `path` is an .onnx file, or a folder with a `model.py`. One prediction runs at a time; calls of
    several threads wait for each other. Raises `ModelLoadError` where the model cannot be loaded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        target_latency_ms: float | None = None,
        on_violation: Callable[[Result], None] | None = None,
        threads: int = 0,
        pin_threads: bool = False,
        provider: str = "cpu",
        max_output_bytes: int = 1 << 28,
    ) -> None:
        """Load the model.

        `on_violation` is called in the predicting thread with each result that took longer than
        `target_latency_ms`; what it raises, `predict` raises. `threads` = 0 takes what the cgroup
        grants. `pin_threads` keeps the engine's threads, and the thread that predicts, each on its
        processor. `max_output_bytes` bounds the outputs of one prediction; untouched it costs none.
        """
        import numpy as np

        self._numpy = np
        self.target_latency_ms = target_latency_ms
        self._on_violation = on_violation
        cpus = sorted(os.sched_getaffinity(0))[: threads or available_cpus()]
        options = {}
        if pin_threads and len(cpus) > 1:
            # Processors count from one there, and the calling thread is the first of the pool.
            places = ";".join(str(cpu + 1) for cpu in cpus[1:])
            options["session.intra_op_thread_affinities"] = places
        self._pinned_cpu = cpus[0] if pin_threads else None
        folder = Path(path)
        name = "python" if folder.is_dir() else "onnxruntime"
        spec = BackendSpec(os.fspath(path), threads or len(cpus), provider, options)
        self._backend = open_backend(name, spec)
        self._outputs = _page_aligned(max_output_bytes)
        self._max_output_bytes = max_output_bytes
        self._bind(0)
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._pinned_threads = threading.local()
        self._latencies_ms = np.zeros(_WINDOW)
        self._count = 0
        self._violations = 0

    @property
    def signature(self) -> Signature:
        """What goes in and what comes out."""
        return self._backend.signature

    def predict(self, inputs: "Inputs", *, copy: bool = True) -> Result:
        """Run the model on arrays by name, or on one array if the model has one input.

        With `copy=False` numeric outputs are views that the next prediction overwrites: nothing is
        allocated. Raises `InvalidInputError` for inputs that do not fit, `InferenceError` where
        the model fails.
        """
        start = time.perf_counter_ns()
        with self._lock:
            self._pin()
            places = self._write(self._arrange(inputs))
            try:
                found = self._backend.run(LocalBatch(places))
            except BatchFaultError as error:
                raise (InvalidInputError if error.code else InferenceError)(str(error)) from error
            outputs = self._read(found, copy=copy)
            result = Result(outputs, (time.perf_counter_ns() - start) / 1e6)
            self._latencies_ms[self._count % _WINDOW] = result.latency_ms
            self._count += 1
            is_late = (
                self.target_latency_ms is not None and result.latency_ms > self.target_latency_ms
            )
            self._violations += is_late
        if is_late and self._on_violation is not None:
            self._on_violation(result)
        return result

    async def predict_async(self, inputs: "Inputs") -> Result:
        """Run `predict` in the engine's own thread, so that the event loop goes on."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "lrai-engine")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self.predict, inputs)

    def stats(self) -> EngineStats:
        """Return the latencies so far."""
        with self._lock:
            seen = self._latencies_ms[: min(self._count, _WINDOW)].copy()
            count, violations = self._count, self._violations
        if not count:
            return EngineStats(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99, p999 = map(float, self._numpy.percentile(seen, (50, 90, 99, 99.9)))
        mean, most = float(seen.mean()), float(seen.max())
        return EngineStats(count, violations, mean, p50, p90, p99, p999, most)

    def close(self) -> None:
        """End the engine's own thread, if `predict_async` started one."""
        if self._executor is not None:
            self._executor.shutdown()

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the engine."""
        self.close()

    def _pin(self) -> None:
        if self._pinned_cpu is not None and not getattr(self._pinned_threads, "done", False):
            os.sched_setaffinity(0, {self._pinned_cpu})
            self._pinned_threads.done = True

    def _arrange(self, inputs: "Inputs") -> "list[Array | None]":
        """Check the arguments and put them into the model's order."""
        tensors = self.signature.inputs
        if not isinstance(inputs, Mapping):
            if len(tensors) != 1:
                wanted = ", ".join(tensor.name for tensor in tensors)
                raise InvalidInputError(
                    f"the model has {len(tensors)} inputs, and one array was given",
                    hint=f"pass a mapping with {wanted}",
                )
            inputs = {tensors[0].name: inputs}
        names = {tensor.name for tensor in tensors}
        if unknown := sorted(set(inputs) - names):
            known = ", ".join(sorted(names))
            raise InvalidInputError(
                f"the model has no input '{unknown[0]}'", hint=f"it has {known}"
            )
        return [self._fit(tensor, inputs.get(tensor.name)) for tensor in tensors]

    def _fit(self, tensor: TensorInfo, value: "npt.ArrayLike | None") -> "Array | None":
        from lrai.backends.tensors import NUMPY_TYPES

        np = self._numpy
        if value is None:
            if tensor.optional:
                return None
            raise InvalidInputError(f"input '{tensor.name}' is missing")
        expected = np.dtype(NUMPY_TYPES[tensor.datatype])
        array: Array = np.asarray(value)
        if tensor.datatype == "BYTES":
            array = array.astype(np.object_)
        elif array.dtype != expected:
            if not np.can_cast(array.dtype, expected, "same_kind"):
                raise InvalidInputError(
                    f"input '{tensor.name}' is {tensor.datatype}, and {array.dtype} was given",
                    hint=f"use .astype({expected.name!r})",
                )
            array = array.astype(expected)
        if not tensor.fits(array.shape):
            raise InvalidInputError(
                f"input '{tensor.name}' has the shape {list(tensor.shape)}, "
                f"and {list(array.shape)} was given"
            )
        return array

    def _bind(self, num_bytes: int) -> None:
        self._input_slab = _page_aligned(num_bytes)
        self._backend.bind(Slabs(self._input_slab, self._outputs, self._max_output_bytes))

    def _write(self, arrays: "list[Array | None]") -> tuple[Place | None, ...]:
        from lrai.backends.tensors import SlotWriter

        needed = sum(_bytes_at_most(array) + _ALIGNMENT for array in arrays if array is not None)
        if needed > len(self._input_slab):
            self._bind(needed)
        writer = SlotWriter(Slabs(self._input_slab, self._input_slab, len(self._input_slab)), 0)
        return tuple(
            None if array is None else writer.write(array, tensor.datatype)
            for tensor, array in zip(self.signature.inputs, arrays, strict=True)
        )

    def _read(self, places: list[Place], *, copy: bool) -> "dict[str, Array]":
        from lrai.backends.tensors import view

        outputs = {}
        for tensor, place in zip(self.signature.outputs, places, strict=True):
            array = view(self._outputs, place, tensor.datatype)
            outputs[tensor.name] = array.copy() if copy else array
        return outputs


def _page_aligned(num_bytes: int) -> memoryview:
    """Memory that costs nothing until it is touched, and begins where engines like it."""
    import mmap

    return memoryview(mmap.mmap(-1, max(num_bytes, mmap.PAGESIZE)))


def _bytes_at_most(array: "np.ndarray[Any, Any]") -> int:
    if array.dtype != object:
        return int(array.nbytes)
    return sum(4 + len(e if isinstance(e, bytes) else str(e).encode()) for e in array.flat)
