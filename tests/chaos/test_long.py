"""The long runs of `make soak`: a minute of kills under an open-loop load. Prints what it saw."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lrai import _native
from lrai.testing import ServerProcess, start_server
from lrai.testing.models import mlp

pytestmark = pytest.mark.slow

PERIOD_S = 60.0


def request(model: str) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: lrai\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def load(server: ServerProcess, model: str, rate: float, seconds: float) -> dict[str, Any]:
    settings = {
        "address": server.http,
        "protocol": "http",
        "connections": 64,
        "rate": rate,
        "duration_s": seconds,
        "warmup_s": 1.0,
    }
    report: dict[str, Any] = json.loads(_native.run_load(json.dumps(settings), [request(model)]))
    return report


def both(server: ServerProcess, seconds: float) -> dict[str, dict[str, Any]]:
    """Load the victim with 5,000 requests/s and the bystander with 500/s at the same time."""
    found: dict[str, dict[str, Any]] = {}

    def run(model: str, rate: float) -> None:
        found[model] = load(server, model, rate, seconds)

    rates = {"victim": 5000.0, "bystander": 500.0}
    threads = [threading.Thread(target=run, args=item) for item in rates.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def server(tmp_path: Path) -> Any:
    for name in ("victim", "bystander"):
        mlp(tmp_path / name / "1" / "model.onnx")
    with start_server(tmp_path) as running:
        yield running


@pytest.mark.timeout(300)
def test_a_minute_of_kills_fails_no_request(server: ServerProcess) -> None:
    calm = both(server, 20.0)
    over = threading.Event()

    def kill() -> None:
        while not over.wait(2.0):
            for pid in server.actors("victim"):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        wild = both(server, PERIOD_S)
    finally:
        over.set()
        killer.join()
    for phase, reports in (("calm", calm), ("kills", wild)):
        for model, report in reports.items():
            latency = report["latency"]
            p50, p99 = latency["p50_us"] / 1000, latency["p99_us"] / 1000
            answered, errors = report["answered"], report["errors"]
            print(
                f"{phase} {model}: {answered} answered, {errors} errors, {p50=:.2f} {p99=:.2f} ms"
            )
    deaths = sum("SIGKILL" in str(row["message"]) for row in server.events())
    print(f"{deaths} actors were killed")
    assert deaths >= PERIOD_S / 2 - 3
    for report in (*calm.values(), *wild.values()):
        assert report["errors"] == 0


@pytest.mark.timeout(120)
def test_a_killed_template_under_load_fails_nothing(server: ServerProcess) -> None:
    timer = threading.Timer(3.0, lambda: os.kill(server.template(), signal.SIGKILL))
    timer.start()
    report = load(server, "victim", 2000.0, 10.0)
    timer.join()
    assert report["errors"] == 0


@pytest.mark.timeout(120)
def test_a_killed_actor_answers_again_soon(server: ServerProcess, client_of: Any) -> None:
    """A request sent right after the kill is answered by the successor; prints when."""
    client = client_of(server, "victim")
    gaps_ms = []
    for _ in range(20):
        assert client.infer([[0.5] * 30])[0] == 200
        (pid,) = server.actors("victim")
        os.kill(pid, signal.SIGKILL)
        start = time.perf_counter()
        assert client.infer([[0.5] * 30])[0] == 200
        gaps_ms.append((time.perf_counter() - start) * 1000)
    print("milliseconds from the kill to an answer:", sorted(round(gap) for gap in gaps_ms))
