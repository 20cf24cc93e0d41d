"""A real server with a latency goal learns from traffic, and says what it does and why."""

import json
import subprocess
import sys
import time

import pytest

from lrai.testing import models, start_server

LIMIT_S = 15


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("goal")
    models.mlp(folder / "mlp/1/model.onnx")
    (folder / "mlp/lrai.toml").write_text("[scheduler]\nlatency_goal_ms = 250\n")
    models.identity(folder / "plain.onnx")
    models.identity(folder / "fixed/1/model.onnx")
    text = '[knobs]\ntau = "3ms"\nwork_conserving = false\ntoken_budget = 4096\n'
    (folder / "fixed/lrai.toml").write_text(text)
    with start_server(folder, "--threads=1", f"--state={folder / '.state'}") as server:
        yield server


def row(width):
    return {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, width], "data": [0.5] * width}]
    }


def why(server, http, model):
    return http(server.http, f"/v2/models/{model}/scheduler").json


def test_knobs_follow_the_traffic_and_are_explained(server, http):
    assert "nothing has been served" in why(server, http, "mlp")["why"]
    end = time.monotonic() + LIMIT_S
    while not why(server, http, "mlp")["knobs"]["goal_ms"]:
        assert time.monotonic() < end, "the scheduler has set nothing"
        assert http(server.http, "/v2/models/mlp/infer", row(30)).status == 200
    told = why(server, http, "mlp")
    assert told["knobs"]["goal_ms"] == told["latency_goal_ms"] == 250
    assert told["policy"] == "model-based"
    assert "ms per row" in told["why"]
    assert told["requests_in_10_s"] > 0
    assert server.events("latency_alert") == []


def test_command_line_shows_the_same(server):
    command = [
        sys.executable,
        "-m",
        "lrai",
        "models",
        "why",
        "mlp",
        "--url",
        f"http://{server.http}",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "p99 of 250 ms" in shown
    assert "mlp/1 (model-based)" in shown
    plain = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(plain)["name"] == "mlp"


def test_model_without_goal_stays_greedy(server, http):
    for _ in range(20):
        assert http(server.http, "/v2/models/plain/infer", row(4)).status == 200
    knobs = why(server, http, "plain")["knobs"]
    assert knobs["work_conserving"]
    assert knobs["goal_ms"] == 0


def test_knobs_that_were_set_stay(server, http):
    for _ in range(5):
        assert http(server.http, "/v2/models/fixed/infer", row(4)).status == 200
    told = why(server, http, "fixed")
    assert told["policy"] == "static"
    assert (told["knobs"]["tau_ms"], told["knobs"]["work_conserving"]) == (3, False)
    assert told["knobs"]["token_budget"] == 4096


def test_only_served_models_are_explained(server, http):
    assert http(server.http, "/v2/models/nobody/scheduler").status == 404
    assert http(server.http, "/v2/models/mlp/versions/7/scheduler").status in (400, 404)
    assert http(server.http, "/v2/models/mlp/versions/1/scheduler").json["version"] == "1"
    assert http(server.http, "/v2/models/mlp/scheduler", {}).status == 405


def test_what_was_learnt_is_there_after_a_restart(tmp_path, http):
    models.mlp(tmp_path / "models/mlp.onnx")
    flags = (f"--state={tmp_path / 'state'}", "--latency-goal=250ms", "--threads=1")
    with start_server(tmp_path / "models", *flags) as server:
        end = time.monotonic() + LIMIT_S
        while "nothing" in why(server, http, "mlp")["why"]:
            assert time.monotonic() < end, "the scheduler has learnt nothing"
            assert http(server.http, "/v2/models/mlp/infer", row(30)).status == 200
        assert server.stop() == 0
    with start_server(tmp_path / "models", *flags) as server:
        assert "ms per row" in why(server, http, "mlp")["why"]


def test_goal_below_the_service_time_is_said_and_nothing_is_refused(tmp_path, http, write_model):
    write_model(tmp_path / "slow")
    body = {"inputs": [{"name": "seconds", "datatype": "FP32", "shape": [1], "data": [0.02]}]}
    with start_server(tmp_path, "--latency-goal=1ms") as server:
        end = time.monotonic() + LIMIT_S
        while not server.events("goal_unreachable"):
            assert time.monotonic() < end, "nothing was said"
            assert http(server.http, "/v2/models/slow/infer", body).status == 200
