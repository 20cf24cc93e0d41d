"""A window and observations made by hand."""

from bisect import bisect_left
from dataclasses import dataclass, field

from lrai.scheduler.observation import Observation, ServiceSample

BOUNDS_US = tuple(round(16 * 2 ** (step / 8)) for step in range(160))


@dataclass
class FakeWindow:
    key: int = 1
    requests: int = 0
    rows_in: int = 0
    burst_rows: int = 0
    latency_bounds_us: list[int] = field(default_factory=lambda: [100, 200])
    latency_counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    late: int = 0
    refused_late: int = 0
    queue_age_us: int = 0
    pending: int = 0
    busy_ns: int = 0
    replicas: int = 1
    service: list[tuple[int, int, int, float, float]] = field(default_factory=list)
    lengths: list[tuple[int, int]] = field(default_factory=list)
    inflight_age_ms: list[tuple[int, int]] = field(default_factory=list)


def seen(
    now_s: float = 0.0,
    rows: int = 100,
    requests: int | None = None,
    latency_us: float = 500.0,
    service: tuple[ServiceSample, ...] = (),
    refused_late: int = 0,
) -> Observation:
    """Return a tick of 100 ms in which every request took the same time."""
    requests = rows if requests is None else requests
    latency = [0] * (len(BOUNDS_US) + 1)
    latency[bisect_left(BOUNDS_US, latency_us)] = requests
    return Observation(
        now_s=now_s,
        interval_s=0.1,
        requests=requests,
        rows=rows,
        burst_rows=rows // 10,
        latency=tuple(latency),
        bounds_us=BOUNDS_US,
        late=0,
        refused_late=refused_late,
        queue_age_s=0.0,
        pending=0,
        busy_s=sum(one.sum_s for one in service),
        replicas=1,
        service=service,
    )


def samples(
    times_s: dict[int, float] | dict[int, list[float]], batches: int, edge: int = 0
) -> tuple[ServiceSample, ...]:
    """Return batches by rows: `batches` of one time each, or a list of times."""
    made = []
    for rows, given in times_s.items():
        times = given if isinstance(given, list) else [given] * batches
        squares = sum(one * one for one in times)
        made.append(ServiceSample(edge, rows, len(times), sum(times), squares))
    return tuple(made)
