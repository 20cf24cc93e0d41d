import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lrai.server import Server

from .scheduler.fakes import FakeWindow

HEAVY = ("numpy", "onnx", "onnxruntime", "pydantic", "rich", "typer")


def make_server(world: Any, path: Path | None = None, **flags: str) -> Server:
    return Server(world.settings(path, **flags), world.gateway, world.supervisor, world.root)


async def started(world: Any, **flags: str) -> tuple[Server, "asyncio.Task[int]"]:
    server = make_server(world, **flags)
    running = asyncio.ensure_future(server.run())
    await world.until(lambda: world.native.ready)
    return server, running


def test_serving_process_holds_no_heavy_library() -> None:
    code = f"import sys, lrai.server; print([n for n in {HEAVY!r} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_server_is_ready_when_all_models_are(world: Any) -> None:
    world.write("a.onnx")
    world.write("b/1/model.onnx")
    server, running = await started(world)
    assert world.native.states() == {"a/1": "READY", "b/1": "READY"}
    server.stop()
    assert await running == 0


async def test_empty_repository_is_ready(world: Any) -> None:
    server, running = await started(world)
    server.stop()
    assert await running == 0


async def test_bad_model_does_not_keep_the_others_from_being_served(world: Any) -> None:
    world.write("bad.onnx", "broken")
    world.write("good.onnx")
    server, running = await started(world)
    assert world.native.routes == {("good", "1"): 1}
    server.stop()
    assert await running == 0


async def test_bad_model_keeps_a_strict_server_from_being_ready(world: Any) -> None:
    world.write("bad.onnx", "broken")
    world.write("good.onnx")
    server = make_server(world, strict_readiness="true")
    running = asyncio.ensure_future(server.run())
    await world.until(lambda: "ready False" in world.native.calls)
    assert world.native.states()["good/1"] == "READY"
    assert not world.native.ready
    server.stop()
    assert await running == 0


async def test_single_bad_file_ends_the_server(world: Any) -> None:
    file = world.write("bad.onnx", "broken")
    assert await make_server(world, file).run() == 1


async def test_any_bad_model_ends_the_server_if_asked(world: Any) -> None:
    world.write("bad.onnx", "broken")
    world.write("good.onnx")
    assert await make_server(world, exit_on_error="true").run() == 1


async def test_explicit_control_loads_what_it_is_told(world: Any) -> None:
    for name in ("a", "b"):
        world.write(f"{name}.onnx")
    server, running = await started(world, model_control_mode="explicit", load_model="b")
    assert world.native.states() == {"a/": "", "b/1": "READY"}
    server.stop()
    await running


async def test_explicit_control_may_load_everything(world: Any) -> None:
    for name in ("a", "b"):
        world.write(f"{name}.onnx")
    server, running = await started(world, model_control_mode="explicit", load_model="*")
    assert world.native.states() == {"a/1": "READY", "b/1": "READY"}
    server.stop()
    await running


async def test_commands_of_clients_are_answered(world: Any) -> None:
    world.write("mlp.onnx")
    server, running = await started(world, model_control_mode="explicit")
    world.native.push("command", ticket=1, kind="load", model="mlp", parameters={})
    await world.until(lambda: 1 in world.native.answers)
    world.native.push("command", ticket=2, kind="unload", model="mlp", parameters={})
    await world.until(lambda: 2 in world.native.answers)
    world.native.push("command", ticket=3, kind="load", model="absent", parameters=None)
    await world.until(lambda: 3 in world.native.answers)
    assert world.native.answers == {
        1: ("", ""),
        2: ("", ""),
        3: ("not_found", "failed to load 'absent', failed to poll from model repository"),
    }
    server.stop()
    await running


async def test_polling_server_follows_the_disk(world: Any) -> None:
    server, running = await started(world, model_control_mode="poll", poll_secs="5ms")
    world.write("new.onnx")
    await world.until(lambda: world.native.states() == {"new/1": "READY"})
    server.stop()
    await running


async def test_unknown_model_to_load_is_told(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    server, running = await started(world, model_control_mode="explicit", load_model="absent")
    assert any("failed to load 'absent'" in record.message for record in caplog.records)
    server.stop()
    assert await running == 0


async def test_defect_in_watching_does_not_end_the_server(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def fail(_: object) -> None:
        looks.append(1)
        raise RuntimeError("a defect")

    monkeypatch.setattr(world.supervisor, "check", fail)
    server, running = await started(world)
    await world.until(lambda: len(looks) >= 2)
    server.stop()
    assert await running == 0


def test_server_started_by_itself_says_how_to_start_it() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "lrai.server"], capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stderr) == (
        2,
        "error: lrai.server was started by itself hint: use lrai serve\n",
    )


