"""The other limit: the same onnxruntime session called in a loop, without any server."""

from __future__ import annotations

import math
import time
from pathlib import Path

from benchmarks.models import MODELS, Array
from benchmarks.versus.serving.session import open_session


class OnnxruntimeLoop:
    """A session in this process, with the threads and options that the servers use."""

    def __init__(self, model: str, path: Path, threads: int) -> None:
        self._sample = MODELS[model].sample
        self._session = open_session(str(path), threads)

    def answer(self, rows: int = 1) -> Array:
        """What every server must answer to the benchmark's request."""
        result: Array = self._session.run(None, self._sample(rows))[0]
        return result

    def rows_per_second(self, rows: float, seconds: float) -> float:
        """Throughput at that batch size; a mean between two sizes is made of batches of both."""
        small = max(1, math.floor(rows))
        share_of_large = max(0.0, rows - small)
        small_s = self._seconds_per_batch(small, seconds * (1 - share_of_large))
        if share_of_large == 0.0:
            return small / small_s
        large_s = self._seconds_per_batch(small + 1, seconds * share_of_large)
        mean_s = (1 - share_of_large) * small_s + share_of_large * large_s
        return rows / mean_s

    def _seconds_per_batch(self, rows: int, seconds: float) -> float:
        feed = self._sample(rows)
        self._session.run(None, feed)
        count, started = 0, time.perf_counter()
        elapsed = 0.0
        while elapsed < seconds or count == 0:
            self._session.run(None, feed)
            count += 1
            elapsed = time.perf_counter() - started
        return elapsed / count
