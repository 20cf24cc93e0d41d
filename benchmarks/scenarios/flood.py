"""A light model beside a flooded neighbour, and a transformer at three times its capacity."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from benchmarks import open_loop, processes
from benchmarks.bench import LATENCY_COLUMNS, WARM_UP_S, Bench, Sample, check_answers, latency_cells
from benchmarks.load import Load, LoadResult
from benchmarks.open_loop import Schedule, Timed
from benchmarks.payloads import payload
from benchmarks.report import Goal, Section, Spread, Table
from benchmarks.versus.base import Peer, PeerError, Served
from benchmarks.versus.epoll import EpollPeer
from benchmarks.versus.lrai import LraiPeer

RATE, CONNECTIONS = 500.0, 8
CLOSED_CONNECTIONS = 8
GOAL_MS, OVERLOAD, LEAST_SHARE, REFUSED_P95_MS = 200.0, 3.0, 0.95, 5.0
OPEN_CONNECTIONS = 256
OK, UNAVAILABLE = 200, 503


@dataclass(frozen=True)
class Flood:
    """A neighbour in a closed loop, and what the quiet model is promised beside it."""

    model: str
    connections: int
    limit_ms: float
    """p99."""

    @property
    def text(self) -> str:
        """As tables name it."""
        return f"{self.model}, {self.connections} connections"


FLOODS = (
    Flood("mlp_flooded", 64, 3.0),
    Flood("mlp_flooded", 256, 6.0),
    Flood("transformer", CLOSED_CONNECTIONS, 5.0),
)
HOW = f"""One lrai with default settings serves two copies of the MLP and the transformer. One
MLP gets {RATE:.0f} JSON requests/s at scheduled times over {CONNECTIONS} connections, alone and
beside a neighbour in a closed loop (JSON for the MLP, the binary extension for the transformer)
that starts before and ends after. In the same round the same requests go to the bare C server,
a process of its own that has nothing else to do, beside the same flood of the same lrai: a limit
that it breaks too is void, for then the machine decided. A second lrai, with --latency-goal
{GOAL_MS:.0f}ms, gets {OVERLOAD:.0f} times the transformer's capacity, at equal distances over
{OPEN_CONNECTIONS} connections, from a client that times refusals too (open_loop.py). The capacity
is what {CLOSED_CONNECTIONS} connections in a closed loop get from the first lrai, before (which
sets the rate) and after; where the two differ by more than the promise allows, a miss is void, as
is one of the refusals' time within which the client could not even send. All times count from
when a request was due; the first {WARM_UP_S:.0f} s of every cell does not count. All clients
share the cores with the servers."""


@dataclass(frozen=True)
class _Cell:
    """The quiet model's server, beside a flood or (None) alone."""

    peer: str
    flood: Flood | None
    quiet: Sample
    flooding: LoadResult | None


@dataclass(frozen=True)
class _Overload:
    """The transformer above its capacity."""

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


class Promising(LraiPeer):
    """lrai with the latency goal."""

    name = "lrai-goal"


def run(bench: Bench) -> Section:
    """All servers at once; every round measures everything."""
    cells: list[_Cell] = []
    overloads: list[_Overload] = []
    with ExitStack() as stack:
        lrai, promising, *others = _start(bench, stack)
        for _ in range(bench.rounds):
            cells.append(_Cell(lrai.name, None, bench.measure(lrai, _quiet(bench, lrai)), None))
            for flood in FLOODS:
                cells += [_beside(bench, peer, lrai, flood) for peer in (lrai, *others)]
            overloads.append(_overload(bench, lrai, promising))
    return Section(
        "flood",
        "A light model beside a flood, and a heavy one above its capacity",
        HOW,
        [_flood_table(cells), _overload_table(overloads)],
        [*(_flood_goal(cells, flood) for flood in FLOODS), *_overload_goals(overloads)],
        bench.notes,
        {"floods": cells, "overloads": overloads},
    )


