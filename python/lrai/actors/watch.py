"""Judges from numbers alone whether an actor hangs, has fallen silent, or is too large."""

from collections.abc import Sequence
from typing import Final

FLOOR_S: Final = 1.0
"""No batch is called a hang before it has run this long."""
SILENCE_S: Final = 30.0
"""An idle actor without a heartbeat for this long is taken for stuck."""
_TIMES_P99: Final = 20
_ENOUGH_BATCHES: Final = 100
_FREE_DEATHS: Final = 3
_LONGEST_BACKOFF_S: Final = 10.0


def hang_limit_s(
    execution_timeout_s: float, bounds_us: Sequence[int], counts: Sequence[int], most_rows: int
) -> float:
    """Return how long a batch may run: 20 times the p99 seen, within 1 s and the set time.

    Those seen may have been lone rows: twice as long as `most_rows` of them is no hang either.
    """
    total = sum(counts)
    if total < _ENOUGH_BATCHES:
        return execution_timeout_s
    below = 0
    for bound_us, count in zip(bounds_us, counts, strict=False):
        below += count
        if below >= 0.99 * total:
            learnt_s = max(_TIMES_P99, 2 * most_rows) * bound_us / 1e6
            return min(execution_timeout_s, max(FLOOR_S, learnt_s))
    return execution_timeout_s


def backoff_s(early_deaths: int) -> float:
    """Return how long to wait before the next try, after deaths without one good answer."""
    if early_deaths < _FREE_DEATHS:
        return 0.0
    return min(_LONGEST_BACKOFF_S, 0.1 * 2.0 ** min(early_deaths - _FREE_DEATHS, 10))
