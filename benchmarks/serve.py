"""Measures lrai and its peers: `python -m benchmarks.serve [SCENARIO ...]`.

Writes a Markdown and a JSON file per scenario. README.md beside this file says what is needed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.load import Client, LoadError, NativeClient, WrkClient
from benchmarks.models import add_cache_argument
from benchmarks.report import Section, environment, write
from benchmarks.scenarios import (
    closed,
    crowd,
    flood,
    footprint,
    heavy,
    many,
    noise,
    policies,
    steady,
)
from benchmarks.versus import PEERS
from benchmarks.versus.base import PeerError

SCENARIOS: dict[str, Callable[[Bench], Section]] = {
    "closed": closed.run,
    "steady": steady.run,
    "heavy": heavy.run,
    "noise": noise.run,
    "footprint": footprint.run,
    "many": many.run,
    "crowd": crowd.run,
    "policies": policies.run,
    "flood": flood.run,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_cache_argument(parser)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=3, help="how often every cell is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a cell")
    parser.add_argument("--peers", default=",".join(PEERS), help="who is measured, by name")
    parser.add_argument("--client", choices=("native", "wrk"), default="native")
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), metavar="SCENARIO")
    options = parser.parse_args()
    unknown = sorted({*options.scenarios} - {*SCENARIOS} | {*options.peers.split(",")} - {*PEERS})
    if unknown:
        parser.error(
            f"unknown: {', '.join(unknown)}; hint: scenarios are {', '.join(SCENARIOS)}, "
            f"peers are {', '.join(PEERS)}"
        )
    return options


def main() -> int:
    """Runs the scenarios; 1 if a goal was missed."""
    options = _options()
    # For every peer: onnxruntime's uploader would use the machine that is measured.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    cache: Path = options.cache.resolve()
    peers = options.peers.split(",")
    try:
        client: Client = NativeClient() if options.client == "native" else WrkClient(cache / "wrk")
        versions = {name: PEERS[name](cache).version() for name in peers}
    except (LoadError, PeerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    missed = 0
    for name in options.scenarios:
        bench = Bench(cache, client, options.rounds, options.seconds, peers)
        where = environment(
            client.version(), versions, {"rounds": options.rounds, "seconds": options.seconds}
        )
        started = time.monotonic()
        try:
            section = SCENARIOS[name](bench)
        except (LoadError, PeerError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            missed += 1
            continue
        write(options.results, section, where)
        missed += sum(goal.holds is False for goal in section.goals)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        for goal in section.goals:
            word = {True: "holds ", False: "MISSED", None: "void  "}[goal.holds]
            print(f"  {word}  {goal.text}: {goal.measured}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
