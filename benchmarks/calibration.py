"""Replicas and threads that calibration chose, against all that it could have chosen.

`python -m benchmarks.calibration [--rounds N] [--cache DIR] [MODEL...]` writes
`results/calibration-MODEL.md` for models of `benchmarks.models`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import lrai
from benchmarks.load import Load, NativeClient
from benchmarks.models import add_cache_argument, model_path
from benchmarks.payloads import payload
from benchmarks.report import ROOT, Goal, Section, Spread, Table, environment, write
from lrai.core.model import Allocation
from lrai.machine import available_cpus
from lrai.scheduler.allocation import allocations
from lrai.testing import ServerProcess, start_server

RESULTS = ROOT / "benchmarks" / "results"
CHOSEN = "calibrated"
CROWD = 8
SECONDS = 4.0
PATIENCE_S = 600.0
HOW = f"""One server has the model under several names: once as it comes, and once for every number
of replicas and threads that calibration may choose, set in `lrai.toml`. When it has calibrated the
first, each is sent single rows over the binary face, from one connection and then from {CROWD},
{SECONDS:g} s each, closed loop; all in turn in every round. Numbers are medians over the rounds
(lowest-highest)."""


@dataclass(frozen=True)
class Sample:
    """One round of one variant."""

    alone_ms: float
    """Median latency at one connection."""
    rate: float
    """Rows per second of a crowd."""

    @property
    def cost(self) -> float:
        """What calibration makes small without a goal: see `lrai.scheduler.allocation`."""
        return self.alone_ms / self.rate


Samples = Mapping[str, Sequence[Sample]]


def main() -> None:
    """Measure the models one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["transformer", "resnet50"])
    parser.add_argument("--rounds", type=int, default=3)
    add_cache_argument(parser)
    given = parser.parse_args()
    client = NativeClient()
    for model in given.models:
        where = environment(client.version(), {"lrai": lrai.__version__}, {"rounds": given.rounds})
        command = f"python -m benchmarks.calibration --rounds {given.rounds} {model}"
        words, samples = measure(client, model, model_path(given.cache, model), given.rounds)
        write(RESULTS, _section(model, words, samples), dataclasses.replace(where, command=command))
        print((RESULTS / f"calibration-{model}.md").read_text())


def measure(client: NativeClient, model: str, path: Path, rounds: int) -> tuple[str, Samples]:
    """Return what calibration says, and rounds of what it chose and of everything else."""
    alternatives = allocations(available_cpus(), Allocation(0, 0), available_cpus())
    texts = {CHOSEN: ""} | {
        str(one).replace(" ", ""): f"replicas = {one.replicas}\nthreads = {one.threads}"
        for one in alternatives
    }
    samples: dict[str, list[Sample]] = {name: [] for name in texts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for variant, text in texts.items():
            (folder / variant / "1").mkdir(parents=True)
            (folder / variant / "1" / "model.onnx").symlink_to(path.resolve())
            (folder / variant / "lrai.toml").write_text(f"[model]\n{text}\n")
        with start_server(folder) as server:
            server.wait_for("calibrated", limit_s=PATIENCE_S)
            for turn in range(rounds):
                order = [*texts][turn % len(texts) :] + [*texts][: turn % len(texts)]
                for variant in order:
                    samples[variant].append(_send(client, server, model, variant))
                    print(f"{variant:12} {samples[variant][-1]}", flush=True)
            words = _calibration(server)
    return words, samples


def _send(client: NativeClient, server: ServerProcess, model: str, variant: str) -> Sample:
    sent = payload(model, "binary", served_as=variant)
    alone = client.send(Load(server.http, sent, 1, SECONDS))
    crowd = client.send(Load(server.http, sent, CROWD, SECONDS))
    if alone.errors or crowd.errors:
        raise SystemExit(f"error: {variant} answered with errors: {crowd.errors_by_kind}")
    return Sample(alone.p50_ms, crowd.rate)


def _calibration(server: ServerProcess) -> str:
    connection = HTTPConnection(server.http)
    connection.request("GET", f"/v2/models/{CHOSEN}/scheduler")
    words: str = json.loads(connection.getresponse().read())["calibration"]
    connection.close()
    return words


def _section(model: str, words: str, samples: Samples) -> Section:
    rows = [
        (
            name,
            Spread.of([one.alone_ms for one in found]).text(2),
            Spread.of([one.rate for one in found]).text(1),
            Spread.of([1e3 * one.cost for one in found]).text(3),
        )
        for name, found in samples.items()
    ]
    columns = ("replicas x threads", "p50 alone, ms", f"rows/s of {CROWD}", "us alone / (rows/s)")
    costs = {name: Spread.of([one.cost for one in found]).median for name, found in samples.items()}
    best = min(cost for name, cost in costs.items() if name != CHOSEN)
    ratio = costs[CHOSEN] / best
    goal = Goal("at most 15% above the best alternative", f"{ratio - 1:+.0%}", ratio <= 1.15)
    return Section(
        name=f"calibration-{model}",
        title=f"Calibration of the {model}",
        how=HOW,
        tables=[Table(f"{model} on {available_cpus()} processors", columns, rows)],
        goals=[goal],
        notes=[f"Calibration: {words}."],
        data={name: [dataclasses.asdict(one) for one in found] for name, found in samples.items()},
    )


if __name__ == "__main__":
    main()