def _start(bench: Bench, stack: ExitStack) -> list[Peer]:
    """lrai, lrai with the goal, and the C server if it was asked for."""
    mlp, transformer = bench.served("mlp"), bench.served("transformer")
    copy = Served("mlp_flooded", mlp.path, mlp.threads)
    flags = [f"--latency-goal={GOAL_MS:.0f}ms"]
    lrai = stack.enter_context(LraiPeer(bench.cache).start([mlp, copy, transformer]))
    promising = stack.enter_context(Promising(bench.cache, flags).start([transformer]))
    peers: list[Peer] = [lrai, promising]
    if "epoll" in bench.peers:
        try:
            peers.append(stack.enter_context(EpollPeer(bench.cache).start([mlp])))
        except PeerError as error:
            bench.notes.append(f"without the C server: {str(error).splitlines()[0]}")
    expected = {model: bench.loop(model).answer() for model in ("mlp", "transformer")}
    for peer in peers:
        if peer is not promising:
            check_answers(peer, "mlp", expected["mlp"])
    for peer in (lrai, promising):
        check_answers(peer, "transformer", expected["transformer"])
    return peers


def _quiet(bench: Bench, peer: Peer) -> Load:
    return Load(peer.address("json"), payload("mlp", "json"), CONNECTIONS, bench.seconds, RATE)


def _beside(bench: Bench, peer: Peer, lrai: Peer, flood: Flood) -> _Cell:
    """The peer's latencies while lrai is flooded."""
    if flood.model == "transformer":
        request = payload(flood.model, "binary")
    else:
        request = payload("mlp", "json", served_as=flood.model)
    seconds = bench.seconds + 2 * WARM_UP_S
    load = Load(lrai.address(request.face), request, flood.connections, seconds)
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(bench.client.send, load)
        quiet = bench.measure(peer, _quiet(bench, peer))
        return _Cell(peer.name, flood, quiet, flooding.result())


def _overload(bench: Bench, lrai: Peer, promising: Peer) -> _Overload:
    """Refused clients that ask again at once would cost the capacity: it is measured without."""
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
    return _Overload(
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


def _flood_table(cells: Sequence[_Cell]) -> Table:
    groups: dict[tuple[str, Flood | None], list[_Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.peer, cell.flood), []).append(cell)
    rows = []
    for (peer, flood), own in groups.items():
        rates = [cell.flooding.rate for cell in own if cell.flooding is not None]
        rows.append(
            [
                f"{peer}, beside {flood.text}" if flood else f"{peer}, alone",
                *latency_cells([cell.quiet.load for cell in own]),
                Spread.of(rates).text() if rates else "-",
                Spread.of([cell.quiet.steal_percent for cell in own]).text(2),
                Spread.of([cell.quiet.other_cores for cell in own]).text(2)
                if peer == "lrai"
                else "-",
            ]
        )
    columns = [f"MLP at {RATE:.0f}/s", *LATENCY_COLUMNS, "neighbour requests/s", "steal %"]
    return Table("Beside a flood", [*columns, "other work, cores"], rows)


def _flood_goal(cells: Sequence[_Cell], flood: Flood) -> Goal:
    def p99(peer: str) -> list[float]:
        own = [cell for cell in cells if (cell.peer, cell.flood) == (peer, flood)]
        return [cell.quiet.load.p99_ms for cell in own]

    found, control = Spread.of(p99("lrai")), p99("epoll")
    measured = f"{found.text(2)} ms"
    holds: bool | None = found.median <= flood.limit_ms
    if control:
        bare = Spread.of(control)
        measured += f"; the bare C server beside it: {bare.text(2)} ms"
        if not holds and bare.median > flood.limit_ms:
            holds = None
    text = f"MLP at {RATE:.0f}/s beside {flood.text}: p99 at most {flood.limit_ms:.0f} ms"
    return Goal(text, measured, holds)


def _overload_table(overloads: Sequence[_Overload]) -> Table:
    def row(found: _Overload) -> list[str]:
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


def _overload_goals(overloads: Sequence[_Overload]) -> list[Goal]:
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
