"""The MLP 512-1024-1024-16 under drift and in bursts: what batching policies cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.bench import Bench, batch_counts, check_answers
from benchmarks.load import Load, LoadResult
from benchmarks.payloads import payload
from benchmarks.report import Goal, Section, Spread, Table
from benchmarks.scheduler import Paired
from benchmarks.versus.lrai import LraiPeer
from lrai.scheduler.lab import traces

MODEL, CONNECTIONS, GOAL_MS = "mlp_large", 128, 10
HIGHEST_RATE = 9_000.0
"""What a trace calls its capacity: two cores carry it beside the client."""
POLICIES = {
    "greedy": ("--policy=greedy",),
    "static": ("--policy=static",),
    "default": (),
}
TRACES = ("drift", "mmpp")
HOW = f"""One lrai per policy, all at once and idle but for the one that is measured; latency
goal {GOAL_MS} ms (static: 32 rows or half of the goal). Requests of one row over the binary
extension, {CONNECTIONS} connections, at the scheduled times of a trace: drift has a new rate
every two seconds, log-uniform in 3% to 90% of {HIGHEST_RATE:,.0f}/s; mmpp is 5% with bursts of
80%. In each round every policy gets the same trace, a new one by seed. Processor seconds are the
actor's, over the whole trace, from the first request on. Differences are paired by round, with
Student's 95% interval."""


class Policied(LraiPeer):
    """lrai with one policy."""

    def __init__(self, cache: Path, policy: str) -> None:
        super().__init__(cache, ("--threads=1", f"--latency-goal={GOAL_MS}ms", *POLICIES[policy]))
        self.name = policy  # type: ignore[misc]  # and the folder of its log

    def actor_pids(self) -> list[int]:
        """The processes that compute."""
        return [pid for pid in self.pids() if _title(pid).startswith(f"lrai: {MODEL}/")]


@dataclass(frozen=True)
class Cell:
    """One policy on one trace."""

    trace: str
    seed: int
    policy: str
    load: LoadResult
    actor_s: float
    """Processor seconds."""
    server_s: float
    """Of all its processes."""
    steal_percent: float
    rows_per_batch: float

    @property
    def refused(self) -> float:
        """Share of the requests."""
        return self.load.errors / max(1, self.load.errors + self.load.requests)

    @property
    def actor_us(self) -> float:
        """Processor time per answer: what is refused saves nothing here."""
        return self.actor_s * 1e6 / max(1, self.load.requests)


def run(bench: Bench) -> Section:
    """Every round is a seed."""
    cells: list[Cell] = []
    served = bench.served(MODEL)
    expected = bench.loop(MODEL).answer()
    with ExitStack() as stack:
        peers = [
            stack.enter_context(Policied(bench.cache, name).start([served])) for name in POLICIES
        ]
        for peer in peers:
            check_answers(peer, MODEL, expected)
        for seed in range(bench.rounds):
            for name in TRACES:
                due_us = traces.make(name, HIGHEST_RATE, bench.seconds, seed).times_ns // 1000
                turn = peers[seed % len(peers) :] + peers[: seed % len(peers)]
                cells += [_measure(bench, peer, (name, seed), due_us.tolist()) for peer in turn]
    return Section(
        "policies",
        "Batching policies on the running server",
        HOW,
        [_table(cells, name) for name in TRACES],
        [_goal(cells, name) for name in TRACES],
        bench.notes,
        cells,
    )


def _measure(bench: Bench, peer: Policied, what: tuple[str, int], due_us: Sequence[int]) -> Cell:
    request = payload(MODEL, "binary")
    load = Load(peer.address("binary"), request, CONNECTIONS, bench.seconds, due_us=due_us)
    actors, everyone = peer.actor_pids(), peer.pids()
    rows, batches = batch_counts(peer, MODEL)
    machine, actor_s = processes.cpu_times(), processes.cpu_seconds(actors)
    server_s = processes.cpu_seconds(everyone)
    result = bench.client.send(load)
    actor_s = processes.cpu_seconds(actors) - actor_s
    server_s = processes.cpu_seconds(everyone) - server_s
    steal = processes.cpu_times().since(machine).stolen_percent
    more_rows, more_batches = batch_counts(peer, MODEL)
    size = (more_rows - rows) / max(1, more_batches - batches)
    return Cell(*what, peer.name, result, actor_s, server_s, steal, size)


def _table(cells: Sequence[Cell], trace: str) -> Table:
    rows = []
    for policy in POLICIES:
        own = [cell for cell in cells if (cell.trace, cell.policy) == (trace, policy)]
        columns = (
            ([cell.load.p50_ms for cell in own], 2),
            ([cell.load.p99_ms for cell in own], 2),
            ([100 * cell.refused for cell in own], 2),
            ([cell.rows_per_batch for cell in own], 1),
            ([cell.actor_s for cell in own], 2),
            ([cell.actor_us for cell in own], 1),
            ([cell.server_s for cell in own], 2),
            ([cell.steal_percent for cell in own], 1),
        )
        rows.append([policy, *(Spread.of(values).text(digits) for values, digits in columns)])
    columns = [
        "policy",
        "p50 ms",
        "p99 ms",
        "refused %",
        "rows per batch",
        "actor s",
        "us per answer",
        "server s",
        "stolen %",
    ]
    return Table(trace, columns, rows)


def _goal(cells: Sequence[Cell], trace: str) -> Goal:
    def times(policy: str) -> list[float]:
        own = [cell for cell in cells if (cell.trace, cell.policy) == (trace, policy)]
        return [cell.actor_us for cell in sorted(own, key=lambda cell: cell.seed)]

    pairs = zip(times("default"), times("greedy"), strict=True)
    found = Paired.of([own / greedy - 1 for own, greedy in pairs])
    text = f"{trace}: the actor's processor time per answer at least 25% below greedy's, clear of 0"
    return Goal(text, found.text(), found.mean <= -0.25 and found.high < 0)


def _title(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except (FileNotFoundError, ProcessLookupError):
        return ""
