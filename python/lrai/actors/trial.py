"""What a trial does with its life: it runs batches of made-up inputs and says what they took."""

import mmap
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from lrai.actors.limits import private_bytes, waiting_s
from lrai.actors.messages import Kind
from lrai.actors.trial_messages import TrialMessage, TrialResult
from lrai.backends.base import Backend, BatchFaultError, LocalBatch, Place, Slabs
from lrai.backends.tensors import NUMPY_TYPES, Array, SlotWriter
from lrai.core.model import TensorInfo

_MAX_MESSAGE: Final = 1 << 16
_LEAST_RUNS: Final = 3
# On a busy machine it goes on for so many times as long, until enough batches were undisturbed:
# their threads waited no longer than this share of the batch's time for a processor.
_MOST_SHARES: Final = 10
_MOST_WAITED: Final = 0.25
# Untouched it costs nothing, and a shared mapping does not count against the memory limit.
_OUTPUT_BYTES: Final = 1 << 28
_ALIGNMENT: Final = 64

Send = Callable[[Kind, Mapping[str, Any]], None]


def answer_trials(backend: Backend, link_fd: int, baseline_bytes: int, send: Send) -> None:
    """Run what the supervisor asks for over the link, until it closes that."""
    link = socket.socket(fileno=link_fd)
    while text := link.recv(_MAX_MESSAGE):
        asked = TrialMessage.decode(text)
        # Indices of a vocabulary are rarely out of it with 1, and never with 0.
        for fill in (1, 0):
            result = _measure(backend, asked, fill, baseline_bytes)
            if not result.error:
                break
        send("measured", asdict(result))


def _measure(backend: Backend, asked: TrialMessage, fill: int, baseline_bytes: int) -> TrialResult:
    batch = _bind(backend, asked.shapes, fill)
    times_s: list[float] = []
    cpu_s: list[float] = []
    try:
        backend.run(batch)
        started_s = now_s = time.perf_counter()
        while not _is_enough(len(cpu_s), len(times_s), (now_s - started_s) / asked.seconds):
            waited_s, used_s, begun_s = _waited_s(), time.process_time(), time.perf_counter()
            backend.run(batch)
            now_s = time.perf_counter()
            cpu_s.append(time.process_time() - used_s)
            is_short = _waited_s() - waited_s > _MOST_WAITED * (now_s - begun_s)
            if not is_short and not _are_others_runnable():
                times_s.append(now_s - begun_s)
    except BatchFaultError as fault:
        return TrialResult(0.0, 0.0, 0, 0, 0, str(fault))
    return TrialResult(
        batch_s=statistics.median(times_s) if times_s else 0.0,
        cpu_s=statistics.median(cpu_s),
        used_bytes=private_bytes(os.getpid()) - baseline_bytes,
        runs=len(cpu_s),
        undisturbed=len(times_s),
    )


def _is_enough(runs: int, undisturbed: int, share: float) -> bool:
    """Whether to end after so many batches, when this share of the time has passed."""
    if undisturbed >= _LEAST_RUNS:
        return share >= 1
    return runs >= _LEAST_RUNS and share >= _MOST_SHARES


def _bind(backend: Backend, shapes: Sequence[tuple[int, ...]], fill: int) -> LocalBatch:
    """Lay made-up inputs into memory of this process, as the gateway does into a slab."""
    inputs = backend.signature.inputs
    arrays = [_made_up(*pair, fill) for pair in zip(inputs, shapes, strict=True)]
    needed = sum(array.nbytes + _ALIGNMENT for array in arrays if array is not None)
    slab = memoryview(mmap.mmap(-1, needed))
    backend.bind(Slabs(slab, memoryview(mmap.mmap(-1, _OUTPUT_BYTES)), _OUTPUT_BYTES))
    writer = SlotWriter(Slabs(slab, slab, needed), 0)
    places: list[Place | None] = [
        None if array is None else writer.write(array, tensor.datatype)
        for tensor, array in zip(inputs, arrays, strict=True)
    ]
    return LocalBatch(tuple(places))


def _made_up(tensor: TensorInfo, shape: tuple[int, ...], fill: int) -> Array | None:
    """Return values as plain data may have them: how long a model takes rarely depends on them."""
    if tensor.optional and not shape:
        return None
    kind = np.dtype(NUMPY_TYPES[tensor.datatype])
    if kind.kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(kind)
    return np.full(shape, fill, kind)


def _waited_s() -> float:
    return sum(waiting_s(int(thread)) for thread in os.listdir("/proc/self/task"))


def _are_others_runnable() -> bool:
    """Whether a thread of the engine still waits for its part in a batch that others have done.

    Its waiting counts only when it ends.
    """
    own = str(threading.get_native_id())
    stats = (
        Path(f"/proc/self/task/{thread}/stat").read_text()
        for thread in os.listdir("/proc/self/task")
        if thread != own
    )
    return any(stat.rpartition(") ")[2].startswith("R") for stat in stats)
