"""What was seen of a model and done about it: ten seconds, an hour, days."""

from collections import deque
from collections.abc import Sequence
from operator import sub
from typing import Final, NamedTuple

from lrai.scheduler.knobs import Knobs
from lrai.scheduler.observation import Counters, Observation, quantile_s

_WINDOW_S: Final = 10.0
_GRAIN_S: Final = 1.0
_RECORD_S: Final = 10.0
_KEPT_S: Final = 3600.0
_MOST_RECORDS: Final = 720


class Record(NamedTuple):
    """What was seen in some seconds, and the knobs at their end, as `lrai models why` shows it."""

    at_s: float
    requests_per_s: float
    p99_ms: float | None
    """Over the last 10 s."""
    queue_age_ms: float
    busy: float
    """Busy replicas."""
    late: int
    refused_late: int
    k: int
    cap: int
    tau_ms: float


class Digest(NamedTuple):
    """One day of a model."""

    day: int
    """Days since 1970, UTC."""
    requests: int
    p50_s: float
    p99_s: float
    late: int
    refused_late: int


class History:
    """Keeps p99 over 10 s, records of an hour, and the day so far."""

    def __init__(self) -> None:
        """Start empty."""
        self.records: deque[Record] = deque(maxlen=_MOST_RECORDS)
        self.p99_s: float | None = None
        """Over the last 10 s with requests."""
        self.requests = 0
        """In those 10 s."""
        self._marks: deque[tuple[float, tuple[int, ...]]] = deque()
        self._since = self._day_start = Counters(0.0)
        self._day: int | None = None
        self._queue_age_s = 0.0

    def add(self, seen: Observation, counters: Counters, knobs: Knobs, is_new: bool) -> bool:
        """Take in a tick, whose knobs may be new; return whether p99 was measured anew."""
        now_s = seen.now_s
        self._queue_age_s = max(self._queue_age_s, seen.queue_age_s)
        is_measured = not self._marks or now_s - self._marks[-1][0] >= _GRAIN_S
        if is_measured:
            self._measure(counters, seen.bounds_us)
        span_s = now_s - self._since.now_s
        if span_s >= _RECORD_S or (is_new and span_s >= _GRAIN_S):
            self._record(counters, knobs, span_s)
        return is_measured

    def _measure(self, counters: Counters, bounds_us: Sequence[int]) -> None:
        marks = self._marks
        marks.append((counters.now_s, counters.latency))
        while len(marks) > 2 and marks[1][0] <= counters.now_s - _WINDOW_S:
            marks.popleft()
        recent = _less(counters.latency, marks[0][1] if len(marks) > 1 else ())
        self.requests = sum(recent)
        self.p99_s = quantile_s(recent, tuple(bounds_us), 0.99)

    def _record(self, counters: Counters, knobs: Knobs, span_s: float) -> None:
        since = self._since
        if since.now_s:
            record = Record(
                round(counters.now_s, 1),
                round((counters.requests - since.requests) / span_s, 1),
                in_ms(self.p99_s),
                round(self._queue_age_s * 1e3, 3),
                round((counters.busy_ns - since.busy_ns) * 1e-9 / span_s, 3),
                counters.late - since.late,
                counters.refused_late - since.refused_late,
                knobs.k,
                knobs.cap,
                round(knobs.tau_s * 1e3, 3),
            )
            self.records.append(record)
            while self.records[0].at_s < counters.now_s - _KEPT_S:
                self.records.popleft()
        self._since, self._queue_age_s = counters, 0.0

    def turn(self, day: int, counters: Counters, bounds_us: Sequence[int]) -> Digest | None:
        """Return the day that has ended with this tick, if one has and it had requests."""
        if day == self._day:
            return None
        ended, start = self._day, self._day_start
        self._day, self._day_start = day, counters
        if ended is None:
            return None
        latency = _less(counters.latency, start.latency)
        p50_s, p99_s = (quantile_s(latency, tuple(bounds_us), share) for share in (0.5, 0.99))
        if p50_s is None or p99_s is None:
            return None
        late, refused_late = counters.late - start.late, counters.refused_late - start.refused_late
        return Digest(ended, sum(latency), p50_s, p99_s, late, refused_late)


def has_slowed(digests: Sequence[Digest], days: int, rise: float) -> bool:
    """Whether p99 was `rise` above the day before on each of the last `days` days."""
    if not days or len(digests) <= days:
        return False
    before, *since = digests[-days - 1 :]
    return all(one.p99_s >= (1 + rise) * before.p99_s for one in since)


def in_ms(seconds: float | None) -> float | None:
    """Return milliseconds with three digits, None for None."""
    return None if seconds is None else round(seconds * 1e3, 3)


def _less(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sub, now, before)) if before else now
