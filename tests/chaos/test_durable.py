"""Durable requests outlive the server: killed with requests pending, its successor answers all."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lrai.testing import ServerProcess, start_server

GATED = '''
"""Doubles, as long as the gate is open."""
import os, time

INPUTS = [("x", "FP32", [-1, 1])]
OUTPUTS = [("y", "FP32", [-1, 1])]


def predict(inputs):
    while not os.path.exists({gate!r}):
        time.sleep(0.005)
    return {{"y": inputs["x"] * 2}}
'''
SENDERS = 8


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "open"


@pytest.fixture
def gated(tmp_path: Path, gate: Path) -> Path:
    """A repository whose model answers when the gate is open."""
    model = tmp_path / "models" / "gated" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text(GATED.format(gate=str(gate)))
    return tmp_path / "models"


@pytest.fixture(params=["sqlite", "redis"])
def place(request: Any, tmp_path: Path) -> Iterator[list[str]]:
    """The flags of a journal in a file and in a Redis of its own."""
    if request.param == "sqlite":
        yield [f"--state={tmp_path / 'state'}"]
        return
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server (Debian's package) is not installed")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    command = [program, "--port", str(port), "--dir", str(tmp_path), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port)
            yield [f"--journal=redis://127.0.0.1:{port}"]
        finally:
            process.terminate()


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < end, "redis-server does not listen"
            time.sleep(0.01)
        else:
            return


def send(server: ServerProcess, values: range, found: dict[int, str]) -> None:
    """Have requests kept; note the id of each value."""
    with closing(http.client.HTTPConnection(server.http, timeout=20)) as connection:
        for value in values:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}
            body = json.dumps({"inputs": [tensor]})
            headers = {"Prefer": "respond-async"}
            connection.request("POST", "/v2/models/gated/infer", body, headers)
            reply = connection.getresponse()
            answer = json.loads(reply.read())
            assert reply.status == 202, answer
            found[value] = answer["id"]


def send_all(server: ServerProcess, count: int) -> dict[int, str]:
    """Send from several threads; return the ids of all values that were acknowledged."""
    found: dict[int, str] = {}
    parts = [range(start, count, SENDERS) for start in range(SENDERS)]
    threads = [threading.Thread(target=send, args=(server, part, found)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def fetch_all(server: ServerProcess, ids: dict[int, str], limit_s: float) -> dict[int, Any]:
    """Ask for each id until its answer is there; return status and body by value."""
    end = time.monotonic() + limit_s
    answers: dict[int, Any] = {}
    with closing(http.client.HTTPConnection(server.http, timeout=20)) as connection:
        for value, identifier in ids.items():
            while value not in answers:
                connection.request("GET", f"/v2/requests/{identifier}")
                reply = connection.getresponse()
                body = json.loads(reply.read())
                if reply.status != 202:
                    answers[value] = (reply.status, body)
                else:
                    assert time.monotonic() < end, f"{len(answers)} of {len(ids)} are answered"
                    time.sleep(0.01)
    return answers


def kill(server: ServerProcess) -> None:
    """End the whole server at once; its actors follow it."""
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()


def outlive(gated: Path, place: list[str], gate: Path, count: int) -> None:
    with start_server(gated, *place) as server:
        ids = send_all(server, count)
        assert len(set(ids.values())) == count
        kill(server)
    gate.touch()
    with start_server(gated, *place) as server:
        answers = fetch_all(server, ids, limit_s=300)
        for value, (status, body) in answers.items():
            assert status == 200, body
            assert body["outputs"][0]["data"] == [2 * value]
        assert server.stop() == 0


def test_a_killed_server_answers_everything_after_its_restart(
    gated: Path, place: list[str], gate: Path
) -> None:
    outlive(gated, place, gate, 300)


@pytest.mark.slow
def test_ten_thousand_pending_requests_outlive_the_server(
    gated: Path, place: list[str], gate: Path
) -> None:
    outlive(gated, place, gate, 10_000)


def test_a_server_killed_while_it_takes_and_answers_loses_nothing_that_it_acknowledged(
    gated: Path, place: list[str], gate: Path
) -> None:
    gate.touch()
    ids: dict[int, str] = {}
    with start_server(gated, *place) as server:

        def send_until_it_breaks(part: range) -> None:
            try:
                send(server, part, ids)
            except (OSError, http.client.HTTPException):
                return

        parts = [range(start, 1_000_000, SENDERS) for start in range(SENDERS)]
        threads = [threading.Thread(target=send_until_it_breaks, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 20
        while len(ids) < 200:
            assert time.monotonic() < end
            time.sleep(0.001)
        kill(server)
        for thread in threads:
            thread.join()
    with start_server(gated, *place) as server:
        answers = fetch_all(server, ids, limit_s=60)
        wrong = [
            (value, answer)
            for value, answer in answers.items()
            if answer[0] != 200 or answer[1]["outputs"][0]["data"] != [2 * value]
        ]
        assert not wrong


def test_killed_actors_cost_no_durable_request(
    gated: Path, place: list[str], gate: Path, wait_until: Any
) -> None:
    with start_server(gated, *place) as server:
        ids = send_all(server, 100)
        for _ in range(2):
            (before,) = server.actors("gated")
            os.kill(before, signal.SIGKILL)
            wait_until(lambda before=before: server.actors("gated") not in ([], [before]))
        gate.touch()
        answers = fetch_all(server, ids, limit_s=60)
        assert all(status == 200 for status, _ in answers.values())


def test_requests_for_a_model_that_has_gone_get_their_error(
    gated: Path, place: list[str], tmp_path: Path
) -> None:
    with start_server(gated, *place) as server:
        ids = send_all(server, 80)
        kill(server)
    other = tmp_path / "others"
    shutil.copytree(gated / "gated", other / "other")
    with start_server(other, *place, "--journal-patience=500ms") as server:
        answers = fetch_all(server, ids, limit_s=30)
    for status, body in answers.values():
        assert status == 404
        assert "unknown model: 'gated'" in body["error"]


def test_a_drained_server_leaves_what_is_pending_to_the_next(
    gated: Path, place: list[str], gate: Path
) -> None:
    with start_server(gated, *place, "--drain-timeout=1s") as server:
        ids = send_all(server, 100)
        assert server.stop() == 0
    gate.touch()
    with start_server(gated, *place) as server:
        answers = fetch_all(server, ids, limit_s=60)
        assert all(status == 200 for status, _ in answers.values())
