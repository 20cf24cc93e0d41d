"""What may lie on disk: files, folders, repositories, broken and odd models, and their changes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper, numpy_helper

from lrai.testing import models, start_server

LIMIT_S = 15
WIDTH, WORDS = 8, 50


def write_sum(path: Path, number: float, opset: int = 17) -> Path:
    """`y = x + number`."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    weight = numpy_helper.from_array(np.array(number, np.float32), "number")
    return models.save(
        path, [helper.make_node("Add", ["x", "number"], ["y"])], [x], [y], [weight], opset
    )


def write_external(path: Path) -> None:
    """A perceptron whose weights lie in a file of their own."""
    inside = models.mlp(path.parent / "inside.onnx", (30, 64, 2))
    model = onnx.load(inside)
    inside.unlink()
    options = {"all_tensors_to_one_file": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(model, path, save_as_external_data=True, **options)
    assert (path.parent / "weights.bin").stat().st_size > 1000


def write_encoder(path: Path) -> dict[str, np.ndarray]:
    """What a transformer's export looks like from outside: three int64 inputs, two outputs."""
    random = np.random.default_rng(5)
    weights = {
        "words": random.normal(size=(WORDS, WIDTH)).astype(np.float32),
        "types": random.normal(size=(2, WIDTH)).astype(np.float32),
    }
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in names
    ]
    outputs = [
        helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "sequence", WIDTH]),
        helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", WIDTH]),
    ]
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type"]),
        helper.make_node("Add", ["word", "type"], ["sum"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["sum", "wide"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden"], ["pooled"], axes=[1], keepdims=0),
    ]
    last = numpy_helper.from_array(np.array([-1]), "last")
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    models.save(path, nodes, inputs, outputs, [*stored, last])
    return weights


def write_classical(folder: Path) -> dict[str, tuple]:
    """scikit-learn's exports; returns the fitted models and rows to ask about."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows, labels = load_iris(return_X_y=True)
    rows = rows.astype(np.float32)
    names = np.array(["setosa", "versicolor", "virginica"])[labels]
    colours = np.array([["red", "big"], ["blue", "big"], ["red", "small"], ["green", "small"]])
    encoder = ColumnTransformer([("colours", OneHotEncoder(handle_unknown="ignore"), [0, 1])])
    text = make_pipeline(encoder, LogisticRegression()).fit(colours, [0, 1, 1, 0])
    fitted = {
        "numbers": (LogisticRegression(max_iter=500).fit(rows, labels), rows),
        "names": (LogisticRegression(max_iter=500).fit(rows, names), rows),
        "line": (LinearRegression().fit(rows, labels), rows),
        "text": (text, colours),
    }
    for name, (model, asked) in fitted.items():
        types = [("X", StringTensorType([None, 2]))] if name == "text" else None
        exported = to_onnx(model, asked[:1], initial_types=types, target_opset=17)
        (folder / f"sk_{name}.onnx").write_bytes(exported.SerializeToString())
    return fitted


CONFIG = """
# The way these files are often written: no colons, lists in brackets.
name: "configured"
max_batch_size: 6
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [
  { name: "y", data_type: TYPE_FP32, dims: [ -1 ] }
]
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 100 }
optimization { graph { level: 1 } }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
"""
BROKEN = {
    "garbage": "cannot load model.onnx",
    "truncated": "cannot load model.onnx",
    "empty": "cannot load model.onnx",
    "contradiction": "config.pbtxt says INT64 for x, but the model has",
    "no_pbtxt": "config.pbtxt: line 2",
    "no_version": "there is no version in",
    "no_such_version": "there is none of the versions [4]",
    "wrong_file": "has other.onnx",
    "raising": "the weights are missing",
    "sequence": "which the protocol cannot carry",
}


def write_broken(folder: Path) -> None:
    plain = write_sum(folder / "wrong_file/1/other.onnx", 1).read_bytes()
    for name, content in (("garbage", b"hello" * 100), ("truncated", plain[:-40]), ("empty", b"")):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1/model.onnx").write_bytes(content)
    configs = {
        "contradiction": 'input { name: "x" data_type: TYPE_INT64 dims: [ 4 ] } max_batch_size: 2',
        "no_pbtxt": "max_batch_size: 2\ninput [ {",
        "no_such_version": "version_policy { specific { versions: [ 4 ] } }",
    }
    for name, config in configs.items():
        write_sum(folder / name / "1/model.onnx", 1)
        (folder / name / "config.pbtxt").write_text(config)
    (folder / "no_version").mkdir()
    (folder / "no_version/config.pbtxt").write_text("max_batch_size: 2")
    (folder / "raising/1").mkdir(parents=True)
    (folder / "raising/1/model.py").write_text('raise OSError("the weights are missing")\n')
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    models.save(folder / "sequence/1/model.onnx", [node], [x], [y])


@pytest.fixture(scope="module")
def classical(tmp_path_factory):
    """A folder with scikit-learn's exports, and what was fitted."""
    folder = tmp_path_factory.mktemp("classical")
    return folder, write_classical(folder)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, classical):
    """One repository with everything in it, and its server."""
    folder = tmp_path_factory.mktemp("shelf")
    write_sum(folder / "bare.onnx", 1)
    for version in (1, 2, 3, 10):
        write_sum(folder / f"chosen/{version}/model.onnx", version)
        write_sum(folder / f"latest/{version}/model.onnx", version)
        write_sum(folder / f"default/{version}/model.onnx", version)
    (folder / "chosen/config.pbtxt").write_text("version_policy { specific { versions: [1, 3] } }")
    (folder / "latest/config.pbtxt").write_text("version_policy: { latest: { num_versions: 2 } }")
    write_sum(folder / "configured/1/model.onnx", 1)
    (folder / "configured/config.pbtxt").write_text(CONFIG)
    write_external(folder / "external/1/model.onnx")
    (folder / "folder/1/model.onnx").mkdir(parents=True)
    write_external(folder / "folder/1/model.onnx/model.onnx")
    for opset in (*range(11, 17), 21):
        write_sum(folder / f"opset_{opset}.onnx", opset, opset)
    write_encoder(folder / "encoder.onnx")
    for file in classical[0].iterdir():
        (folder / file.name).symlink_to(file)
    write_broken(folder)
    write_sum(folder / ".hidden/1/model.onnx", 1)
    (folder / "notes").mkdir()
    (folder / "notes/readme.txt").write_text("no model")
    with start_server(folder, "--threads=1") as server:
        yield server