async def test_supervisor_looks_again_and_again(world: Any) -> None:
    server, running = await started(world)
    await world.until(lambda: world.supervisor.checks >= 2)
    server.stop()
    await running


async def test_leaving_is_not_ready_then_drain_then_end(world: Any) -> None:
    server, running = await started(world)
    world.native.connections = 1
    server.stop()
    await world.until(lambda: "drain" in world.native.calls)
    assert not running.done()
    world.native.connections = 0
    assert await running == 0
    tail = world.native.calls[world.native.calls.index("ready True") + 1 :]
    assert tail == ["ready False", "drain", "supervisor stop", "stop"]


async def test_drain_has_an_end(world: Any) -> None:
    server, running = await started(world, drain_timeout="30ms")
    world.native.connections = 1
    server.stop()
    assert await running == 0


async def test_systemd_is_told(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        server, running = await started(world)
        server.stop()
        await running
        assert [listener.recv(64), listener.recv(64)] == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize(
    ("host", "is_warned"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("[::1]", False)]
)
async def test_open_host_is_warned_about(
    world: Any, caplog: pytest.LogCaptureFixture, host: str, is_warned: bool
) -> None:
    server, running = await started(world, host=host)
    server.stop()
    await running
    assert any("no authentication" in record.message for record in caplog.records) is is_warned


async def test_defect_in_a_command_is_answered(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write("mlp.onnx")
    server, running = await started(world, model_control_mode="explicit")

    async def fail(_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(world.supervisor, "load", fail)
    world.native.push("command", ticket=1, kind="load", model="mlp", parameters={})
    await world.until(lambda: 1 in world.native.answers)
    assert world.native.answers[1][0] == "internal"
    server.stop()
    assert await running == 0


async def test_news_of_replicas_reach_the_supervisor(world: Any) -> None:
    server, running = await started(world)
    world.native.push("replica_ready", key=1, replica=7)
    world.native.push("replica_lost", key=1, replica=8, detail="lied about a length")
    await world.until(lambda: world.supervisor.lost_replicas)
    assert world.supervisor.ready_replicas == [7]
    assert world.supervisor.lost_replicas == [(8, "lied about a length")]
    server.stop()
    await running


async def test_poisoned_request_is_told_with_its_model(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.write("mlp.onnx")
    server, running = await started(world)
    world.native.push("poison", key=1, digest="00ff", reason="signal")
    sentence = "a request ended an actor of model 'mlp' (signal) and is refused for ten minutes"
    await world.until(lambda: sentence in caplog.messages)
    server.stop()
    await running


async def test_server_explains_a_model_to_whom_asks(world: Any) -> None:
    world.write("mlp.onnx")
    server, running = await started(world, latency_goal="20ms")
    world.native.push("command", ticket=1, kind="why", model="mlp", parameters={"version": ""})
    world.native.push("command", ticket=2, kind="why", model="other", parameters={"version": "3"})
    await world.until(lambda: len(world.native.answers) == 2)
    assert json.loads(world.native.answers[1][1])["latency_goal_ms"] == 20.0
    assert world.native.answers[2] == ("not_found", "model 'other' version 3 is not served")
    server.stop()
    assert await running == 0


async def test_a_model_that_cannot_be_explained_keeps_no_event_from_being_heard(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write("mlp.onnx")
    server, running = await started(world)

    def fail(name: str, version: str) -> None:
        raise ArithmeticError(name, version)

    monkeypatch.setattr(server._scheduler, "why", fail)
    world.native.push("command", ticket=1, kind="why", model="mlp", parameters={})
    world.native.push("command", ticket=2, kind="unload", model="other", parameters={})
    await world.until(lambda: len(world.native.answers) == 2)
    code, message = world.native.answers[1]
    assert (code, "ArithmeticError('mlp', '')" in message) == ("internal", True)
    server.stop()
    assert await running == 0


async def test_traffic_moves_the_knobs(world: Any) -> None:
    world.write("mlp.onnx")
    server, running = await started(world, latency_goal="1ms")
    assert not world.native.knobs[1]["goal_us"]
    service = [
        (0, rows, 50, 50 * (80.0 + 13 * rows), 50 * (80.0 + 13 * rows) ** 2) for rows in (1, 4)
    ]
    world.native.windows = [FakeWindow(requests=500, rows_in=500, service=service)]
    await world.until(lambda: world.native.knobs[1]["goal_us"] == 1000)
    server.stop()
    assert await running == 0
