"""What every scenario needs: peers side by side, checked answers, samples with their context."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import processes
from benchmarks.load import Client, Load, LoadError, LoadResult
from benchmarks.models import Array, model_path
from benchmarks.payloads import Payload, payload
from benchmarks.report import Spread
from benchmarks.versus import PEERS
from benchmarks.versus.base import Peer, PeerError, Served
from benchmarks.versus.onnxruntime_loop import OnnxruntimeLoop

WARM_UP_S = 1.0
LATENCY_COLUMNS = ("p50 ms", "p99 ms", "p99.9 ms", "max ms", "errors")


def latency_cells(loads: Sequence[LoadResult]) -> list[str]:
    """What stands under LATENCY_COLUMNS for the rounds of one measurement."""
    return [
        Spread.of([load.p50_ms for load in loads]).text(2),
        Spread.of([load.p99_ms for load in loads]).text(2),
        Spread.of([load.p999_ms for load in loads]).text(2),
        Spread.of([load.max_ms for load in loads]).text(1),
        str(sum(load.errors for load in loads)),
    ]


@dataclass(frozen=True)
class Sample:
    """One cell of one round."""

    load: LoadResult
    steal_percent: float
    server_us_per_request: float
    """CPU time of all the peer's processes."""
    other_cores: float
    """Cores that neither the peer nor the client kept busy: work that disturbed the cell."""


@dataclass
class Bench:
    """The settings of a run, and the notes that it makes."""

    cache: Path
    client: Client
    rounds: int
    seconds: float
    peers: Sequence[str]
    notes: list[str] = field(default_factory=list)

    def threads(self, model: str) -> int:
        """Threads of its session: one where a batch takes microseconds, else every core."""
        return 1 if model in ("mlp", "mlp_large") else len(os.sched_getaffinity(0))

    def served(self, model: str) -> Served:
        """The model as peers get it."""
        return Served(model, model_path(self.cache, model), self.threads(model))

    def loop(self, model: str) -> OnnxruntimeLoop:
        """The same session without a server."""
        return OnnxruntimeLoop(model, model_path(self.cache, model), self.threads(model))

    @contextmanager
    def running(self, names: Sequence[str], models: Sequence[str]) -> Iterator[dict[str, Peer]]:
        """Those of the peers that were asked for, all at once; idle ones use next to no CPU."""
        served = [self.served(model) for model in models]
        expected = {model: self.loop(model).answer() for model in models}
        with ExitStack() as stack:
            started: dict[str, Peer] = {}
            for name in (name for name in names if name in self.peers):
                try:
                    peer = stack.enter_context(PEERS[name](self.cache).start(served))
                except PeerError as error:
                    if name == "lrai":
                        raise
                    self.notes.append(f"{name} was left out: {str(error).splitlines()[0]}")
                    continue
                for model in models:
                    check_answers(peer, model, expected[model])
                started[name] = peer
            yield started

    def sample(
        self, peer: Peer, request: Payload, connections: int, seconds: float = 0.0
    ) -> Sample:
        """Sends a closed loop, for the usual length unless told otherwise."""
        address = peer.address(request.face)
        return self.measure(peer, Load(address, request, connections, seconds or self.seconds))

    def measure(self, peer: Peer, load: Load) -> Sample:
        """Sends the load, after a second that does not count, and watches the machine meanwhile."""
        warm_up = Load(load.address, load.payload, load.connections, WARM_UP_S, load.rate)
        self.client.send(warm_up)
        pids = peer.pids()
        machine, server = processes.cpu_times(), processes.cpu_seconds(pids)
        own, started = processes.own_cpu_seconds(), time.monotonic()
        result = self.client.send(load)
        wall_s = time.monotonic() - started
        server_s = processes.cpu_seconds(pids) - server
        passed = processes.cpu_times().since(machine)
        other_s = passed.busy - server_s - (processes.own_cpu_seconds() - own)
        return Sample(
            load=result,
            steal_percent=passed.stolen_percent,
            server_us_per_request=server_s * 1e6 / max(1, result.requests),
            other_cores=max(0.0, other_s / wall_s),
        )


def ask(peer: Peer, request: Payload) -> tuple[dict[str, str], bytes]:
    """Sends one HTTP request; the head in lower case, and the body of a 200 answer."""
    connection = http.client.HTTPConnection(peer.address(request.face), timeout=60)
    try:
        connection.request("POST", request.path, request.body, dict(request.headers))
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise LoadError(
            f"{peer.name} answered {answer.status}: {body[:300].decode(errors='replace')}"
        )
    return {name.lower(): value for name, value in answer.getheaders()}, body


def answered_values(peer: Peer, request: Payload) -> Array:
    """The numbers in the answer to one request."""
    if request.face == "grpc":
        return _grpc_values(peer, request)
    headers, body = ask(peer, request)
    if request.face == "binary":
        return np.frombuffer(body[int(headers["inference-header-content-length"]) :], np.float32)
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32).ravel()


def _grpc_values(peer: Peer, request: Payload) -> Array:
    """The answer's raw bytes; the only output's floats stand at their end, raw or typed."""
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError as error:
        raise LoadError("grpcio is not installed; hint: pip install grpcio") from error
    with grpc.insecure_channel(peer.address("grpc")) as channel:
        body: bytes = channel.unary_unary(request.path)(request.body, timeout=60)
    return np.frombuffer(body[len(body) % 4 :], np.float32)


def check_answers(peer: Peer, model: str, expected: Array) -> None:
    """Refuses to measure a peer whose answer is not onnxruntime's."""
    for face in peer.faces:
        values = answered_values(peer, payload(model, face))
        values = values[-expected.size :]
        if not np.allclose(values, expected.ravel(), rtol=1e-3, atol=1e-4):
            raise LoadError(
                f"{peer.name} answers {values[:4]} for {model} over {face}, "
                f"onnxruntime answers {expected.ravel()[:4]}"
            )


def batch_counts(peer: Peer, model: str) -> tuple[int, int]:
    """Rows and batches that the server has run so far, as its statistics say."""
    connection = http.client.HTTPConnection(peer.address("json"), timeout=10)
    try:
        connection.request("GET", f"/v2/models/{model}/stats")
        found = json.loads(connection.getresponse().read())["model_stats"][0]
    finally:
        connection.close()
    return int(found["inference_count"]), int(found["execution_count"])
