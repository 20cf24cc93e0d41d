"""MLP, open loop: requests at scheduled times, and the highest rate that stays quick."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.bench import Bench, Sample
from benchmarks.load import Load
from benchmarks.payloads import FACES, Face, payload
from benchmarks.report import Goal, Section, Table
from benchmarks.versus.base import Peer

CONNECTIONS = 64
STEADY_S = 60.0
SEARCH_S = 10.0
P99_LIMIT_MS = 2.0
PROMISED = {10_000.0: 1.0, 30_000.0: P99_LIMIT_MS}
"""Rates, and the p99 in milliseconds that each must stay below."""
LOWEST_TRIED = 20_000.0
HIGHEST_TRIED = 400_000.0
HOW = f"""Open loop over {CONNECTIONS} connections: a request is due at a fixed time and its
latency counts from then, so a server that stalls pays for all that waited. Steady cells last
{STEADY_S:.0f} s. The highest rate is searched with cells of {SEARCH_S:.0f} s (by factors of
1.25, then by halving the gap) for the largest that has p99 below {P99_LIMIT_MS:.0f} ms, no
error, and keeps up; the rate found is then held for {STEADY_S:.0f} s. A promise
that a bare C server breaks too, in the same run, is void: the machine decided, not the server."""


@dataclass(frozen=True)
class _Cell:
    """One server at one rate."""

    peer: str
    face: Face
    asked: float
    sample: Sample

    def keeps(self, limit_ms: float) -> bool:
        """Whether the rate was held, and quickly."""
        load = self.sample.load
        return load.errors == 0 and load.rate >= 0.99 * self.asked and load.p99_ms < limit_ms

    @property
    def is_kept(self) -> bool:
        """The same with the limit of the search."""
        return self.keeps(P99_LIMIT_MS)


def run(bench: Bench) -> Section:
    """The two promised rates for all; the highest for lrai and the C server."""
    cells: list[_Cell] = []
    with bench.running(["lrai", "epoll", "triton", "triton-tuned"], ["mlp"]) as peers:
        for rate in PROMISED:
            for peer in peers.values():
                # A server that cannot keep the lower rate says nothing at the higher one, but the C
                # server says what the machine allows.
                kept = all(cell.is_kept for cell in cells if cell.peer == peer.name)
                if kept or peer.name == "epoll":
                    cells.append(_hold(bench, peer, "json", rate, STEADY_S))
        for face in FACES:
            for peer in (peers[name] for name in ("lrai", "epoll") if name in peers):
                rate = _highest(bench, peer, face) if face in peer.faces else 0.0
                if rate:
                    cells.append(_hold(bench, peer, face, rate, STEADY_S))
    return Section(
        name="steady",
        title="MLP, open loop",
        how=HOW,
        tables=[_table(cells)],
        goals=_goals(cells),
        notes=bench.notes,
        data=cells,
    )


def _hold(bench: Bench, peer: Peer, face: Face, rate: float, seconds: float) -> _Cell:
    load = Load(peer.address(face), payload("mlp", face), CONNECTIONS, seconds, rate)
    return _Cell(peer.name, face, rate, bench.measure(peer, load))


def _highest(bench: Bench, peer: Peer, face: Face) -> float:
    """The highest rate that is kept; 0 if none is."""
    good, bad = 0.0, 0.0
    rate = LOWEST_TRIED
    while not bad and rate < HIGHEST_TRIED:
        if _hold(bench, peer, face, rate, SEARCH_S).is_kept:
            good, rate = rate, rate * 1.25
        else:
            bad = rate
    if not good or not bad:
        return good
    for _ in range(3):
        middle = (good + bad) / 2
        if _hold(bench, peer, face, middle, SEARCH_S).is_kept:
            good = middle
        else:
            bad = middle
    return float(round(good, -2))


def _table(cells: list[_Cell]) -> Table:
    rows = []
    for cell in cells:
        load = cell.sample.load
        latencies = (load.p50_ms, load.p99_ms, load.p999_ms, load.max_ms)
        rows.append(
            [
                f"{cell.peer}, {cell.face}",
                f"{cell.asked:,.0f}",
                f"{load.rate:,.0f}",
                *(f"{value:.3f}" for value in latencies),
                str(load.errors),
                f"{cell.sample.steal_percent:.2f}",
                f"{cell.sample.other_cores:.2f}",
            ]
        )
    columns = ["server, face", "asked/s", "answered/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms"]
    return Table(
        f"{STEADY_S:.0f} s at a constant rate",
        [*columns, "errors", "steal %", "other work, cores"],
        rows,
    )


def _goals(cells: list[_Cell]) -> list[Goal]:
    """What was promised; void where the bare C server, in the same run, did not keep it either."""
    goals = []
    for asked, limit_ms in PROMISED.items():
        at = {cell.peer: cell for cell in cells if (cell.face, cell.asked) == ("json", asked)}
        if cell := at.get("lrai"):
            load, limit = cell.sample.load, at.get("epoll")
            text = f"JSON at {asked:,.0f}/s: no error, p99 below {limit_ms:.0f} ms"
            measured = f"p99 {load.p99_ms:.3f} ms, {load.errors} errors"
            holds: bool | None = cell.keeps(limit_ms)
            if not holds and limit and not limit.keeps(limit_ms):
                measured += f"; the bare C server: {limit.sample.load.p99_ms:.3f} ms"
                holds = None
            goals.append(Goal(text, measured, holds))
    return goals
