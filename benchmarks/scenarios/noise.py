"""An MLP at 500 requests/s, alone and beside a flood of 1.6 MB JSON bodies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from benchmarks.bench import LATENCY_COLUMNS, WARM_UP_S, Bench, latency_cells
from benchmarks.load import Load, LoadResult
from benchmarks.payloads import payload
from benchmarks.report import Goal, Section, Spread, Table
from benchmarks.versus.base import Peer

RATE = 500.0
MLP_CONNECTIONS = 8
FLOOD_CONNECTIONS = 8
LIMIT_MS = 5.0
HOW = f"""One lrai serves the MLP and ResNet-50. The MLP gets {RATE:.0f} JSON requests/s at
scheduled times over {MLP_CONNECTIONS} connections; the flood is a closed loop of
{FLOOD_CONNECTIONS} connections with JSON pictures, which starts before the MLP is measured and
ends after it. Both clients share the cores with the server."""


def run(bench: Bench) -> Section:
    """With fp32 and with int8 as the neighbour."""
    alone: list[LoadResult] = []
    beside: dict[str, list[tuple[LoadResult, LoadResult]]] = {}
    for neighbour in ("resnet50", "resnet50_int8"):
        with bench.running(["lrai"], ["mlp", neighbour]) as peers:
            for peer in peers.values():
                for _ in range(bench.rounds):
                    alone.append(bench.measure(peer, _quiet(bench, peer)).load)
                    beside.setdefault(neighbour, []).append(_beside(bench, peer, neighbour))
    rows = [["alone", *latency_cells(alone), "-"]] if alone else []
    goals = []
    for neighbour, found in beside.items():
        quiet = [mlp for mlp, _ in found]
        flood = Spread.of([load.rate for _, load in found]).text(1)
        rows.append([f"beside {neighbour}", *latency_cells(quiet), flood])
        p99 = Spread.of([load.p99_ms for load in quiet])
        text = f"MLP at {RATE:.0f}/s beside {neighbour}: p99 at most {LIMIT_MS:.0f} ms"
        goals.append(Goal(text, f"{p99.text(2)} ms", p99.median <= LIMIT_MS))
    columns = ["MLP", *LATENCY_COLUMNS, "neighbour requests/s"]
    data = {"alone": alone, "beside": beside}
    return Section(
        "noise",
        "A light model beside a flood",
        HOW,
        [Table("Latency", columns, rows)],
        goals,
        bench.notes,
        data,
    )


def _quiet(bench: Bench, peer: Peer) -> Load:
    return Load(peer.address("json"), payload("mlp", "json"), MLP_CONNECTIONS, bench.seconds, RATE)


def _beside(bench: Bench, peer: Peer, neighbour: str) -> tuple[LoadResult, LoadResult]:
    """The MLP's latencies under the flood, and the flood's."""
    seconds = bench.seconds + 3 * WARM_UP_S
    request = payload(neighbour, "json")
    flood = Load(peer.address("json"), request, FLOOD_CONNECTIONS, seconds)
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(bench.client.send, flood)
        quiet = bench.measure(peer, _quiet(bench, peer)).load
        return quiet, flooding.result()
