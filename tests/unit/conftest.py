"""A data plane and a supervisor that only remember what they were told, for tests of the wiring."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lrai.config import Settings, load_settings
from lrai.core.model import Signature, TensorInfo
from lrai.errors import ModelLoadError
from lrai.gateway.native import Gateway
from lrai.lifecycle import Lifecycle
from lrai.registry.repository import Repository
from lrai.scheduler.control import Notice, Scheduler

SIGNATURE = Signature(
    platform="onnxruntime_onnx",
    inputs=(TensorInfo("x", "FP32", (-1, 4)),),
    outputs=(TensorInfo("y", "FP32", (-1, 2)),),
    batchable=True,
)


class FakeNative:
    """Has the methods of `lrai._native.Gateway`; answers requests to nobody."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.calls: list[str] = []
        self.specs: dict[int, dict[str, Any]] = {}
        self.routes: dict[tuple[str, str], int] = {}
        self.index: list[dict[str, str]] = []
        self.knobs: dict[int, dict[str, Any]] = {}
        self.windows: list[Any] = []
        self.answers: dict[int, tuple[str, str]] = {}
        self.ready = False
        self.connections = 0
        self._waiting: list[str] = []

    def push(self, event: str, **fields: object) -> None:
        self._waiting.append(json.dumps({"event": event, **fields}))
        os.eventfd_write(self.event_fd, 1)

    def start(self) -> str:
        self.calls.append("start")
        return json.dumps({"http": "127.0.0.1:8000", "unix": None})

    def events(self) -> list[str]:
        if self._waiting:
            os.eventfd_read(self.event_fd)
        waiting, self._waiting = self._waiting, []
        return waiting

    def add_model(self, spec: str) -> int:
        key = len(self.specs) + 1
        self.specs[key] = json.loads(spec)
        return key

    def publish(self, key: int) -> None:
        spec = self.specs[key]
        former = self.routes.get((spec["name"], spec["version"]))
        self.routes[spec["name"], spec["version"]] = key
        self.calls.append(f"publish {key}")
        if former is not None:
            self.push("removed", key=former)

    def remove_model(self, key: int) -> None:
        self.routes = {route: routed for route, routed in self.routes.items() if routed != key}
        self.calls.append(f"remove {key}")
        self.push("removed", key=key)

    def attach(self, key: int, _link_fd: int) -> int:
        return key

    def settle(self, replica: int, fault: str) -> None:
        self.calls.append(f"settle {replica} {fault}")

    def set_index(self, rows: str) -> None:
        self.index = json.loads(rows)

    def set_ready(self, ready: bool) -> None:
        self.ready = ready
        self.calls.append(f"ready {ready}")

    def set_knobs(self, key: int, knobs: str) -> None:
        self.knobs[key] = json.loads(knobs)

    def observe(self) -> str:
        return json.dumps([asdict(window) for window in self.windows])

    def answer(self, ticket: int, code: str, message: str) -> None:
        self.answers[ticket] = (code, message)

    def drain(self) -> None:
        self.calls.append("drain")

    def open_connections(self) -> int:
        return self.connections

    def stop(self) -> None:
        self.calls.append("stop")

    def states(self) -> dict[str, str]:
        """Return what the index says, by `name/version`."""
        return {
            f"{row['name']}/{row['version']}": row["reason"] or row["state"] for row in self.index
        }


class FakeActor:
    """A loaded actor; the text of the model's file says how it behaves."""

    def __init__(self, path: str) -> None:
        self.signature = SIGNATURE
        self.behaviour = Path(path).read_text()
        if self.behaviour == "broken":
            raise ModelLoadError("the file is broken", hint="export it again")
        self.has_left = False

    async def leave(self) -> None:
        self.has_left = True


class FakeSupervisor:
    """Loads every file but a broken one; a silent model is ready when the test says so."""

    def __init__(self, native: FakeNative) -> None:
        self._native = native
        self.specs: list[Any] = []
        self.actors: list[FakeActor] = []
        self.released: set[int] = set()
        self.unloaded: list[int] = []
        self.lost_replicas: list[tuple[int, str]] = []
        self.ready_replicas: list[int] = []
        self.checks = 0

    async def start(self) -> None:
        self._native.calls.append("supervisor start")

    async def stop(self) -> None:
        self._native.calls.append("supervisor stop")

    async def load(self, spec: Any) -> FakeActor:
        self.specs.append(spec)
        await asyncio.sleep(0)
        self.actors.append(FakeActor(spec.model.path))
        return self.actors[-1]

    async def adopt(self, actor: FakeActor, key: int, _replicas: int, _rows: int) -> None:
        if actor.behaviour == "dying":
            raise ModelLoadError("its process died 3 times before it was ready")
        while actor.behaviour == "silent" and key not in self.released:
            await asyncio.sleep(0.001)

    def ready(self, replica: int) -> None:
        self.ready_replicas.append(replica)

    def lost(self, replica: int, detail: str) -> None:
        self.lost_replicas.append((replica, detail))

    async def unload(self, key: int) -> None:
        self.unloaded.append(key)

    def check(self, _windows: object) -> None:
        self.checks += 1


class World:
    """A repository on disk with fakes around the real wiring; events flow by themselves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.native = FakeNative()
        self.gateway = Gateway(self.native)  # type: ignore[arg-type]
        self.supervisor = FakeSupervisor(self.native)
        self.notices: list[Notice] = []

    def write(self, place: str, behaviour: str = "good") -> Path:
        """Write a file of the repository."""
        file = self.root / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(behaviour)
        return file

    def settings(self, path: Path | None = None, **flags: str) -> Settings:
        """Return settings for the repository, or for one file of it."""
        return load_settings({"path": str(path or self.root), **flags}, {})

    def lifecycle(self, **flags: str) -> Lifecycle:
        """Return a lifecycle whose events are taken while it waits."""
        settings = self.settings(**flags)
        repository = Repository(settings, parse_config=str)
        scheduler = Scheduler(self.gateway.set_knobs, self.notices.append)
        lifecycle = Lifecycle(settings, repository, self.gateway, self.supervisor, scheduler)  # type: ignore[arg-type]

        def take() -> None:
            events = self.gateway.events()
            tasks.extend(asyncio.ensure_future(lifecycle.removed(event.key)) for event in events)

        tasks: list[asyncio.Future[None]] = []
        asyncio.get_running_loop().add_reader(self.native.event_fd, take)
        return lifecycle

    async def until(self, is_true: Callable[[], object]) -> None:
        """Wait until something has happened; fail after a while."""
        async with asyncio.timeout(5):
            while not is_true():
                await asyncio.sleep(0.001)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """An empty repository with fakes around it."""
    (tmp_path / "repository").mkdir()
    made = World(tmp_path / "repository")
    yield made
    asyncio.get_running_loop().remove_reader(made.native.event_fd)
    os.close(made.native.event_fd)
