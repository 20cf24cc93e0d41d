"""What it costs to run: memory of all processes, time from exec to ready, CPU while idle."""

from __future__ import annotations

import time

from benchmarks import processes
from benchmarks.bench import Bench, Sample
from benchmarks.payloads import payload
from benchmarks.report import Goal, Section, Spread, Table
from benchmarks.versus import PEERS

STARTS = 5
IDLE_S = 20.0
HOW = f"""Each peer alone, serving the MLP. Ready: from exec to the first 200 of the model's
readiness ({STARTS} starts). Idle CPU: of all its processes, over {IDLE_S:.0f} s without a
connection, as a share of one core. Memory: proportional set size of all its processes, ready
and again after load over 64 connections."""


def run(bench: Bench) -> Section:
    """One row per peer."""
    rows, data = [], {}
    goals: list[Goal] = []
    for name in (name for name in PEERS if name in bench.peers):
        ready: list[float] = []
        for start in range(STARTS):
            with bench.running([name], ["mlp"]) as peers:
                if name not in peers:
                    break
                peer = peers[name]
                ready.append(peer.ready_seconds)
                if start < STARTS - 1:
                    continue
                fresh_mb = processes.memory_pss_bytes(peer.pids()) / 1e6
                idle = _idle_percent(peer.pids())
                loads: list[Sample] = [
                    bench.sample(peer, payload("mlp", face), 64) for face in peer.faces
                ]
                loaded_mb = processes.memory_pss_bytes(peer.pids()) / 1e6
                count = len(peer.pids())
                started = Spread.of(ready)
                rows.append(
                    [
                        name,
                        started.text(2),
                        f"{idle:.2f}",
                        f"{fresh_mb:.0f}",
                        f"{loaded_mb:.0f}",
                        str(count),
                    ]
                )
                data[name] = {
                    "ready_seconds": ready,
                    "idle_percent": idle,
                    "pss_mb": [fresh_mb, loaded_mb],
                    "loads": loads,
                }
                if name == "lrai":
                    goals = [
                        Goal("PSS at most 100 MB", f"{loaded_mb:.0f} MB", loaded_mb <= 100),
                        Goal(
                            "exec to ready at most 1.0 s",
                            f"{started.text(2)} s",
                            started.median <= 1.0,
                        ),
                        Goal("idle CPU below 1%", f"{idle:.2f}%", idle < 1.0),
                    ]
    columns = [
        "server",
        "ready s",
        "idle CPU %",
        "PSS MB, ready",
        "PSS MB, after load",
        "processes",
    ]
    return Section(
        "footprint",
        "Memory, start, idle",
        HOW,
        [Table("MLP", columns, rows)],
        goals,
        bench.notes,
        data,
    )


def _idle_percent(pids: list[int]) -> float:
    """CPU use while nobody asks, as a share of one core."""
    time.sleep(2.0)  # let the start settle
    before = processes.cpu_seconds(pids)
    time.sleep(IDLE_S)
    return 100 * (processes.cpu_seconds(pids) - before) / IDLE_S
