"""Which models are served, and how that changes while the server runs."""

import base64
import json
import os

import pytest

from lrai.testing import models, start_server


def index(http, server):
    rows = http(server.http, "/v2/repository/index", {}).json
    return {
        f"{row['name']}/{row.get('version', '')}": row.get("reason") or row.get("state", "")
        for row in rows
    }


def control(http, server, model, action, **parameters):
    path = f"/v2/repository/models/{model}/{action}"
    return http(server.http, path, {"parameters": parameters} if parameters else {})


@pytest.fixture
def explicit(tmp_path):
    """A server that has loaded nothing; `a` and `b` lie in its repository."""
    for name in ("a", "b"):
        models.identity(tmp_path / name / "1/model.onnx")
    with start_server(tmp_path, "--model-control-mode=explicit", "--threads=1") as server:
        server.repository = tmp_path
        yield server


def test_one_bad_model_keeps_no_other_from_being_served(tmp_path, http):
    models.identity(tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_text("this is no model")
    (tmp_path / "empty/config.pbtxt").parent.mkdir()
    (tmp_path / "empty/config.pbtxt").write_text("max_batch_size: 4\n")
    (tmp_path / "typo/1").mkdir(parents=True)
    (tmp_path / "typo/config.pbtxt").write_text("max_batch_size: four\n")
    with start_server(tmp_path) as server:
        states = index(http, server)
        assert http(server.http, "/v2/health/ready").status == 200
        assert http(server.http, "/v2/models/good/ready").status == 200
        assert http(server.http, "/v2/models/bad/ready").status in (400, 503)
    assert states["good/1"] == "READY"
    assert "onnxruntime cannot load" in states["bad/1"]
    assert "there is no version in" in states["empty/"]
    assert "line 1: expected an integer" in states["typo/"]


def test_strict_server_is_not_ready_with_a_bad_model(tmp_path, http):
    models.identity(tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_text("this is no model")
    with start_server(tmp_path, "--strict-readiness") as server:
        assert http(server.http, "/v2/health/ready").status == 400
        assert http(server.http, "/v2/models/good/ready").status == 200


def test_models_are_loaded_and_unloaded_on_command(explicit, http):
    assert index(http, explicit) == {"a/": "", "b/": ""}
    assert http(explicit.http, "/v2/health/ready").status == 200
    assert control(http, explicit, "a", "load").status == 200
    assert http(explicit.http, "/v2/models/a/ready").status == 200
    assert control(http, explicit, "a", "unload").status == 200
    assert index(http, explicit) == {"a/1": "unloaded", "b/": ""}
    assert http(explicit.http, "/v2/models/a").status != 200
    assert control(http, explicit, "a", "load").status == 200
    assert index(http, explicit) == {"a/1": "READY", "b/": ""}


def test_unknown_model_is_refused_as_triton_does(explicit, http):
    answer = control(http, explicit, "absent", "load")
    assert answer.status == 404
    assert answer.error == "failed to load 'absent', failed to poll from model repository"
    assert control(http, explicit, "absent", "unload").status == 404


def test_model_that_appears_on_disk_can_be_loaded(explicit, http):
    models.identity(explicit.repository / "new.onnx")
    assert control(http, explicit, "new", "load").status == 200
    assert index(http, explicit)["new/1"] == "READY"


def test_failed_load_says_why_and_keeps_what_was_served(explicit, http):
    assert control(http, explicit, "a", "load").status == 200
    (explicit.repository / "a/1/model.onnx").write_text("this is no model")
    answer = control(http, explicit, "a", "load")
    assert answer.status == 400
    assert answer.error.startswith("failed to load 'a', onnxruntime cannot load")
    assert http(explicit.http, "/v2/models/a/ready").status == 200


def test_configuration_of_a_command_replaces_the_one_on_disk(explicit, http):
    assert control(http, explicit, "a", "load", config='{"max_batch_size": "3"}').status == 200
    assert http(explicit.http, "/v2/models/a/config").json["max_batch_size"] == 3
    assert control(http, explicit, "a", "load").status == 200
    assert http(explicit.http, "/v2/models/a/config").json["max_batch_size"] == 64


def test_model_may_come_with_the_command(explicit, http, tmp_path_factory):
    file = models.identity(tmp_path_factory.mktemp("sent") / "sent.onnx")
    data = base64.b64encode(file.read_bytes()).decode()
    parameters = {"config": '{"backend": "onnxruntime"}', "file:5/model.onnx": data}
    assert control(http, explicit, "sent", "load", **parameters).status == 200
    assert index(http, explicit)["sent/5"] == "READY"
    assert http(explicit.http, "/v2/models/sent").json["versions"] == ["5"]
    answer = control(http, explicit, "sent", "load", **{"file:1/model.onnx": data})
    assert answer.status == 400
    assert "file overrides come without a configuration" in answer.error


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_clients_change_nothing_unless_allowed(tmp_path, http, mode):
    models.identity(tmp_path / "a.onnx")
    with start_server(tmp_path, f"--model-control-mode={mode}") as server:
        for action in ("load", "unload"):
            assert control(http, server, "a", action).status == 503
        assert http(server.http, "/v2/models/a/ready").status == 200


def test_polling_server_follows_the_disk(tmp_path, http):
    gone = models.identity(tmp_path / "gone.onnx")
    changed = models.identity(tmp_path / "changed.onnx")
    flags = ["--model-control-mode=poll", "--repository-poll-secs=50ms"]
    with start_server(tmp_path, *flags) as server:
        models.identity(tmp_path / "new/1/model.onnx")
        os.utime(changed, ns=(1, 1))
        server.wait_for("model_ready", count=4)
        gone.unlink()
        server.wait_for("model_unloaded")
        assert index(http, server) == {"changed/1": "READY", "new/1": "READY"}


def test_versions_follow_their_policy(tmp_path, http):
    for version in (1, 2, 3):
        models.identity(tmp_path / f"m/{version}/model.onnx")
    (tmp_path / "m/config.pbtxt").write_text("version_policy: { latest { num_versions: 2 } }")
    with start_server(tmp_path) as server:
        assert http(server.http, "/v2/models/m").json["versions"] == ["2", "3"]
        assert http(server.http, "/v2/models/m/versions/2/ready").status == 200
        assert http(server.http, "/v2/models/m/versions/1/ready").status == 404


def test_configuration_is_honoured_and_the_rest_is_told(tmp_path, http):
    models.identity(tmp_path / "m/1/model.onnx")
    (tmp_path / "m/config.pbtxt").write_text(
        """
        # as Triton's users write it
        name: "m"
        platform: "onnxruntime_onnx"
        max_batch_size: 8
        instance_group [ { count: 2, kind: KIND_CPU } ]
        dynamic_batching { max_queue_delay_microseconds: 100 preserve_ordering: true }
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }
        """
    )
    with start_server(tmp_path) as server:
        config = http(server.http, "/v2/models/m/config").json
        (ready,) = server.events("model_ready")
        notes = [line["message"] for line in server.events("model_note")]
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    assert (ready["replicas"], ready["threads"], ready["max_batch_size"]) == (2, 1, 8)
    assert any("dynamic_batching.preserve_ordering has no effect here" in note for note in notes)


def test_contradiction_stands_in_the_index_with_the_real_signature(tmp_path, http):
    models.identity(tmp_path / "m/1/model.onnx")
    text = 'max_batch_size: 4 input [ { name: "absent" data_type: TYPE_FP32 dims: [ 4 ] } ]'
    (tmp_path / "m/config.pbtxt").write_text(text)
    with start_server(tmp_path) as server:
        reason = index(http, server)["m/1"]
    assert "has the input absent, which the model has not: (x FP32" in reason


def test_blocked_models_do_not_keep_the_others_from_starting(tmp_path, http, write_model):
    slow = (
        "import time\nINPUTS = OUTPUTS = [('x', 'FP32', [-1])]\ndef load(_):\n    time.sleep(60)\n"
    )
    write_model(tmp_path / "slow", slow + "def predict(inputs):\n    return inputs\n")
    models.identity(tmp_path / "quick.onnx")
    with start_server(tmp_path, "--load-timeout=2s", settle=False) as server:
        server.wait_for("model_ready")
        assert http(server.http, "/v2/models/quick/ready").status == 200
        assert http(server.http, "/v2/health/ready").status == 400
        server.wait_for("settled")
        assert "did not load it within 2 s" in index(http, server)["slow/1"]
        assert json.loads(http(server.http, "/v2/health/live").body)["live"] is True
