"""How many durable requests a second are accepted and answered, and how a killed server recovers.

`python -m benchmarks.journal [--rounds N] [--seconds S] [--pending N]`, with Debian's redis-server.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, Goal, Section, Spread, Table, environment, write
from lrai import _native
from lrai.testing import ServerProcess, start_server
from lrai.testing.models import mlp

RESULTS = ROOT / "benchmarks" / "results"
CONNECTIONS = (1, 8, 64)
FLUSHES = 200
DRAIN_S = 300.0
GATED = """
import os, time
INPUTS = [("x", "FP32", [-1, 30])]
OUTPUTS = [("y", "FP32", [-1, 30])]

def predict(inputs):
    while not os.path.exists({gate!r}):
        time.sleep(0.005)
    return {{"y": inputs["x"]}}
"""


def request(model: str, is_durable: bool) -> bytes:
    """One row of 30 numbers as JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}
    body = json.dumps({"inputs": [tensor]}).encode()
    prefer = "Prefer: respond-async\r\n" if is_durable else ""
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: lrai\r\n{prefer}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def load(server: ServerProcess, connections: int, seconds: float, is_durable: bool) -> Any:
    """A closed loop on the perceptron; the load generator's report."""
    settings = {
        "address": server.http,
        "protocol": "http",
        "connections": connections,
        "duration_s": seconds,
        "warmup_s": 0.5,
    }
    report = json.loads(_native.run_load(json.dumps(settings), [request("mlp", is_durable)]))
    if report["errors"]:
        raise SystemExit(f"error: {report['errors_by_kind']}")
    return report


def numbers(server: ServerProcess) -> dict[str, int]:
    """The journal's metrics."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    rows = (line.split() for line in lines if line.startswith("lrai_journal"))
    return {name.removeprefix("lrai_journal_"): int(value) for name, value in rows}


def drain(server: ServerProcess) -> float:
    """Wait until nothing is pending; return the seconds that it took."""
    began = time.monotonic()
    while numbers(server)["pending"]:
        if time.monotonic() - began > DRAIN_S:
            raise SystemExit("error: the journal does not become empty")
        time.sleep(0.01)
    return time.monotonic() - began


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis that flushes its log before it answers; yields its address."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    command = ["redis-server", "--port", str(port), "--dir", str(folder), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 20
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if time.monotonic() > end:
                    raise SystemExit("error: redis-server does not listen")
                time.sleep(0.01)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()


def flush_us(folder: Path) -> float:
    """The median time in which 4 KiB reach the disk."""
    times = []
    with (folder / "flush").open("wb", buffering=0) as file:
        for _ in range(FLUSHES):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def rates(models: Path, place: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Closed loops at each number of connections."""
    found = []
    with start_server(models, *place) as server:
        for connections in CONNECTIONS:
            for _ in range(rounds):
                before = numbers(server) if place else {}
                report = load(server, connections, seconds, bool(place))
                row = {"connections": connections, "rate": report["rate"]}
                row |= {
                    "p50_us": report["latency"]["p50_us"],
                    "p99_us": report["latency"]["p99_us"],
                }
                if place:
                    row["drain_s"] = drain(server)
                    after = numbers(server)
                    grown = {name: after[name] - before[name] for name in after}
                    row["commit_us"] = grown["commit_microseconds_total"] / grown["commits_total"]
                    row["writes_per_commit"] = (
                        grown["accepted_total"] + grown["answered_total"]
                    ) / grown["commits_total"]
                print(place, row, flush=True)
                found.append(row)
    return found


def recovery(folder: Path, place: list[str], pending: int) -> dict[str, Any]:
    """Kill the server with so many requests pending; time until its successor has answered all."""
    gate, model = folder / "open", folder / "gated" / "gated" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text(GATED.format(gate=str(gate)))
    ids = []
    with start_server(folder / "gated", *place) as server:
        with closing(http.client.HTTPConnection(server.http)) as connection:
            text = request("gated", is_durable=True).partition(b"\r\n\r\n")[2]
            headers = {"Prefer": "respond-async"}
            for _ in range(pending):
                connection.request("POST", "/v2/models/gated/infer", text, headers)
                ids.append(json.loads(connection.getresponse().read())["id"])
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    gate.touch()
    began = time.monotonic()
    with start_server(folder / "gated", *place) as server:
        ready_s = time.monotonic() - began
        drain(server)
        answered_s = time.monotonic() - began
        lost = sum(not is_answered(server, identifier) for identifier in ids)
    row = {"pending": pending, "ready_s": ready_s, "answered_s": answered_s, "lost": lost}
    print(place, row, flush=True)
    return row


