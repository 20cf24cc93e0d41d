"""A repository with a model that misbehaves on demand, a perceptron beside it, and clients."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from lrai.testing import ServerProcess, start_server
from lrai.testing.models import mlp

# The first value of a row says what happens to the actor that runs it.
FICKLE = """
import ctypes, os, time
INPUTS = [("x", "FP32", [-1, 2])]
OUTPUTS = [("y", "FP32", [-1, 2])]

def load(context):
    if os.path.exists(os.path.join(context.path, "die")):
        os.abort()

def predict(inputs):
    x = inputs["x"]
    if (x[:, 0] == 666).any():
        ctypes.string_at(0)
    if (x[:, 0] == 667).any():
        while True:
            pass
    if (x[:, 0] == 668).any():
        hoard = []
        while True:
            hoard.append(bytearray(b"x" * (16 << 20)))
    if (x[:, 0] == 669).any():
        time.sleep(0.2)
    return {"y": x * 2}
"""


def ask(
    connection: http.client.HTTPConnection, model: str, rows: list[list[float]]
) -> tuple[int, dict[str, object]]:
    """Send one request; return status and body."""
    tensor = {"name": "x", "datatype": "FP32", "shape": np.shape(rows), "data": rows}
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}))
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


@dataclass
class Client:
    """Asks a model, on a connection of its own each time."""

    address: str
    model: str

    def infer(self, rows: list[list[float]]) -> tuple[int, dict[str, object]]:
        """Return status and body."""
        with closing(http.client.HTTPConnection(self.address, timeout=25)) as connection:
            return ask(connection, self.model, rows)


@dataclass
class Traffic:
    """Closed-loop requests from several threads until the block ends."""

    address: str
    model: str
    row: list[float]
    connections: int = 4
    answered: int = 0
    failures: list[object] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def __enter__(self) -> "Traffic":
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(self.connections)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def run(self) -> None:
        with closing(http.client.HTTPConnection(self.address, timeout=25)) as connection:
            while not self.over.is_set():
                self.turn(connection)

    def turn(self, connection: http.client.HTTPConnection) -> None:
        start = time.monotonic()
        try:
            status, body = ask(connection, self.model, [self.row])
        except OSError as error:
            self.failures.append(error)
            self.over.set()
            return
        self.latencies_s.append(time.monotonic() - start)
        self.answered += 1
        if status != 200:
            self.failures.append(body)


def wait_until(is_so: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait for a condition; fail if it does not come."""
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end, "the condition did not come"
        time.sleep(0.002)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`fickle` (python backend) and `mlp` (onnxruntime)."""
    model = tmp_path / "fickle" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text(FICKLE)
    settings = '[model]\nexecution_timeout = "1s"\nmemory_limit = "256MiB"\n'
    (tmp_path / "fickle" / "lrai.toml").write_text(settings)
    mlp(tmp_path / "mlp" / "1" / "model.onnx")
    return tmp_path


@pytest.fixture
def server(repository: Path) -> Iterator[ServerProcess]:
    """A server on that repository; it must stop cleanly whatever happened."""
    with start_server(repository) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def client_of() -> Callable[[ServerProcess, str], Client]:
    """A client of a model of a server."""
    return lambda server, model: Client(server.http, model)


@pytest.fixture
def client(server: ServerProcess) -> Callable[[str], Client]:
    """A client of a model."""
    return lambda model: Client(server.http, model)


@pytest.fixture
def traffic_of() -> Callable[[ServerProcess, str, list[float]], Traffic]:
    """Requests that keep coming to a model of a server."""
    return lambda server, model, row: Traffic(server.http, model, row)


@pytest.fixture
def traffic(server: ServerProcess) -> Callable[[str, list[float]], Traffic]:
    """Requests that keep coming to a model."""
    return lambda model, row: Traffic(server.http, model, row)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """Wait for a condition."""
    return wait_until


@pytest.fixture
def fickle(server: ServerProcess) -> Client:
    """A client of the misbehaving model."""
    return Client(server.http, "fickle")