@pytest.fixture(scope="module")
def client(shelf):
    with triton.InferenceServerClient(shelf.http) as client:
        yield client


def infer(client, model, version="", outputs=None, **arrays):
    names = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64", np.dtype(object): "BYTES"}
    tensors = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), names[array.dtype])
        tensors.append(tensor.set_data_from_numpy(array))
    return client.infer(model, tensors, version, outputs=outputs)


ROW = np.zeros((1, 4), np.float32)


def test_a_bare_file_is_a_model_by_its_stem(client):
    assert infer(client, "bare", x=ROW).as_numpy("y").tolist() == [[1] * 4]


@pytest.mark.parametrize(
    ("model", "versions", "default"),
    [("chosen", [1, 3], 3), ("latest", [3, 10], 10), ("default", [10], 10)],
)
def test_the_version_policy_chooses(client, model, versions, default):
    assert client.get_model_metadata(model)["versions"] == [str(version) for version in versions]
    assert infer(client, model, x=ROW).as_numpy("y")[0, 0] == default
    for version in versions:
        assert infer(client, model, str(version), x=ROW).as_numpy("y")[0, 0] == version
    assert not client.is_model_ready(model, "2")


def test_a_configuration_is_honoured_and_the_rest_is_named(client, shelf):
    config = client.get_model_config("configured")
    assert config["max_batch_size"] == 6
    assert config["instance_group"][0]["count"] == 2
    assert len(shelf.actors("configured")) == 2
    notes = [event["message"] for event in shelf.events("model_note")]
    assert any("optimization" in note and "no effect" in note for note in notes)
    with pytest.raises(triton.InferenceServerException, match="batch-size must be <= 6"):
        infer(client, "configured", x=np.zeros((7, 4), np.float32))


