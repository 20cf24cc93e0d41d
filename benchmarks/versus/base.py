"""What every launcher offers: start, wait until ready, where to send requests, stop."""

from __future__ import annotations

import http.client
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from benchmarks import processes
from benchmarks.payloads import FACES, Face

MAX_BATCH_ROWS = 64
"""The largest batch that any peer may form."""

READY_TIMEOUT_S = 90.0


class PeerError(Exception):
    """A peer could not be started; the message says why and what to do."""


@dataclass(frozen=True)
class Served:
    """A model as a peer serves it."""

    name: str
    path: Path
    threads: int
    """Threads of its onnxruntime session, the same for every peer."""


@dataclass(frozen=True)
class Command:
    """How a peer is started."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ports:
    """Where a peer listens on the loopback."""

    http: int
    grpc: int
    metrics: int


class Peer(ABC):
    """A server in a process of its own, for the duration of a `with` block."""

    name: ClassVar[str]
    environment_name: ClassVar[str] = ""
    """Whose environment it runs in, if not its own."""
    interpreter: ClassVar[str] = "python3"
    """The Python that its environment is made from."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What `setup` installs into its environment; empty = it needs none."""
    faces: ClassVar[tuple[Face, ...]] = FACES
    ready_path: ClassVar[str] = "/v2/models/{model}/ready"

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.ports = Ports(0, 0, 0)
        self.ready_seconds = 0.0
        """From exec to every model ready."""
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self, models: Sequence[Served], folder: Path) -> Command:
        """How to start it; files that it needs may be written to the folder."""

    def version(self) -> str:
        """What runs here, for the report."""
        return ", ".join(self.packages)

    @property
    def environment_folder(self) -> Path:
        """Its virtual environment."""
        return self.cache / "environments" / (self.environment_name or self.name)

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        path = self.environment_folder / "bin" / "python"
        if not path.exists():
            raise PeerError(
                f"{self.name} has no environment at {self.environment_folder}; hint: python -m "
                f"benchmarks.versus.setup --cache {self.cache} {self.environment_folder.name}"
            )
        return path

    def start(self, models: Sequence[Served]) -> Self:
        """Starts it and waits until every model is ready."""
        folder = self.cache / "runs" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        self.ports = Ports(*processes.free_ports(3))
        command = self.command(models, folder)
        log = folder / "log.txt"
        started = time.monotonic()
        self._process = processes.start(command.arguments, command.environment, log)
        try:
            for model in models:
                self._wait_ready(self.ready_path.format(model=model.name), started, log)
        except BaseException:
            self.stop()
            raise
        self.ready_seconds = time.monotonic() - started
        return self

    def stop(self) -> None:
        """Ends it and every process below it."""
        process, self._process = self._process, None
        if process is not None:
            processes.stop(process)

    def address(self, face: Face) -> str:
        """`host:port` for that face."""
        return f"127.0.0.1:{self.ports.grpc if face == 'grpc' else self.ports.http}"

    def pids(self) -> list[int]:
        """All its processes, parent first."""
        return processes.descendants(self._process.pid) if self._process is not None else []

    def _wait_ready(self, path: str, started: float, log: Path) -> None:
        while not self._is_ready(path):
            elapsed = time.monotonic() - started
            if (
                self._process is None
                or self._process.poll() is not None
                or elapsed > READY_TIMEOUT_S
            ):
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
                raise PeerError(
                    f"{self.name} was not ready after {elapsed:.1f} s; its last words:\n{tail}"
                )
            time.sleep(0.002)

    def _is_ready(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.http, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
