"""How fast requests come, and how evenly."""

from collections import deque
from collections.abc import Mapping
from math import sqrt
from typing import Any, Final

from lrai.scheduler.observation import Observation

_MEMORY_TICKS: Final = 20
_SHARE: Final = 0.1
_SURPRISE: Final = 4.0
_MOST_CHANGES: Final = 3
_BURST_WINDOW_S: Final = 0.01
_LEAST_RATE: Final = 1e-3


class ArrivalModel:
    """Rate of requests with jumps, rows per request, burstiness.

    The rate is an exponentially weighted mean that starts anew when a tick is too far from it to be
    chance (four standard deviations of a Poisson count).
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.rate = 0.0
        """Requests per second."""
        self.rows_per_request = 1.0
        self.burst_rate = 0.0
        """Rows per second in the densest 10 ms of late."""
        self._span_s = 0.0
        self._recent: deque[tuple[float, bool]] = deque(maxlen=_MEMORY_TICKS)

    def update(self, seen: Observation) -> bool:
        """Learn from a tick; return whether the rate has jumped."""
        if seen.interval_s <= 0:
            return False
        rate = seen.requests / seen.interval_s
        expected = self.rate * seen.interval_s
        spread = sqrt(expected + self.rate * seen.interval_s**2 / max(self._span_s, 1e-3) + 1)
        has_jumped = abs(seen.requests - expected) > _SURPRISE * spread
        self._recent.append((rate, has_jumped))
        if has_jumped:
            self.rate, self._span_s = rate, seen.interval_s
        else:
            share = max(_SHARE, seen.interval_s / (self._span_s + seen.interval_s))
            self.rate += share * (rate - self.rate)
            self._span_s += seen.interval_s
        if seen.requests:
            rows = seen.rows / seen.requests
            self.rows_per_request += _SHARE * (rows - self.rows_per_request)
        burst = seen.burst_rows / _BURST_WINDOW_S
        self.burst_rate = max(burst, self.burst_rate + _SHARE * (burst - self.burst_rate))
        return has_jumped

    @property
    def is_bursty(self) -> bool:
        """Whether the rate jumps so often that the last one says little about the next."""
        return sum(jumped for _, jumped in self._recent) >= _MOST_CHANGES

    def rates(self) -> list[tuple[float, float]]:
        """Return what the next tick may bring: pairs of probability and requests per second."""
        if not self.is_bursty:
            return [(1.0, max(self.rate, _LEAST_RATE))]
        rates = sorted(rate for rate, _ in self._recent)
        middle = (rates[0] * rates[-1]) ** 0.5 if rates[0] else rates[-1] / 2
        low = [rate for rate in rates if rate < middle]
        groups = [part for part in (low, rates[len(low) :]) if sum(part)]
        return [(len(part) / len(rates), sum(part) / len(part)) for part in groups]

    def to_plain(self) -> dict[str, Any]:
        """Return what holds beyond a restart."""
        return {"rate": self.rate, "rows_per_request": self.rows_per_request}

    def from_plain(self, plain: Mapping[str, Any]) -> None:
        """Take up what `to_plain` returned."""
        self.rate = float(plain["rate"])
        self.rows_per_request = float(plain["rows_per_request"])