def is_answered(server: ServerProcess, identifier: str) -> bool:
    """Whether the answer is there and right."""
    with urllib.request.urlopen(f"http://{server.http}/v2/requests/{identifier}") as answer:
        return (
            answer.status == 200 and json.loads(answer.read())["outputs"][0]["data"] == [0.5] * 30
        )


def table(found: dict[str, list[dict[str, Any]]]) -> Table:
    """One row for each place and number of connections."""
    rows = []
    for place, samples in found.items():
        for connections in CONNECTIONS:
            cells = [row for row in samples if row["connections"] == connections]

            def spread(name: str, digits: int = 0, cells: Any = cells) -> str:
                values = [row[name] for row in cells if name in row]
                return Spread.of(values).text(digits) if values else ""

            names = (("rate", 0), ("p50_us", 0), ("p99_us", 0), ("commit_us", 0))
            rows.append([f"{place}, {connections}", *(spread(*name) for name in names)])
            rows[-1] += [spread("writes_per_commit", 1), spread("drain_s", 2)]
    columns = ["journal, connections", "accepted/s", "p50 µs", "p99 µs", "µs per commit"]
    columns += ["writes per commit", "s until all were answered"]
    return Table("Acknowledged requests", columns, rows)


def main() -> None:
    """Run and write `journal.md` and `journal.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pending", type=int, default=10_000)
    given = parser.parse_args()
    if shutil.which("redis-server") is None:
        raise SystemExit("error: redis-server is not installed. hint: make setup-system")
    banner = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    )
    versions = {"redis": banner.stdout.split("v=")[1].split()[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {**vars(given), "flush_4k_us": round(flush_us(folder), 1)}
        where = environment("lrai's load generator", versions, settings)
        command = (
            f"python -m benchmarks.journal --rounds {given.rounds} --seconds {given.seconds:g}"
        )
        where = dataclasses.replace(where, command=command)
        print(where, flush=True)
        mlp(folder / "models" / "mlp.onnx")
        with redis(folder) as address:
            places = {
                "none (answered at once)": [],
                "sqlite": [f"--state={folder / 'state'}", "--journal-max-bytes=16GiB"],
                "redis": [f"--journal={address}", "--journal-max-bytes=16GiB"],
            }
            found = {
                place: rates(folder / "models", flags, given.rounds, given.seconds)
                for place, flags in places.items()
            }
            recovered = {
                place: recovery(folder / f"recovery-{place}", flags, given.pending)
                for place, flags in (
                    ("sqlite", [f"--state={folder / 'state-2'}"]),
                    ("redis", [f"--journal={address}/1"]),
                )
            }
    rows = [
        [place, f"{row['pending']:,}", f"{row['ready_s']:.1f}", f"{row['answered_s']:.1f}"]
        for place, row in recovered.items()
    ]
    columns = ["journal", "pending when killed", "s until ready", "s until all were answered"]
    section = Section(
        name="journal",
        title="Durable requests",
        how=(
            "One row of 30 numbers as JSON to a small perceptron, in a closed loop; a request "
            "counts when its 202 has come, so when it is on the disk. The answers are computed and "
            "committed at the same time, on the same cores. Redis runs with appendonly yes and "
            f"appendfsync always. Flushing 4 KiB takes {settings['flush_4k_us']} µs here."
        ),
        tables=[table(found), Table("kill -9 of the server", columns, rows)],
        goals=[
            Goal(
                f"{place}: every one of {row['pending']:,} pending requests is answered",
                f"{row['lost']} lost",
                row["lost"] == 0,
            )
            for place, row in recovered.items()
        ],
        data={"rates": found, "recovery": recovered},
    )
    write(RESULTS, section, where)


if __name__ == "__main__":
    main()
