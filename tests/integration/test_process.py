"""The life of the serving process: how it starts, what it holds, how it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lrai.testing import models, start_server

HEAVY = ("numpy", "onnx", "onnxruntime", "pydantic", "rich", "typer")


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return models.mlp(tmp_path_factory.mktemp("process") / "mlp.onnx")


def serve(*arguments, **options):
    """Run `lrai serve` that is expected to end by itself."""
    command = [sys.executable, "-m", "lrai", "serve", *map(str, arguments), "--log-format=text"]
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=off"]
    return subprocess.run(
        [*command, *ports], capture_output=True, text=True, timeout=25, check=False, **options
    )


def open_request(server, http):
    """Send half a request, so that its connection stays open; return the rest and the connection."""
    host, port = server.http.rsplit(":", 1)
    body = b'{"inputs":[{"name":"seconds","shape":[1],"datatype":"FP32","data":[0]}]}'
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body[:10])
    wait_until(lambda: b"\nlrai_connections 1\n" in http(server.metrics, "/metrics").body)
    return connection, body[10:]


def test_serving_process_maps_no_heavy_library(mlp):
    with start_server(mlp) as server:
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert [name for name in HEAVY if f"/{name}/" in maps] == []


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_server_with_code_0(mlp, sign):
    with start_server(mlp) as server:
        assert server.stop(sign) == 0
        assert server.events("stopped")


def test_nothing_is_left_of_a_server(mlp):
    with start_server(mlp) as server:
        children = set(server.processes()) - {server.process.pid}
        server.stop()
    assert children
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def test_open_request_is_answered_before_the_end(tmp_path, write_model, http):
    with start_server(write_model(tmp_path / "slow")) as server:
        connection, rest = open_request(server, http)
        with connection:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            connection.sendall(rest)
            answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()
        assert server.process.wait(20) == 0


def test_draining_server_takes_no_new_connection(tmp_path, write_model, http):
    with start_server(write_model(tmp_path / "slow")) as server:
        connection, rest = open_request(server, http)
        with connection:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            host, port = server.http.rsplit(":", 1)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                with socket.socket() as other:
                    if other.connect_ex((host, int(port))) != 0:
                        break
                time.sleep(0.01)
            else:
                pytest.fail("the port still accepts")
            connection.sendall(rest)
        assert server.process.wait(20) == 0


def test_drain_ends_at_its_timeout(tmp_path, write_model, http):
    with start_server(write_model(tmp_path / "slow"), "--drain-timeout=200ms") as server:
        connection, _ = open_request(server, http)
        with connection:
            assert server.stop() == 0
        assert server.events("drain_ended")


def test_second_signal_ends_at_once(tmp_path, write_model, http):
    with start_server(write_model(tmp_path / "slow")) as server:
        connection, _ = open_request(server, http)
        with connection:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(5) == 128 + signal.SIGINT


@pytest.mark.parametrize("signals", [1, 2], ids=["drained", "ended at once"])
def test_run_folder_goes_with_the_server(tmp_path, write_model, http, monkeypatch, signals):
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
    with start_server(write_model(tmp_path / "slow"), "--drain-timeout=200ms") as server:
        assert len(list((tmp_path / "temp").iterdir())) == 1
        connection, _ = open_request(server, http)
        with connection:
            for _ in range(signals):
                server.process.send_signal(signal.SIGTERM)
                server.wait_for("draining")
            server.process.wait(20)
    assert list((tmp_path / "temp").iterdir()) == []


def test_systemd_hears_when_the_server_is_ready_and_when_it_stops(mlp, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with start_server(mlp, settle=False) as server:
            assert listener.recv(64) == b"READY=1"
            server.process.send_signal(signal.SIGTERM)
            assert listener.recv(64) == b"STOPPING=1"


def test_server_as_process_1_reaps_and_ends(mlp, tmp_path):
    probe = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"]
    if not shutil.which("unshare") or subprocess.run(probe, check=False).returncode:
        pytest.skip("this machine allows no namespaces of processes")
    log = tmp_path / "log"
    command = [*probe[:-1], sys.executable, "-m", "lrai", "serve", str(mlp), "--log-format=json"]
    with log.open("wb") as lines:
        outer = subprocess.Popen(
            [*command, "--http-port=0", "--grpc-port=0", "--metrics-port=off"], stderr=lines
        )
    try:
        wait_until(lambda: "settled" in log.read_text())
        (server,) = children(outer.pid)
        (actor,) = [pid for pid in children(server) if b"mlp/1" in title(pid)]
        os.kill(actor, signal.SIGKILL)
        wait_until(lambda: "actor_back" in log.read_text())
        assert not Path(f"/proc/{actor}").exists()
        os.kill(server, signal.SIGTERM)
        assert outer.wait(20) == 0
    finally:
        outer.kill()
        outer.wait()


def test_broken_single_model_ends_the_start_with_a_sentence(tmp_path):
    (tmp_path / "broken.onnx").write_text("this is no model")
    ended = serve(tmp_path / "broken.onnx")
    assert ended.returncode == 1
    assert "model 'broken' version 1 is not served: " in ended.stderr
    assert " hint: " in ended.stderr


def test_absent_model_ends_the_start_with_a_sentence(tmp_path):
    ended = serve(tmp_path / "absent.onnx")
    assert ended.returncode == 1
    assert "no model at " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_file_that_is_no_model_ends_the_start_with_a_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("this is no model")
    ended = serve(tmp_path / "notes.txt")
    assert ended.returncode == 1
    assert "notes.txt cannot be read: Not a directory hint: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_taken_port_ends_the_start_with_a_sentence(mlp):
    with start_server(mlp) as server:
        port = server.http.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "lrai", "serve", str(mlp), f"--http-port={port}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_settings_of_file_and_environment_reach_the_server(mlp, tmp_path, http):
    (tmp_path / "lrai.toml").write_text("[model]\nmax_batch_size = 7\nreplicas = 3\n")
    os.environ["LRAI_MODEL_REPLICAS"] = "2"
    try:
        with start_server(mlp, f"--config={tmp_path / 'lrai.toml'}") as server:
            config = http(server.http, "/v2/models/mlp/config").json
            server.wait_for("settled")
    finally:
        del os.environ["LRAI_MODEL_REPLICAS"]
    assert (config["max_batch_size"], config["instance_group"][0]["count"]) == (7, 2)


def wait_until(is_true):
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def title(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def children(pid):
    found = []
    for entry in Path("/proc").iterdir():
        # Processes of others come and go meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit():
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(stat[1]) == pid:
                    found.append(int(entry.name))
    return found
