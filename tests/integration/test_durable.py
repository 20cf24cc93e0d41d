"""Durable requests over HTTP and gRPC: taken, answered, fetched, forgotten, refused."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from lrai.testing import models, start_server

ASYNC = {"Prefer": "respond-async"}
INFER = "/v2/models/identity/infer"
GUARDED = '''
"""Answers when it is let."""
import os, time

INPUTS = [("x", "FP32", [-1, 1])]
OUTPUTS = [("y", "FP32", [-1, 1])]


def predict(inputs):
    if (inputs["x"] < 0).any():
        raise ValueError("no negative numbers")
    while not os.path.exists({gate!r}):
        time.sleep(0.005)
    return {{"y": inputs["x"] * 2}}
'''


def body(values, **parameters):
    tensor = {"name": "x", "datatype": "FP32", "shape": np.shape(values), "data": values}
    return {"id": "mine", "inputs": [tensor], "parameters": parameters}


def fetch(http, server, path, limit_s=20.0):
    """Ask until there is an answer."""
    end = time.monotonic() + limit_s
    while (answer := http(server.http, path)).status == 202:
        assert answer.json["status"] == "pending"
        assert time.monotonic() < end, "no answer came"
        time.sleep(0.005)
    return answer


@pytest.fixture(scope="module")
def hooks():
    """A receiver of webhooks that fails once for each path before it takes an answer."""
    calls = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            calls.append((self.path, dict(self.headers), self.rfile.read(length)))
            self.send_response(500 if [path for path, *_ in calls].count(self.path) == 1 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        receiver.calls = calls
        yield receiver
        receiver.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def repository(tmp_path_factory, write_model, gate):
    folder = tmp_path_factory.mktemp("models")
    models.identity(folder / "identity/1/model.onnx", shape=["N", 4])
    write_model(folder / "guarded", GUARDED.format(gate=str(gate)))
    write_model(folder / "once", GUARDED.format(gate=str(gate)))
    (folder / "once/lrai.toml").write_text("[model]\nretry = false\n")
    return folder


@pytest.fixture(scope="module")
def server(repository, hooks, tmp_path_factory):
    flags = [
        f"--state={tmp_path_factory.mktemp('state')}",
        f"--journal-webhooks=http://127.0.0.1:{hooks.server_port}/hook",
    ]
    with start_server(repository, *flags) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def without(repository):
    """A server without a journal."""
    with start_server(repository) as running:
        yield running


@pytest.mark.parametrize("way", ["header", "parameter", "compressed"])
def test_the_answer_is_that_of_the_plain_request(http, server, way):
    values = [[1.0, 2.0, 3.0, 4.0]]
    plain = http(server.http, INFER, body(values))
    asked = body(values) if way == "header" else body(values, durable=True)
    headers = ASYNC if way == "header" else {}
    if way == "compressed":
        asked, headers = gzip.compress(json.dumps(asked).encode()), {"Content-Encoding": "gzip"}
    taken = http(server.http, INFER, asked, headers=headers)
    assert (taken.status, taken.headers["retry-after"]) == (202, "1")
    assert taken.headers["preference-applied"] == "respond-async"
    identifier = taken.json["id"]
    assert taken.headers["location"] == f"/v2/requests/{identifier}"
    answer = fetch(http, server, taken.headers["location"])
    assert answer.status == plain.status == 200
    assert answer.body == plain.body
    assert answer.headers["content-type"] == plain.headers["content-type"]
    assert answer.headers["lrai-request-id"] == identifier
    assert fetch(http, server, taken.headers["location"]).body == plain.body


def test_binary_tensors_come_back_with_their_header(http, server):
    tensor = np.arange(8, dtype=np.float32).reshape(2, 4)
    parameters = {"binary_data_size": tensor.nbytes}
    inputs = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": parameters}
    head = json.dumps({"inputs": [inputs], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    message = head + tensor.tobytes()
    plain = http(server.http, INFER, message, headers=headers)
    taken = http(server.http, INFER, message, headers=headers | ASYNC)
    answer = fetch(http, server, taken.headers["location"])
    name = "inference-header-content-length"
    assert answer.headers[name] == plain.headers[name]
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.body == plain.body
    assert answer.body.endswith(tensor.tobytes())


def test_what_the_model_refuses_is_the_answer(http, server, gate):
    gate.touch()
    plain = http(server.http, "/v2/models/guarded/infer", body([[-1.0]]))
    taken = http(server.http, "/v2/models/guarded/infer", body([[-1.0]]), headers=ASYNC)
    answer = fetch(http, server, taken.headers["location"])
    assert answer.status == plain.status == 400
    assert answer.json == plain.json
    assert "no negative numbers" in answer.error


@pytest.mark.parametrize(
    ("path", "asked", "status", "words"),
    [
        (INFER, body([[1.0]]), 400, "shape"),
        (INFER, b"{", 400, "parse"),
        ("/v2/models/nobody/infer", body([[1.0]]), 404, "unknown model"),
        ("/v2/models/once/infer", body([[1.0]]), 400, "must not run a request twice"),
        (INFER, body([[0.0] * 4], idempotency_key=7), 400, "expected a string"),
        (INFER, body([[0.0] * 4], idempotency_key="k" * 300), 400, "300 bytes"),
        (INFER, body([[0.0] * 4], webhook="http://127.0.0.1:9/hook"), 400, "not allowed"),
        (INFER, body([[0.0] * 4], webhook="https://127.0.0.1/hook"), 400, "cannot be called"),
        (INFER, body([[0.0] * 4], durable="yes"), 400, "expected a boolean"),
    ],
)
def test_what_is_wrong_is_said_at_once(http, server, path, asked, status, words):
    headers = {} if b"durable" in str(asked).encode() else ASYNC
    answer = http(server.http, path, asked, headers=headers)
    assert answer.status == status, answer.body
    assert words in answer.error


def test_a_repeated_key_is_one_request(http, server, gate):
    gate.unlink(missing_ok=True)
    path, before = "/v2/models/guarded/infer", executed(http, server)
    headers = ASYNC | {"Idempotency-Key": "k1"}
    first = http(server.http, path, body([[3.0]]), headers=headers)
    again = http(server.http, path, body([[3.0]]), headers=headers)
    other = http(server.http, path, body([[4.0]]), headers=headers)
    assert first.status == again.status == 202
    assert first.json["id"] == again.json["id"]
    assert other.status == 409
    assert "'k1' was used for another request" in other.error
    assert http(server.http, first.headers["location"]).status == 202
    gate.touch()
    answer = fetch(http, server, first.headers["location"])
    assert answer.json["outputs"][0]["data"] == [6.0]
    late = http(server.http, path, body([[3.0]]), headers=headers)
    assert late.json["id"] == first.json["id"]
    assert executed(http, server) == before + 1


def executed(http, server):
    stats = http(server.http, "/v2/models/guarded/stats").json["model_stats"]
    return int(stats[0]["inference_count"])


def test_deleting_forgets(http, server, gate):
    gate.unlink(missing_ok=True)
    taken = http(server.http, "/v2/models/guarded/infer", body([[1.0]]), headers=ASYNC)
    place = taken.headers["location"]
    assert http(server.http, place, method="DELETE").status == 204
    gate.touch()
    assert http(server.http, place).status == 404
    assert http(server.http, place, method="DELETE").status == 404
    assert http(server.http, place, method="PUT").status == 405


@pytest.mark.parametrize("name", ["", "1", "zz-1", "1-" + "0" * 32, "1-" + "g" * 32])
def test_an_unknown_id_is_not_found(http, server, name):
    answer = http(server.http, f"/v2/requests/{name}")
    assert answer.status == 404
    assert "lrai-request-id" not in answer.headers


def ask_with_webhook(http, server, hooks, path):
    """Send a durable request whose answer goes to a path of the receiver."""
    headers = ASYNC | {"Lrai-Webhook": f"http://127.0.0.1:{hooks.server_port}{path}"}
    return http(server.http, INFER, body([[1.0, 2.0, 3.0, 4.0]]), headers=headers)


def wait_for_calls(hooks, path, count):
    """Wait until a path has been called so often; return its calls."""
    end = time.monotonic() + 20
    while len(found := [call for call in hooks.calls if call[0] == path]) < count:
        assert time.monotonic() < end, "the webhook was not called"
        time.sleep(0.01)
    return found


def test_a_webhook_gets_the_answer_even_if_it_fails_first(http, server, hooks):
    taken = ask_with_webhook(http, server, hooks, "/hook/1?a=b")
    answer = fetch(http, server, taken.headers["location"])
    for _, got, data in wait_for_calls(hooks, "/hook/1?a=b", 2):
        assert data == answer.body
        named = {name.lower(): value for name, value in got.items()}
        assert named["lrai-request-id"] == taken.json["id"]
        assert (named["lrai-request-status"], named["content-type"]) == ("200", "application/json")


def test_a_deleted_answer_is_not_sent_again(http, server, hooks):
    taken = ask_with_webhook(http, server, hooks, "/hook/deleted")
    wait_for_calls(hooks, "/hook/deleted", 1)
    assert http(server.http, taken.headers["location"], method="DELETE").status == 204
    ask_with_webhook(http, server, hooks, "/hook/later")
    wait_for_calls(hooks, "/hook/later", 2)
    assert len(wait_for_calls(hooks, "/hook/deleted", 1)) == 1


def request(value, **parameters):
    """A ModelInfer message for the guarded model."""
    message = service_pb2.ModelInferRequest(model_name="guarded", id="mine")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    tensor.contents.fp32_contents.append(value)
    for name, setting in parameters.items():
        kind = "bool_param" if isinstance(setting, bool) else "string_param"
        setattr(message.parameters[name], kind, setting)
    return message


def test_grpc_takes_and_fetches(http, server, gate):
    gate.unlink(missing_ok=True)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        taken = stub.ModelInfer(request(5.0, durable=True, idempotency_key="g1"), timeout=20)
        assert (taken.model_name, taken.id, len(taken.outputs)) == ("guarded", "mine", 0)
        assert taken.parameters["durable_pending"].bool_param
        identifier = taken.parameters["durable_id"].string_param
        again = stub.ModelInfer(request(5.0, durable=True, idempotency_key="g1"), timeout=20)
        assert again.parameters["durable_id"].string_param == identifier
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request(6.0, durable=True, idempotency_key="g1"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        ask = service_pb2.ModelInferRequest(model_name="guarded")
        ask.parameters["durable_id"].string_param = identifier
        assert stub.ModelInfer(ask, timeout=20).parameters["durable_pending"].bool_param
        gate.touch()
        over_http = fetch(http, server, f"/v2/requests/{identifier}")
        answer = stub.ModelInfer(ask, timeout=20)
        plain = stub.ModelInfer(request(5.0), timeout=20)
        assert answer == plain
        assert over_http.headers["content-type"] == "application/x-protobuf"
        assert service_pb2.ModelInferResponse.FromString(over_http.body) == plain
        ask.parameters["durable_id"].string_param = "1-2"
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(ask, timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_grpc_hears_what_the_model_refused(http, server, gate):
    gate.touch()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        tensor = tritonclient.grpc.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.full((1, 1), -1, np.float32))
        taken = client.infer("guarded", [tensor], parameters={"durable": True}).get_response()
        identifier = taken.parameters["durable_id"].string_param
        assert fetch(http, server, f"/v2/requests/{identifier}").status == 400
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="no negative numbers"):
            client.infer("guarded", [tensor], parameters={"durable_id": identifier})


def test_the_metrics_tell_of_it(http, server):
    names = ["pending", "bytes", "accepted_total", "answered_total", "commits_total"]
    page = http(server.metrics, "/metrics").body.decode()
    values = dict(line.split() for line in page.splitlines() if line.startswith("lrai_journal"))
    assert all(f"lrai_journal_{name}" in values for name in names)
    assert int(values["lrai_journal_accepted_total"]) > 5
    assert int(values["lrai_journal_answered_total"]) > 5


def test_without_a_journal_the_wish_is_passed_over_and_the_demand_refused(http, without, gate):
    gate.touch()
    values = [[1.0, 2.0, 3.0, 4.0]]
    assert http(without.http, INFER, body(values), headers=ASYNC).status == 200
    refused = http(without.http, INFER, body(values, durable=True))
    assert refused.status == 501
    assert "--journal" in refused.error
    assert http(without.http, INFER, body(values, durable=False)).status == 200
    assert http(without.http, "/v2/requests/1").status == 404
    with grpc.insecure_channel(without.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request(1.0, durable=True), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert b"lrai_journal" not in http(without.metrics, "/metrics").body


def test_a_full_journal_refuses_with_a_type_and_old_answers_make_room(http, repository, tmp_path):
    flags = [f"--state={tmp_path}", "--journal-max-bytes=2000", "--journal-keep=1s"]
    values = [[1.0, 2.0, 3.0, 4.0]]
    with start_server(repository, *flags) as server:
        taken = http(server.http, INFER, body(values), headers=ASYNC)
        for _ in range(5):
            refused = http(server.http, INFER, body(values), headers=ASYNC)
        assert refused.status == 507
        assert "of 2000 bytes, hint:" in refused.error
        with grpc.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request(1.0, durable=True), timeout=20)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fetch(http, server, taken.headers["location"]).status in (200, 404)
        end = time.monotonic() + 20
        while http(server.http, INFER, body(values), headers=ASYNC).status == 507:
            assert time.monotonic() < end, "no room was made"
            time.sleep(0.05)
        assert http(server.http, taken.headers["location"]).status == 404


def test_answers_that_nobody_could_fetch_are_refused_at_the_start(repository, tmp_path):
    flags = [f"--state={tmp_path}", "--journal-keep=999ms"]
    with pytest.raises(Exception, match="at least 1s"), start_server(repository, *flags):
        pass


def test_two_servers_do_not_share_a_journal(http, repository, server, tmp_path):
    with (
        start_server(repository, f"--state={tmp_path}"),
        pytest.raises(Exception, match="another server keeps its journal there"),
        start_server(repository, f"--state={tmp_path}"),
    ):
        pass
