"""An MLP at a constant rate, alone and among idle and dribbling connections."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.bench import LATENCY_COLUMNS, Bench, latency_cells
from benchmarks.load import Load, LoadError, LoadResult
from benchmarks.payloads import payload
from benchmarks.report import Goal, Section, Spread, Table
from benchmarks.versus.base import Peer

RATE = 2_000.0
CONNECTIONS = 16
IDLE, DRIBBLING = 5_000, 200
LIMIT_RATIO = 1.5
HOW = f"""One lrai serves the MLP at {RATE:.0f} JSON requests/s, scheduled, over {CONNECTIONS}
connections, alone and beside {IDLE:,} connections that asked once and stay, and {DRIBBLING}
that send a request byte by byte, two bytes a second each; every round measures both. All clients
share the cores with the server."""


def run(bench: Bench) -> Section:
    """Alone and in the crowd, alternating."""
    alone: list[LoadResult] = []
    beside: list[LoadResult] = []
    closed = 0
    with bench.running(["lrai"], ["mlp"]) as peers:
        peer = peers["lrai"]
        for _ in range(bench.rounds):
            alone.append(_measure(bench, peer))
            with _crowd(peer) as ended:
                beside.append(_measure(bench, peer))
            closed += ended[0]
    rows = [
        ["alone", *latency_cells(alone)],
        [f"{IDLE:,} idle, {DRIBBLING} dribbling", *latency_cells(beside)],
    ]
    quiet = Spread.of([load.p99_ms for load in alone])
    crowded = Spread.of([load.p99_ms for load in beside])
    errors = sum(load.errors for load in alone + beside)
    goals = [
        Goal(
            f"p99 in the crowd at most {LIMIT_RATIO} times that alone",
            f"{crowded.text(2)} ms against {quiet.text(2)} ms",
            crowded.median <= LIMIT_RATIO * quiet.median,
        ),
        Goal("no error, no idle connection closed", f"{errors}, {closed}", errors + closed == 0),
    ]
    columns = ["MLP", *LATENCY_COLUMNS]
    data = {"alone": alone, "beside": beside}
    return Section(
        "crowd",
        "Idle and dribbling connections",
        HOW,
        [Table("Latency", columns, rows)],
        goals,
        bench.notes,
        data,
    )


def _measure(bench: Bench, peer: Peer) -> LoadResult:
    load = Load(peer.address("json"), payload("mlp", "json"), CONNECTIONS, bench.seconds, RATE)
    return bench.measure(peer, load).load


@contextmanager
def _crowd(peer: Peer) -> Iterator[list[int]]:
    """Opens the crowd; the list holds how many idle connections were closed, in the end."""
    arguments = [peer.address("json"), str(IDLE), str(DRIBBLING)]
    crowd = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.crowd_client", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert crowd.stdout is not None
    closed: list[int] = []
    try:
        if crowd.stdout.readline().strip() != "ready":
            raise LoadError("the crowd could not be opened; hint: raise the limit of descriptors")
        yield closed
        told, _ = crowd.communicate(timeout=60)
        closed.append(int(told))
    finally:
        crowd.kill()
        crowd.wait()
