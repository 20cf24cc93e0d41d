"""What happened to one model between two looks at the data plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import sub
from typing import Final, NamedTuple, Protocol

_US: Final = 1e-6
_US2: Final = _US * _US


class Window(Protocol):
    """One model's numbers as the data plane tells them."""

    @property
    def key(self) -> int:
        """The model in the data plane."""

    @property
    def requests(self) -> int:
        """Admitted requests since the start."""

    @property
    def rows_in(self) -> int:
        """Admitted rows since the start."""

    @property
    def burst_rows(self) -> int:
        """Most rows that came in any 10 ms since the last look."""

    @property
    def latency_bounds_us(self) -> list[int]:
        """Upper bounds of the latency histogram's buckets; the last bucket has none."""

    @property
    def latency_counts(self) -> list[int]:
        """Requests per bucket since the start, from request complete to answer begun."""

    @property
    def late(self) -> int:
        """Requests answered after their deadline, since the start."""

    @property
    def refused_late(self) -> int:
        """Requests refused because they would have been late, since the start."""

    @property
    def queue_age_us(self) -> int:
        """Age of the oldest waiting request."""

    @property
    def pending(self) -> int:
        """Requests that wait or run."""

    @property
    def busy_ns(self) -> int:
        """Sum of all batches' times at their replicas, since the start."""

    @property
    def replicas(self) -> int:
        """Replicas that take batches."""

    @property
    def service(self) -> Sequence[tuple[int, int, int, float, float]]:
        """Batches since the last look: bucket edge, rows, count, sum in us, sum of squares in us^2.

        A batch's time is what the replica took as the gateway saw it.
        """

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Rows of a ragged model's requests since the last look, by length: length, rows."""


class ServiceSample(NamedTuple):
    """Batches of one size: how many there were and how long they took."""

    edge: int
    """Bucket edge of a ragged model; 0 = no buckets."""
    rows: int
    batches: int
    sum_s: float
    sum_squares_s2: float


@dataclass(frozen=True, slots=True)
class Observation:
    """Differences over one tick, and the state at its end."""

    now_s: float
    """End of the tick on a clock that only moves forward."""
    interval_s: float
    requests: int
    rows: int
    burst_rows: int
    """Most rows in any 10 ms."""
    latency: tuple[int, ...]
    """Requests per bucket, from request complete to answer begun."""
    bounds_us: tuple[int, ...]
    """Upper bounds of `latency`; the last bucket has none."""
    late: int
    refused_late: int
    queue_age_s: float
    pending: int
    busy_s: float
    """Sum of the batches' times at all replicas."""
    replicas: int
    service: tuple[ServiceSample, ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()
    """Of a ragged model: length, rows."""


class Counters(NamedTuple):
    """A window's numbers that only grow, kept until the next look."""

    now_s: float
    requests: int = 0
    rows: int = 0
    late: int = 0
    refused_late: int = 0
    busy_ns: int = 0
    latency: tuple[int, ...] = ()


def observe(window: Window, last: Counters, now_s: float) -> tuple[Observation, Counters]:
    """Return what happened since `last`, and the counters for the next look."""
    now = Counters(
        now_s,
        window.requests,
        window.rows_in,
        window.late,
        window.refused_late,
        window.busy_ns,
        tuple(window.latency_counts),
    )
    seen = Observation(
        now_s=now_s,
        interval_s=now_s - last.now_s,
        requests=now.requests - last.requests,
        rows=now.rows - last.rows,
        burst_rows=window.burst_rows,
        latency=tuple(map(sub, now.latency, last.latency)) if last.latency else now.latency,
        bounds_us=tuple(window.latency_bounds_us),
        late=now.late - last.late,
        refused_late=now.refused_late - last.refused_late,
        queue_age_s=window.queue_age_us * _US,
        pending=window.pending,
        busy_s=(now.busy_ns - last.busy_ns) * 1e-9,
        replicas=window.replicas,
        service=tuple(
            [
                ServiceSample(edge, rows, batches, total * _US, squares * _US2)
                for edge, rows, batches, total, squares in window.service
            ]
        ),
        lengths=tuple(window.lengths),
    )
    return seen, now


def quantile_s(counts: tuple[int, ...], bounds_us: tuple[int, ...], share: float) -> float | None:
    """Return the latency that `share` of the requests stay below, in seconds; None without any.

    Linear inside a bucket; a request above the last bound counts as that bound.
    """
    wanted = sum(counts) * share
    if not wanted:
        return None
    below = 0
    for at, count in enumerate(counts[: len(bounds_us)]):
        if below + count >= wanted:
            low = bounds_us[at - 1] if at else 0
            return (low + (bounds_us[at] - low) * (wanted - below) / count) * _US
        below += count
    return bounds_us[-1] * _US
