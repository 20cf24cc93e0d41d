"""A real server measures its models when it is idle, and serves as if it did not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrai.machine import available_cpus
from lrai.testing import models, start_server

LIGHT, HEAVY = (64, 256, 256, 8), (1024, 2048, 2048, 2048, 8)
LIMIT_S = 25.0
pytestmark = pytest.mark.timeout(90)


def row(width):
    return {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, width], "data": [0.5] * width}]
    }


def calibration(server, http, model="net"):
    return http(server.http, f"/v2/models/{model}/scheduler").json["calibration"]


def trials(server):
    return [pid for pid, title in server.processes().items() if title.endswith(" trial")]


def wait_for(condition):
    end = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.005)
    return found


def test_a_light_model_keeps_one_thread_and_a_restart_knows(tmp_path, http):
    models.mlp(tmp_path / "models/net.onnx", LIGHT)
    flags = (tmp_path / "models", f"--state={tmp_path / 'state'}")
    with start_server(*flags) as server:
        former = server.actors("net")
        assert "when the server is idle" in calibration(server, http)
        answer = http(server.http, "/v2/models/net/infer", row(64)).json["outputs"]
        (told,) = server.wait_for("calibrated", limit_s=LIMIT_S)
        assert (told["replicas"], told["threads"]) == (1, 1)
        words = calibration(server, http)
        assert words.startswith("1 replica x 1 thread: a lone row takes ")
        assert words in told["message"]
        assert (server.actors("net") == former) == (available_cpus() == 1)
        assert http(server.http, "/v2/models/net/infer", row(64)).json["outputs"] == answer
        assert (
            'lrai_actor_restarts_total{model="net",version="1"} 0'
            in http(server.metrics, "/metrics").body.decode()
        )
        assert server.events("actor_died") == []
        command = [sys.executable, "-m", "lrai", "models", "why", "net", "--url"]
        shown = subprocess.check_output([*command, f"http://{server.http}"], text=True)
        assert f"calibration: {words}" in " ".join(shown.split())
        assert server.stop() == 0
    with start_server(*flags) as server:
        assert calibration(server, http) == words
        assert server.events("model_ready")[0]["threads"] == 1
        assert http(server.http, "/v2/models/net/infer", row(64)).json["outputs"] == answer


def test_a_request_ends_the_measurement_and_is_answered(tmp_path, http):
    models.mlp(tmp_path / "net.onnx", HEAVY)
    with start_server(tmp_path, "--threads=1") as server:
        answer = http(server.http, "/v2/models/net/infer", row(1024)).json["outputs"]
        (trial, *_) = wait_for(lambda: trials(server))
        serving = server.actors("net")
        assert http(server.http, "/v2/models/net/infer", row(1024)).json["outputs"] == answer
        wait_for(lambda: not Path(f"/proc/{trial}").exists())
        assert server.actors("net") == serving
        assert server.events("calibrated") == server.events("calibration_failed") == []


def test_a_trial_that_dies_harms_nothing(tmp_path, http):
    models.mlp(tmp_path / "net.onnx", HEAVY)
    with start_server(tmp_path) as server:
        serving = server.actors("net")
        (trial, *_) = wait_for(lambda: trials(server))
        os.kill(trial, signal.SIGSEGV)
        (told,) = server.wait_for("calibration_failed", limit_s=LIMIT_S)
        assert "was ended by SIGSEGV" in told["message"]
        assert "was ended by SIGSEGV" in calibration(server, http)
        assert server.actors("net") == serving
        assert http(server.http, "/v2/models/net/infer", row(1024)).status == 200
        assert server.events("actor_died") == []


def test_free_dimensions_are_taken_from_what_was_asked(tmp_path, http):
    models.identity(tmp_path / "net.onnx", "FP32", ["N", "M"])
    with start_server(tmp_path) as server:
        assert http(server.http, "/v2/models/net/infer", row(77)).status == 200
        (told,) = server.wait_for("calibrated", limit_s=LIMIT_S)
        assert "a lone row takes" in told["message"]


@pytest.mark.parametrize("flags", [("--threads=2", "--replicas=2"), ("--no-calibrate",)])
def test_what_somebody_has_set_is_not_measured(tmp_path, http, flags):
    models.mlp(tmp_path / "net.onnx", LIGHT)
    with start_server(tmp_path, *flags) as server:
        assert calibration(server, http) == ""
        (ready,) = server.events("model_ready")
        assert (ready["replicas"], ready["threads"]) == (
            (2, 2) if "--threads=2" in flags else (1, available_cpus())
        )


def test_models_that_do_more_than_compute_are_not_run_for_that(tmp_path, http, write_model):
    write_model(tmp_path / "net")
    with start_server(tmp_path) as server:
        assert calibration(server, http) == ""