@pytest.mark.parametrize("model", ["external", "folder"])
def test_weights_in_a_file_of_their_own_are_found(client, model):
    rows = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    answer = infer(client, model, x=rows).as_numpy("y")
    assert answer.shape == (3, 2)
    np.testing.assert_allclose(answer, infer(client, "external", x=rows).as_numpy("y"))
    assert np.ptp(answer) > 0


@pytest.mark.parametrize("opset", [*range(11, 17), 21])
def test_old_opsets_are_served_with_a_note(client, shelf, opset):
    assert infer(client, f"opset_{opset}", x=ROW).as_numpy("y")[0, 0] == opset
    notes = [event["message"] for event in shelf.events("model_note")]
    has_note = any(f"opset_{opset}'" in note and f"opset {opset}" in note for note in notes)
    assert has_note is (opset < 17)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_stands_in_the_index_with_its_reason(client, name):
    rows = {row["name"]: row for row in client.get_model_repository_index()}
    assert rows[name]["state"] == "UNAVAILABLE"
    assert BROKEN[name] in rows[name]["reason"]
    assert rows["bare"]["state"] == "READY"
    with pytest.raises(triton.InferenceServerException, match="has no available versions"):
        infer(client, name, x=ROW)


def test_hidden_folders_are_no_models_and_strange_ones_are_named(client, shelf):
    names = {row["name"] for row in client.get_model_repository_index()}
    assert not {".hidden", "hidden", "notes"} & names
    assert ["notes" in event["message"] for event in shelf.events("folder_ignored")] == [True]


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (4, 16), (3, 33)])
def test_a_model_with_three_inputs_takes_sequences_of_any_length(client, shelf, batch, length):
    random = np.random.default_rng(length)
    ids = random.integers(0, WORDS, (batch, length))
    mask, types = random.integers(0, 2, (2, batch, length))
    answer = infer(client, "encoder", input_ids=ids, attention_mask=mask, token_type_ids=types)
    weights = {
        one.name: numpy_helper.to_array(one)
        for one in onnx.load(Path(shelf_path(shelf), "encoder.onnx")).graph.initializer
    }
    hidden = (weights["words"][ids] + weights["types"][types]) * mask[..., None]
    np.testing.assert_allclose(answer.as_numpy("hidden"), hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer.as_numpy("pooled"), hidden.mean(1), rtol=1e-5, atol=1e-6)


def shelf_path(server):
    return server.process.args[server.process.args.index("serve") + 1]


@pytest.mark.parametrize("name", ["numbers", "names", "text"])
def test_a_classifier_answers_labels_and_probabilities(client, classical, name):
    model, rows = classical[1][name]
    asked = rows[:50].astype(object) if name == "text" else rows[:50]
    answer = infer(client, f"sk_{name}", X=asked)
    labels = answer.as_numpy("output_label")
    labels = [one.decode() if isinstance(one, bytes) else one for one in labels.tolist()]
    assert labels == model.predict(rows[:50]).tolist()
    probabilities = answer.as_numpy("output_probability")
    np.testing.assert_allclose(probabilities, model.predict_proba(rows[:50]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "labels"),
    [("numbers", ["0", "1", "2"]), ("names", ["setosa", "versicolor", "virginica"])],
)
def test_a_classifier_has_its_labels_in_its_configuration(client, name, labels):
    parameters = client.get_model_config(f"sk_{name}")["parameters"]
    assert json.loads(parameters["labels.output_probability"]["string_value"]) == labels


