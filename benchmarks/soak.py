"""Looks for growth: a million requests through one model, a hundred load/unload cycles.

`python -m benchmarks.soak`. The proportional set size of every process is read at each
tenth of the requests; growth counts from the first tenth on, when buffers have found their size.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.load import Load, LoadError, NativeClient
from benchmarks.models import add_cache_argument, model_path
from benchmarks.payloads import payload
from benchmarks.versus.base import Served
from benchmarks.versus.lrai import LraiPeer

STEPS = 10
MAX_GROWTH_PERCENT = 2.0
CONNECTIONS = 64
CELL_S = 1.0
SETTLE_S = 1.5
MAX_SETTLING = 10
MAX_CELLS = 1000
"""Bounds the run of a server that hardly answers."""


@dataclass(frozen=True)
class Footprint:
    """What the processes hold at one moment."""

    requests: int
    pss_bytes: dict[int, int]
    """By process."""
    descriptors: int
    """Open in all of them."""


def footprint(peer: LraiPeer, requests: int) -> Footprint:
    """Reads all processes now."""
    pids = peer.pids()
    return Footprint(
        requests=requests,
        pss_bytes={pid: processes.memory_pss_bytes([pid]) for pid in pids},
        descriptors=sum(processes.open_descriptors(pid) for pid in pids),
    )


def flood(peer: LraiPeer, client: NativeClient, total: int) -> list[Footprint]:
    """Sends the requests, JSON and binary in turn, and reads the footprint after each step."""
    found: list[Footprint] = []
    sent = cell = 0
    while sent < total:
        request = payload("mlp", "json" if cell % 2 == 0 else "binary")
        result = client.send(Load(peer.address("json"), request, CONNECTIONS, CELL_S))
        cell += 1
        if result.errors or cell > MAX_CELLS:
            raise LoadError(f"{result.errors} errors after {sent} requests, {cell} cells")
        sent += result.requests
        if sent >= total * (len(found) + 1) / STEPS:
            found.append(footprint(peer, sent))
    return found


def cycle(peer: LraiPeer, model: str, count: int) -> list[Footprint]:
    """Unloads and loads the model over and over; each cycle ends with one answer."""
    found = [settled(peer, 0)]
    for done in range(1, count + 1):
        for action in ("unload", "load"):
            _post(peer, f"/v2/repository/models/{model}/{action}", b"{}")
        request = payload("mlp", "json", served_as=model)
        _post(peer, request.path, request.body)
        if done % max(1, count // STEPS) == 0:
            found.append(settled(peer, done))
    return found


def settled(peer: LraiPeer, done: int) -> Footprint:
    """The footprint once the server has put away what it no longer needs; it does so often."""
    last = footprint(peer, done)
    for _ in range(MAX_SETTLING):
        time.sleep(SETTLE_S)
        now = footprint(peer, done)
        if now.descriptors == last.descriptors:
            break
        last = now
    return now


def _post(peer: LraiPeer, path: str, body: bytes) -> None:
    connection = http.client.HTTPConnection(peer.address("json"), timeout=30)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise LoadError(f"{path} answered {answer.status}: {text[:300]!r}")


def report(title: str, found: list[Footprint]) -> bool:
    """Prints the readings; says whether each process that lived through them stayed as it was."""
    print(title)
    for reading in found:
        parts = ", ".join(f"{size / 1e6:.2f}" for size in reading.pss_bytes.values())
        print(f"  {reading.requests:>9,}: PSS MB {parts}; {reading.descriptors} descriptors")
    first, last = found[0], found[-1]
    first_sum, last_sum = sum(first.pss_bytes.values()), sum(last.pss_bytes.values())
    growths = {"all": 100 * (last_sum / first_sum - 1)}
    for pid, size in first.pss_bytes.items():
        if pid in last.pss_bytes:
            growths[str(pid)] = 100 * (last.pss_bytes[pid] / size - 1)
    worst = max(growths.values())
    more = last.descriptors - first.descriptors
    print(f"  largest growth {worst:.2f}%, {more:+d} descriptors")
    return worst < MAX_GROWTH_PERCENT and more <= 0


def main() -> int:
    """Both soaks; 1 if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_cache_argument(parser)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--cycles", type=int, default=100)
    options = parser.parse_args()
    cache: Path = options.cache.resolve()
    client = NativeClient()
    served = Served("mlp", model_path(cache, "mlp"), 1)
    with LraiPeer(cache, flags=("--model-control-mode=explicit",)) as peer:
        peer.start([served])
        steady = report("one model", flood(peer, client, options.requests))
        stable = report("load and unload", cycle(peer, "mlp", options.cycles))
    return 0 if steady and stable else 1


if __name__ == "__main__":
    sys.exit(main())
