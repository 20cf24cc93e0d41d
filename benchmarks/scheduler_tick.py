"""What a tick of the control loop costs: 100 models with a latency goal, 10 of them with traffic.

`python -m benchmarks.scheduler_tick [TICKS]` prints percentiles in wall and processor time. Windows
are made here, as the data plane makes them: rates that drift and jump, batches of 20 sizes.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.report import environment
from lrai.config import SchedulerConfig
from lrai.scheduler.control import Scheduler, Subject

MODELS, BUSY, DAY = 100, 10, 20_000
BOUNDS_US = [round(16 * 2 ** (step / 8)) for step in range(168)]


@dataclass
class Window:
    """One model's numbers; see lrai.scheduler.observation.Window."""

    key: int
    rate: float
    requests: int = 0
    rows_in: int = 0
    burst_rows: int = 0
    latency_bounds_us: list[int] = field(default_factory=lambda: BOUNDS_US)
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_US) + 1))
    late: int = 0
    refused_late: int = 0
    queue_age_us: int = 100
    pending: int = 3
    busy_ns: int = 0
    replicas: int = 1
    service: list[tuple[int, int, int, float, float]] = field(default_factory=list)
    lengths: list[tuple[int, int]] = field(default_factory=list)

    def advance(self, rng: random.Random) -> None:
        """Let 100 ms pass."""
        if rng.random() < 0.05:
            self.rate = 2_000 * 30 ** rng.random()
        rows = round(rng.gauss(self.rate / 10, (self.rate / 10) ** 0.5))
        self.requests += rows
        self.rows_in += rows
        self.burst_rows = rows // 8
        counts = list(self.latency_counts)
        for _ in range(30):
            counts[bisect_left(BOUNDS_US, rng.gauss(500, 120))] += rows // 30
        self.latency_counts = counts
        self.service = []
        for size in range(1, 21):
            times = [rng.gauss(80 + 13 * size, 4) for _ in range(max(1, rows // 400))]
            squares = sum(one * one for one in times)
            self.service.append((0, size, len(times), sum(times), squares))
            self.busy_ns += round(1e3 * sum(times))


def measured(ticks: int) -> dict[str, list[float]]:
    """Return wall and processor time of each tick, in microseconds."""
    rng, told = random.Random(5), [0]

    def count(_key: int, _text: str) -> None:
        told[0] += 1

    scheduler = Scheduler(count, lambda _notice: None)
    config = SchedulerConfig(latency_goal_s=0.001)
    for key in range(MODELS):
        scheduler.add(key, Subject(f"model-{key}", "1", 64), config)
    windows = [Window(key, 2_000 * (key + 1)) for key in range(BUSY)]
    times: dict[str, list[float]] = {"wall": [], "processor": []}
    for tick in range(ticks):
        for window in windows:
            window.advance(rng)
        wall, processor = time.perf_counter(), time.thread_time()
        scheduler.tick(100 + tick / 10, windows, DAY)
        times["processor"].append((time.thread_time() - processor) * 1e6)
        times["wall"].append((time.perf_counter() - wall) * 1e6)
    print(f"{ticks} ticks, {told[0]} times knobs were set")
    return times


def line(name: str, times: Sequence[float]) -> str:
    """Median, p99 and maximum in words."""
    p99 = statistics.quantiles(times, n=100)[-1]
    return (
        f"{name} time of a tick: median {statistics.median(times):.0f}, p99 {p99:.0f},"
        f" most {max(times):.0f} us"
    )


def main() -> None:
    ticks = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    where = environment("none", {}, {"models": MODELS, "busy": BUSY, "ticks": ticks})
    print(json.dumps(asdict(where), indent=2))
    for name, times in measured(ticks).items():
        print(line(name, times))


if __name__ == "__main__":
    main()