def test_a_classifier_tells_its_labels(client):
    metadata = client.get_model_metadata("sk_names")
    shapes = {one["name"]: (one["datatype"], one["shape"]) for one in metadata["outputs"]}
    assert shapes == {"output_label": ("BYTES", [-1]), "output_probability": ("FP32", [-1, 3])}
    asked = [triton.InferRequestedOutput("output_probability", class_count=1)]
    row = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
    (best,) = infer(client, "sk_names", outputs=asked, X=row).as_numpy("output_probability").ravel()
    assert best.endswith(b":0:setosa")


def test_a_regressor_answers_numbers(client, classical):
    model, rows = classical[1]["line"]
    answer = infer(client, "sk_line", X=rows[:9]).as_numpy("variable")
    np.testing.assert_allclose(answer.ravel(), model.predict(rows[:9]), atol=1e-4)


def test_a_single_file_is_served(tmp_path):
    file = write_sum(tmp_path / "alone.onnx", 5)
    with start_server(file) as server, triton.InferenceServerClient(server.http) as client:
        assert infer(client, "alone", x=ROW).as_numpy("y")[0, 0] == 5


@pytest.mark.parametrize(
    ("content", "flags"),
    [("broken.onnx", ()), ("", ("--exit-on-error",))],
    ids=["a single broken file", "told to end on an error"],
)
def test_nothing_to_serve_ends_the_server_with_a_sentence(tmp_path, content, flags):
    (tmp_path / "broken.onnx").write_bytes(b"hello")
    ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0", "--log-format=json")
    command = [sys.executable, "-m", "lrai", "serve", str(tmp_path / content), *ports, *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert ended.returncode == 1
    assert "model 'broken' version 1 is not served: onnxruntime cannot load" in ended.stderr


def wait_for_answer(client, model, expected, version=""):
    """Ask until the model answers so; `None` = until it is not found."""
    end = time.monotonic() + LIMIT_S
    while True:
        try:
            got = infer(client, model, version, x=ROW).as_numpy("y")[0, 0]
        except triton.InferenceServerException:
            got = None
        if got == expected:
            return
        assert time.monotonic() < end, f"it answers {got}"
        time.sleep(0.01)


def replace_file(path, number):
    """Put another model in a file's place at once, as a careful deployment does."""
    write_sum(path.parent.parent / "next.tmp", number).replace(path)


def test_polling_follows_the_files(tmp_path):
    folder = tmp_path / "models"
    write_sum(folder / "first/1/model.onnx", 1)
    flags = ("--model-control-mode=poll", "--repository-poll-secs=100ms")
    with (
        start_server(folder, *flags) as server,
        triton.InferenceServerClient(server.http) as client,
    ):
        wait_for_answer(client, "first", 1)
        write_sum(tmp_path / "second.onnx", 2).rename(folder / "second.onnx")
        wait_for_answer(client, "second", 2)
        replace_file(folder / "first/1/model.onnx", 11)
        wait_for_answer(client, "first", 11)
        write_sum(tmp_path / "2/model.onnx", 22)
        (tmp_path / "2").rename(folder / "first/2")
        wait_for_answer(client, "first", 22)
        (folder / "second.onnx").write_bytes(b"broken")
        (failed,) = server.wait_for("model_failed")
        assert "model 'second'" in failed["message"]
        assert infer(client, "second", x=ROW).as_numpy("y")[0, 0] == 2
        (folder / "second.onnx").unlink()
        wait_for_answer(client, "second", None)
        assert infer(client, "first", x=ROW).as_numpy("y")[0, 0] == 22
        with pytest.raises(triton.InferenceServerException) as caught:
            client.load_model("first")
        expected = "explicit model load / unload is not allowed if polling is enabled"
        assert caught.value.message() == expected


def test_a_reload_under_load_fails_no_request(tmp_path, http):
    folder = tmp_path / "models"
    file = write_sum(folder / "sum/1/model.onnx", 0)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}
    failures, seen, is_over = [], [[], []], threading.Event()

    def ask(answers):
        while not is_over.is_set() and len(answers) < 50_000:
            answer = http(server.http, "/v2/models/sum/infer", body)
            if answer.status != 200:
                failures.append(answer.body)
                return
            answers.append(answer.json["outputs"][0]["data"][0])

    flags = ("--model-control-mode=explicit", "--load-model=sum")
    with start_server(folder, *flags) as server:
        threads = [threading.Thread(target=ask, args=(answers,)) for answers in seen]
        for thread in threads:
            thread.start()
        try:
            for number in range(1, 6):
                replace_file(file, number)
                loaded = http(server.http, "/v2/repository/models/sum/load", b"")
                assert (loaded.status, loaded.body) == (200, b"")
                answer = http(server.http, "/v2/models/sum/infer", body)
                assert answer.json["outputs"][0]["data"][0] == number
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
    assert failures == []
    for answers in seen:
        assert answers == sorted(answers)
        assert len(set(answers)) > 3


