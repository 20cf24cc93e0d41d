"""Sends load and tells what came back: one interface, two clients.

`NativeClient` is lrai's own generator, the client of every published number. `WrkClient` (wrk
for HTTP, h2load for gRPC) is the cross-check by tools that we did not write; it knows closed
loops only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.payloads import Payload


class LoadError(Exception):
    """The load could not be sent or was not answered; the message says why."""


@dataclass(frozen=True)
class Load:
    """What to send: to whom, how much, how long."""

    address: str
    payload: Payload
    connections: int
    seconds: float
    rate: float = 0.0
    """Requests/s at scheduled times (open loop); 0 = each connection waits for its answer."""
    due_us: Sequence[int] = ()
    """Instead of a rate: when requests are due, since the start (native client only)."""


@dataclass(frozen=True)
class LoadResult:
    """What came back. In an open loop latencies count from the scheduled time; -1 = not known."""

    requests: int
    errors: int
    rate: float
    p50_ms: float = -1.0
    p90_ms: float = -1.0
    p99_ms: float = -1.0
    p999_ms: float = -1.0
    max_ms: float = -1.0
    mean_ms: float = -1.0
    client_cpu_percent: float = -1.0
    """Of one core; near 100 the client, not the server, may be the limit."""
    errors_by_kind: Mapping[str, int] = field(default_factory=dict)


class Client(ABC):
    """A load generator."""

    name: str

    @abstractmethod
    def send(self, load: Load) -> LoadResult:
        """Sends the load and waits for the end."""

    @abstractmethod
    def version(self) -> str:
        """What it is, for the report."""


class NativeClient(Client):
    """The generator behind `lrai bench`: one thread for all connections."""

    name = "lrai"

    def __init__(self) -> None:
        try:
            from lrai import _native
        except ImportError as error:
            raise LoadError(
                f"lrai's load generator is not installed ({error}); hint: make setup"
            ) from error
        self._native = _native

    def version(self) -> str:
        """The generator's version is that of the wheel."""
        return f"lrai's load generator {self._native.__version__} (native, one thread)"

    def send(self, load: Load) -> LoadResult:
        """Sends either kind of loop."""
        grpc = load.payload.face == "grpc"
        settings = {
            "address": load.address,
            "protocol": "grpc" if grpc else "http",
            "path": load.payload.path if grpc else "",
            "connections": load.connections,
            "rate": load.rate or None,
            "due_us": list(load.due_us),
            "duration_s": load.seconds,
            "timeout_s": 30.0,
        }
        request = load.payload.body if grpc else load.payload.http_request(load.address)
        report = json.loads(self._native.run_load(json.dumps(settings), [request]))
        latency = report["latency"]
        keys = ("p50", "p90", "p99", "p999", "max", "mean")
        times = {f"{key}_ms": latency[f"{key}_us"] / 1000 for key in keys}
        return LoadResult(
            report["answered"],
            report["errors"],
            report["rate"],
            **times,
            client_cpu_percent=report["environment"]["client_cpu_percent"],
            errors_by_kind={kind: row["count"] for kind, row in report["errors_by_kind"].items()},
        )


_WRK_SCRIPT = """
local file = io.open(os.getenv("BENCH_BODY"), "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
for line in os.getenv("BENCH_HEADERS"):gmatch("[^\\n]+") do
  local name, value = line:match("^(.-): (.*)$")
  wrk.headers[name] = value
end
function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  local counts = '\\nRESULT {"requests":%d,"errors":%d,"micros":%d,'
  io.write(string.format(counts, summary.requests, failed, summary.duration))
  for _, percent in ipairs({50, 90, 99, 99.9}) do
    local name = tostring(percent):gsub("%.", "")
    io.write(string.format('"p%s":%f,', name, latency:percentile(percent)))
  end
  io.write(string.format('"max":%f,"mean":%f}\\n', latency.max, latency.mean))
end
"""


class WrkClient(Client):
    """wrk with one thread for HTTP, h2load with one stream per connection for gRPC."""

    name = "wrk/h2load"

    def __init__(self, folder: Path) -> None:
        missing = [tool for tool in ("wrk", "h2load") if shutil.which(tool) is None]
        if missing:
            raise LoadError(
                f"{' and '.join(missing)} not found; hint: apt-get install wrk nghttp2-client"
            )
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._script = folder / "wrk.lua"
        self._script.write_text(_WRK_SCRIPT)

    def version(self) -> str:
        """Both versions."""
        wrk = subprocess.run(
            ["wrk", "-v"], capture_output=True, text=True, check=False
        ).stdout.split()
        h2load = subprocess.run(
            ["h2load", "--version"], capture_output=True, text=True, check=False
        )
        return f"wrk {' '.join(wrk[1:3])}, {h2load.stdout.strip()}"

    def send(self, load: Load) -> LoadResult:
        """Sends a closed loop."""
        if load.rate:
            raise LoadError("wrk and h2load know no schedule; hint: use the native client")
        body = load.payload.write(self._folder)
        if load.payload.face == "grpc":
            return self._h2load(load, body)
        return self._wrk(load, body)

    def _wrk(self, load: Load, body: Path) -> LoadResult:
        headers = "\n".join(f"{name}: {value}" for name, value in load.payload.headers.items())
        arguments = [
            "wrk",
            "-t1",
            f"-c{load.connections}",
            f"-d{load.seconds:.0f}s",
            "--timeout=30s",
        ]
        output = _run(
            [*arguments, f"-s{self._script}", f"http://{load.address}{load.payload.path}"],
            {"BENCH_BODY": str(body), "BENCH_HEADERS": headers},
        )
        found = json.loads(output.rpartition("RESULT ")[2])
        times = {
            f"{key}_ms": found[key] / 1000 for key in ("p50", "p90", "p99", "p999", "max", "mean")
        }
        rate = found["requests"] * 1e6 / found["micros"]
        return LoadResult(found["requests"], found["errors"], rate, **times)

    def _h2load(self, load: Load, body: Path) -> LoadResult:
        flags = ["-t1", "-m1", f"-c{load.connections}", f"-D{load.seconds:.0f}", f"-d{body}"]
        headers = ["-Hcontent-type: application/grpc", "-Hte: trailers"]
        output = _run(["h2load", *flags, *headers, f"http://{load.address}{load.payload.path}"], {})
        rate = re.search(r"finished in .*?, ([\d.]+) req/s", output)
        counts = re.search(r"(\d+) succeeded, (\d+) failed", output)
        latency = re.search(r"time for request: +\S+ +(\S+) +(\S+)", output)
        if rate is None or counts is None or latency is None:
            raise LoadError(f"h2load said nothing that can be read: {output[-500:]}")
        longest, mean = (_milliseconds(text) for text in latency.groups())
        done, failed = (int(text) for text in counts.groups())
        return LoadResult(done, failed, float(rate[1]), max_ms=longest, mean_ms=mean)


def _milliseconds(text: str) -> float:
    """A duration as h2load prints it."""
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise LoadError(f"h2load printed the duration {text!r}")


def _run(arguments: list[str], environment: dict[str, str]) -> str:
    answer = subprocess.run(
        arguments, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise LoadError(f"{arguments[0]} failed with {answer.returncode}: {answer.stderr[-500:]}")
    return answer.stdout
