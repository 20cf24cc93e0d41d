"""MLP 30-64-32-2, closed loop: rates and latencies of every peer over every face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from benchmarks.bench import Bench, Sample
from benchmarks.payloads import FACES, Face, payload
from benchmarks.report import Goal, Section, Spread, Table
from benchmarks.versus import PEERS
from benchmarks.versus.base import Peer

CONNECTIONS = (1, 8, 64)
LOOP_ROWS = (1, 64)
LOOP_S = 2.0
HOW = """Closed loop: each connection sends its next request when it has its answer. All peers
run at the same time and are measured in turn, the order moving on by one in every round, each
cell after a second of warm-up. Numbers are medians over the rounds (lowest-highest). `epoll` is
the bare C server: the limit. `triton` is Triton's python backend with default settings,
`triton-tuned` the same with the number of HTTP threads that is best here."""

Key: TypeAlias = tuple[str, Face, int]
"""Peer, face, connections."""


def run(bench: Bench) -> Section:
    """Measures every cell in every round."""
    samples: dict[Key, list[Sample]] = {}
    loop = bench.loop("mlp")
    loop_rates: dict[int, list[float]] = {rows: [] for rows in LOOP_ROWS}
    with bench.running(list(PEERS), ["mlp"]) as peers:
        for turn in range(bench.rounds):
            for rows, rates in loop_rates.items():
                rates.append(loop.rows_per_second(rows, LOOP_S))
            for connections in CONNECTIONS:
                for face in FACES:
                    for peer in _rotated(peers, turn):
                        if face in peer.faces:
                            found = bench.sample(peer, payload("mlp", face), connections)
                            samples.setdefault((peer.name, face, connections), []).append(found)
    return Section(
        name="closed",
        title="MLP, closed loop",
        how=HOW,
        tables=[
            _rates(samples),
            _loop(loop_rates),
            *(_details(samples, face) for face in FACES),
        ],
        goals=_goals(samples),
        notes=bench.notes,
        data=[
            {"peer": peer, "face": face, "connections": connections, "samples": found}
            for (peer, face, connections), found in samples.items()
        ],
    )


def _rotated(peers: Mapping[str, Peer], turn: int) -> Sequence[Peer]:
    """The peers, starting with another one each time."""
    order = list(peers.values())
    start = turn % max(1, len(order))
    return order[start:] + order[:start]


def _rates(samples: Mapping[Key, list[Sample]]) -> Table:
    names = list(dict.fromkeys(name for name, _, _ in samples))
    columns = [f"{face} {connections}" for face in FACES for connections in CONNECTIONS]
    rows = []
    for name in names:
        row = [name]
        for face in FACES:
            for connections in CONNECTIONS:
                found = samples.get((name, face, connections))
                rates = [sample.load.rate for sample in found] if found else []
                row.append(f"{Spread.of(rates).median:,.0f}" if rates else "-")
        rows.append(row)
    return Table("Requests per second (face, connections)", ["server", *columns], rows)


def _loop(rates: Mapping[int, list[float]]) -> Table:
    rows = [[str(size), Spread.of(found).text()] for size, found in rates.items()]
    return Table("The same session in a loop without a server", ["rows per call", "rows/s"], rows)


def _details(samples: Mapping[Key, list[Sample]], face: Face) -> Table:
    rows = []
    for (name, used, connections), found in samples.items():
        if used != face:
            continue
        loads = [sample.load for sample in found]
        rows.append(
            [
                f"{name}, {connections}",
                Spread.of([load.rate for load in loads]).text(),
                Spread.of([load.p50_ms for load in loads]).text(3),
                Spread.of([load.p99_ms for load in loads]).text(3),
                Spread.of([sample.server_us_per_request for sample in found]).text(1),
                Spread.of([load.client_cpu_percent for load in loads]).text(),
                Spread.of([sample.steal_percent for sample in found]).text(2),
                Spread.of([sample.other_cores for sample in found]).text(2),
                str(sum(load.errors for load in loads)),
            ]
        )
    columns = ["server, connections", "requests/s", "p50 ms", "p99 ms", "server CPU us/request"]
    return Table(
        f"{face}: details",
        [*columns, "client CPU % of a core", "steal %", "other work, cores", "errors"],
        rows,
    )


def _ratio(
    samples: Mapping[Key, list[Sample]], ours: Key, theirs: Key, latency: bool = False
) -> Spread | None:
    """Our number divided by theirs, round by round."""
    if ours not in samples or theirs not in samples:
        return None
    pairs = zip(samples[ours], samples[theirs], strict=True)
    if latency:
        return Spread.of([one.load.p50_ms / other.load.p50_ms for one, other in pairs])
    return Spread.of([one.load.rate / other.load.rate for one, other in pairs])


def _goals(samples: Mapping[Key, list[Sample]]) -> list[Goal]:
    goals = []

    def compare(text: str, ours: Key, theirs: Key, limit: float, latency: bool = False) -> None:
        ratio = _ratio(samples, ours, theirs, latency)
        if ratio is not None:
            holds = ratio.median <= limit if latency else ratio.median >= limit
            goals.append(Goal(text, ratio.text(2), holds))

    for face, share in (("json", 0.55), ("binary", 0.65)):
        limit: Key = ("epoll", "json", 64)
        text = f"{face}, 64 connections: at least {share} of the C server's JSON"
        compare(text, ("lrai", face, 64), limit, share)  # type: ignore[arg-type]
    for other in ("triton", "triton-tuned"):
        for kind in FACES:
            text = f"{kind}, 64 connections: at least 4 times {other}"
            compare(text, ("lrai", kind, 64), (other, kind, 64), 4.0)
        text = f"binary, 1 connection: p50 at most 0.45 of {other}"
        compare(text, ("lrai", "binary", 1), (other, "binary", 1), 0.45, latency=True)
    errors = sum(
        sample.load.errors for key, found in samples.items() for sample in found if key[0] == "lrai"
    )
    goals.append(Goal("no errors", str(errors), errors == 0))
    return goals