@pytest.mark.parametrize("place", ["1", "2"], ids=["same version", "new version"])
def test_a_request_that_began_before_a_reload_is_answered_by_the_new_model(tmp_path, http, place):
    file = write_sum(tmp_path / "sum/1/model.onnx", 1)
    head = "POST /v2/models/sum/infer HTTP/1.1\r\nHost: lrai\r\nConnection: close\r\n"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}
    body = json.dumps({"inputs": [tensor]}).encode()
    with start_server(tmp_path, "--model-control-mode=explicit", "--load-model=sum") as server:
        host, port = server.http.split(":")
        with socket.create_connection((host, int(port)), LIMIT_S) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:9])
            file.unlink()
            write_sum(tmp_path / f"sum/{place}/model.onnx", 2)
            assert http(server.http, "/v2/repository/models/sum/load", b"").status == 200
            client.sendall(body[9:])
            with client.makefile("rb") as answer:
                got = answer.read()
    assert b"HTTP/1.1 200 OK" in got
    assert b'"data":[2.0,2.0,2.0,2.0]' in got


def test_a_load_that_fails_leaves_the_model_in_service(tmp_path, http):
    folder = tmp_path / "models"
    file = write_sum(folder / "sum/1/model.onnx", 1)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}
    flags = ("--model-control-mode=explicit", "--load-model=sum")
    with start_server(folder, *flags) as server:
        file.write_bytes(b"broken")
        refused = http(server.http, "/v2/repository/models/sum/load", b"")
        assert refused.status == 400
        assert refused.error.startswith("failed to load 'sum', onnxruntime cannot load model.onnx")
        answer = http(server.http, "/v2/models/sum/infer", body)
        assert answer.json["outputs"][0]["data"] == [1] * 4


def test_an_unload_lets_open_requests_finish(tmp_path, http, write_model):
    write_model(tmp_path / "slow")
    body = {"inputs": [{"name": "seconds", "datatype": "FP32", "shape": [1], "data": [0.5]}]}
    pending = 'lrai_pending_requests{model="slow",version="1"} 1\n'
    answers = []
    flags = ("--model-control-mode=explicit", "--load-model=slow")
    with start_server(tmp_path, *flags) as server:
        ask = threading.Thread(
            target=lambda: answers.append(http(server.http, "/v2/models/slow/infer", body))
        )
        ask.start()
        while pending not in http(server.metrics, "/metrics").body.decode():
            assert ask.is_alive()
        assert http(server.http, "/v2/repository/models/slow/unload", b"").status == 200
        assert http(server.http, "/v2/models/slow/infer", body).status == 503
        ask.join()
    assert answers[0].status == 200


def test_loading_and_unloading_leaves_nothing_behind(tmp_path, http):
    def held():
        return len(os.listdir(f"/proc/{server.process.pid}/fd")), len(server.processes())

    models.identity(tmp_path / "plain.onnx")
    with start_server(tmp_path, "--model-control-mode=explicit", "--load-model=plain") as server:
        before = held()
        for action in ("unload", "load") * 8:
            path = f"/v2/repository/models/plain/{action}"
            assert http(server.http, path, b"").status == 200
        end = time.monotonic() + LIMIT_S
        while held() != before:
            assert time.monotonic() < end, (before, held())
            time.sleep(0.01)
