"""Starts `lrai serve` on free ports, tells where it listens, and stops it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrai.errors import UnavailableError

_START_S = 60.0
_STOP_S = 40.0


class ServerProcess:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        """Watch a server that writes its log, as JSON lines, to `log`."""
        self.process = process
        self.log = log
        self.addresses: dict[str, str] = {}

    @property
    def http(self) -> str:
        """`host:port` of HTTP."""
        return self.addresses["http"]

    @property
    def grpc(self) -> str:
        """`host:port` of gRPC."""
        return self.addresses["grpc"]

    @property
    def metrics(self) -> str:
        """`host:port` of the metrics page."""
        return self.addresses["metrics"]

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """Return the log's lines so far, all or those of one event."""
        lines = self.log.read_text(errors="replace").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [row for row in rows if event in ("", row.get("event"))]

    def wait_for(self, event: str, count: int = 1, limit_s: float = 20.0) -> list[dict[str, Any]]:
        """Wait until the log has `count` lines of an event; return them."""
        end = time.monotonic() + limit_s
        while len(found := self.events(event)) < count:
            if time.monotonic() > end or self.process.poll() is not None:
                text = self.log.read_text(errors="replace")[-4000:]
                raise UnavailableError(f"the server has not logged '{event}':\n{text}")
            time.sleep(0.005)
        return found

    def processes(self) -> dict[int, str]:
        """Return the titles of the server's own processes, itself included, by pid."""
        found = {self.process.pid: _title(self.process.pid)}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _parent(int(entry.name)) in found:
                found[int(entry.name)] = _title(int(entry.name))
        return found

    def actors(self, model: str = "") -> list[int]:
        """Return the pids of the actors that serve a model, or all models; spares do not."""
        prefix = f"lrai: {model}/" if model else "lrai: "
        rows = sorted(self.processes().items())
        return [pid for pid, title in rows if title.startswith(prefix) and " #" in title[-4:]]

    def template(self) -> int:
        """Return the pid of a template process."""
        return next(pid for pid, title in self.processes().items() if "template" in title)

    def pss_bytes(self) -> int:
        """Return the memory of all processes, shared pages divided among those that share them."""
        return sum(_pss_bytes(pid) for pid in self.processes())

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """End the server and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(_STOP_S)


@contextmanager
def start_server(
    path: str | os.PathLike[str], *flags: str, settle: bool = True
) -> Iterator[ServerProcess]:
    """Serve `path` on free ports; `flags` are those of `lrai serve`.

    With `settle` it waits until every model is served or has failed. Raises `UnavailableError`,
    with the log, if the server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="lrai-test-") as folder:
        log = Path(folder, "log")
        ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
        command = [sys.executable, "-m", "lrai", "serve", os.fspath(path), "--log-format=json"]
        with log.open("wb") as lines:
            process = subprocess.Popen([*command, *ports, *flags], stderr=lines)
        server = ServerProcess(process, log)
        try:
            line = server.wait_for("listening", limit_s=_START_S)[0]
            server.addresses = {
                face: line[face] for face in ("http", "grpc", "metrics", "unix") if line.get(face)
            }
            if settle:
                server.wait_for("settled", limit_s=_START_S)
            yield server
        finally:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def _pss_bytes(pid: int) -> int:
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:"))
