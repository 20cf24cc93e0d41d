"""Whether a model in service still takes the times that were measured of it."""

from collections.abc import Sequence
from typing import Final

from lrai.scheduler.allocation import Point, expected_s
from lrai.scheduler.observation import Window

_MOST: Final = 1.3
_PATIENCE_S: Final = 30.0
# One look in ten, so that it costs next to nothing.
_LOOK_S: Final = 1.0
# What a batch takes beside the model, as the gateway sees it.
_OVERHEAD_S: Final = 0.2e-3


class Drift:
    """Compares a model's batches with two tables: one replica that runs, and all of them."""

    def __init__(
        self, alone: Sequence[Point], together: Sequence[Point], scale: float = 1.0
    ) -> None:
        """`scale` is how many times as long as measured the model took the last time."""
        self._alone, self._together, self.ratio = alone, together, scale
        self._scale = scale
        self._looked_s = 0.0
        self._off_s: float | None = None

    def note(self, window: Window, now_s: float) -> bool:
        """Take in a window; return whether the times have been off by 30% for half a minute."""
        if now_s - self._looked_s < _LOOK_S:
            return False
        self._looked_s = now_s
        took_s = least_s = most_s = 0.0
        for _, rows, batches, sum_us, _ in window.service:
            took_s += sum_us * 1e-6
            least_s += batches * expected_s(self._alone, rows)
            most_s += batches * (expected_s(self._together, rows) + _OVERHEAD_S)
        if not took_s:
            return False
        self.ratio = took_s / most_s if took_s > most_s else min(1.0, took_s / least_s)
        if 1 / _MOST <= self.ratio / self._scale <= _MOST:
            self._off_s = None
            return False
        self._off_s = now_s if self._off_s is None else self._off_s
        return now_s - self._off_s >= _PATIENCE_S
