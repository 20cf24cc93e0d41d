"""A light model beside a flooded neighbour, and a transformer at three times its capacity."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import overload
from benchmarks.bench import (
    LATENCY_COLUMNS,
    WARM_UP_S,
    Bench,
    Sample,
    batch_counts,
    check_answers,
    latency_cells,
)
from benchmarks.load import Load, LoadResult
from benchmarks.overload import (
    CLOSED_CONNECTIONS,
    GOAL_MS,
    OPEN_CONNECTIONS,
    OVERLOAD,
    Overload,
)
from benchmarks.payloads import payload
from benchmarks.report import Goal, Section, Spread, Table
from benchmarks.versus.base import Peer, PeerError, Served
from benchmarks.versus.epoll import EpollPeer
from benchmarks.versus.lrai import LraiPeer

RATE, CONNECTIONS = 500.0, 8


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
    rows_per_batch: float = 0.0
    """Of the neighbour."""


class Promising(LraiPeer):
    """lrai with the latency goal."""

    name = "lrai-goal"


def run(bench: Bench) -> Section:
    """All servers at once; every round measures everything."""
    cells: list[_Cell] = []
    overloads: list[Overload] = []
    with ExitStack() as stack:
        lrai, promising, *others = _start(bench, stack)
        for _ in range(bench.rounds):
            cells.append(_Cell(lrai.name, None, bench.measure(lrai, _quiet(bench, lrai)), None))
            for flood in FLOODS:
                cells += [_beside(bench, peer, lrai, flood) for peer in (lrai, *others)]
            overloads.append(overload.measure(bench, lrai, promising))
    return Section(
        "flood",
        "A light model beside a flood, and a heavy one above its capacity",
        HOW,
        [_flood_table(cells), overload.table(overloads)],
        [*(_flood_goal(cells, flood) for flood in FLOODS), *overload.goals(overloads)],
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
    rows, batches = batch_counts(lrai, flood.model)
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(bench.client.send, load)
        quiet = bench.measure(peer, _quiet(bench, peer))
        flooded = flooding.result()
    more_rows, more_batches = batch_counts(lrai, flood.model)
    size = (more_rows - rows) / max(1, more_batches - batches)
    return _Cell(peer.name, flood, quiet, flooded, size)


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
                Spread.of([cell.rows_per_batch for cell in own]).text(1) if rates else "-",
                Spread.of([cell.quiet.steal_percent for cell in own]).text(2),
                Spread.of([cell.quiet.other_cores for cell in own]).text(2)
                if peer == "lrai"
                else "-",
            ]
        )
    neighbour = ["neighbour requests/s", "its rows per batch"]
    columns = [f"MLP at {RATE:.0f}/s", *LATENCY_COLUMNS, *neighbour, "steal %", "other work, cores"]
    return Table("Beside a flood", columns, rows)


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
