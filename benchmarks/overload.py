"""A model above its capacity: answers within the latency goal, and how soon the rest is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import open_loop, processes
from benchmarks.bench import WARM_UP_S, Bench
from benchmarks.load import LoadResult
from benchmarks.open_loop import Schedule, Timed
from benchmarks.payloads import payload
from benchmarks.report import Goal, Spread, Table
from benchmarks.versus.base import Peer

CLOSED_CONNECTIONS, OPEN_CONNECTIONS = 8, 256
GOAL_MS, OVERLOAD, LEAST_SHARE, REFUSED_P95_MS = 200.0, 3.0, 0.95, 5.0
OK, UNAVAILABLE = 200, 503


@dataclass(frozen=True)
class Overload:
    """The transformer above its capacity, once."""

    before: LoadResult
    """The closed loop that measures the capacity."""
    after: LoadResult
    """The same again."""
    asked: float
    """Requests/s."""
    in_time: float
    """Answers within the goal, per second."""
    answered: float
    refused: float
    lost: int
    """Requests that got neither an answer nor a refusal."""
    answer_p99_ms: float
    refusal_p50_ms: float
    refusal_p95_ms: float
    waited_p95_ms: float
    """From due to sent: the client's own delay, part of the other times."""
    steal_percent: float

    @property
    def capacity(self) -> float:
        """Answers per second of the closed loop."""
        return (self.before.rate + self.after.rate) / 2

    @property
    def share(self) -> float:
        """Answers in time as a share of the capacity."""
        return self.in_time / self.capacity

    @property
    def drift(self) -> float:
        """By what share of the capacity the machine changed meanwhile."""
        return abs(self.after.rate - self.before.rate) / self.capacity


def measure(bench: Bench, lrai: Peer, promising: Peer) -> Overload:
    """Three times what lrai can do is asked of its like with the latency goal.

    Refused clients that ask again at once would cost capacity, so it is measured without a goal.
    """
    request = payload("transformer", "binary")
    before = bench.sample(lrai, request, CLOSED_CONNECTIONS).load
    asked = OVERLOAD * before.rate
    address, seconds = promising.address("binary"), WARM_UP_S + bench.seconds
    raw = request.http_request(address)
    machine = processes.cpu_times()
    found = open_loop.send(Schedule(address, raw, OPEN_CONNECTIONS, asked, seconds))
    steal = processes.cpu_times().since(machine).stolen_percent
    after = bench.sample(lrai, request, CLOSED_CONNECTIONS).load
    counted = [timed for timed in found if timed.due_s >= WARM_UP_S]
    answers = _times(counted, OK)
    refusals = _times(counted, UNAVAILABLE)
    return Overload(
        before,
        after,
        asked,
        in_time=sum(time <= GOAL_MS for time in answers) / bench.seconds,
        answered=len(answers) / bench.seconds,
        refused=len(refusals) / bench.seconds,
        lost=len(counted) - len(answers) - len(refusals),
        answer_p99_ms=_percentile(answers, 99),
        refusal_p50_ms=_percentile(refusals, 50),
        refusal_p95_ms=_percentile(refusals, 95),
        waited_p95_ms=_percentile([timed.waited_ms for timed in counted], 95),
        steal_percent=steal,
    )


def _times(found: Sequence[Timed], status: int) -> list[float]:
    return [timed.answered_ms for timed in found if timed.status == status]


def _percentile(times: Sequence[float], percent: float) -> float:
    """-1 where there is nothing to rank."""
    return float(np.percentile(times, percent)) if times else -1.0


def table(overloads: Sequence[Overload]) -> Table:
    """A row for each."""

    def row(found: Overload) -> list[str]:
        rates = (
            found.before.rate,
            found.after.rate,
            found.asked,
            found.in_time,
            found.answered,
            found.refused,
        )
        times = (found.answer_p99_ms, found.refusal_p50_ms, found.refusal_p95_ms)
        return [
            *(f"{rate:.1f}" for rate in rates),
            str(found.lost),
            *(f"{time:.2f}" for time in (*times, found.waited_p95_ms)),
            f"{found.steal_percent:.2f}",
        ]

    columns = [
        "capacity/s before",
        "after",
        "asked/s",
        "in time/s",
        "answered/s",
        "refused/s",
        "lost",
    ]
    times = ["answers p99 ms", "refusals p50 ms", "refusals p95 ms", "sent late p95 ms"]
    rows = [[str(index + 1), *row(found)] for index, found in enumerate(overloads)]
    return Table("The transformer above its capacity", ["round", *columns, *times, "steal %"], rows)


def goals(overloads: Sequence[Overload]) -> list[Goal]:
    """What was promised, by the medians."""
    share = Spread.of([found.share for found in overloads])
    refusal = Spread.of([found.refusal_p95_ms for found in overloads])
    waited = Spread.of([found.waited_p95_ms for found in overloads])
    lost = sum(found.lost for found in overloads)
    what = f"transformer at {OVERLOAD:.0f} times its capacity, latency goal {GOAL_MS:.0f} ms"
    drift = Spread.of([found.drift for found in overloads])
    is_kept: bool | None = share.median >= LEAST_SHARE and not lost
    if not is_kept and not lost and drift.median > 1 - LEAST_SHARE:
        is_kept = None
    is_quick: bool | None = refusal.low >= 0 and refusal.median < REFUSED_P95_MS
    if not is_quick and waited.median >= REFUSED_P95_MS:
        is_quick = None
    return [
        Goal(
            f"{what}: answers within the goal at least {LEAST_SHARE} of the capacity, none lost",
            f"{share.text(3)}, {lost} lost; the capacity changed by {drift.text(3)}",
            is_kept,
        ),
        Goal(
            f"{what}: p95 of refusals below {REFUSED_P95_MS:.0f} ms",
            f"{refusal.text(2)} ms; the client sent late by {waited.text(2)} ms",
            is_quick,
        ),
    ]
