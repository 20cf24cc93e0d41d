"""Requests that share batches: nothing is mixed up, nothing waits without a bound, who leaves is left out."""

import json
import random
import socket
import threading
import time
from contextlib import closing
from http.client import HTTPConnection

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from lrai.testing import start_server

LIMIT_S = 15


def sleep_body(*seconds, **parameters):
    tensor = {"name": "seconds", "datatype": "FP32", "shape": [len(seconds)], "data": seconds}
    return {"inputs": [tensor], "parameters": parameters}


def wait_until(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def server(tmp_path_factory, write_model):
    folder = tmp_path_factory.mktemp("queue")
    write_model(folder / "slow")
    write_model(folder / "narrow")
    (folder / "narrow/lrai.toml").write_text("[model]\nmax_queue_requests = 3\n")
    write_model(folder / "alone")
    (folder / "alone/lrai.toml").write_text("[model]\nmax_batch_size = 0\n")
    with start_server(folder) as server:
        assert not server.events("model_failed")
        yield server


@pytest.fixture
def statistics(server, http):
    def read(model):
        return http(server.http, f"/v2/models/{model}/stats").json["model_stats"][0]

    return read


@pytest.fixture
def is_pending(server, http):
    """`is_pending(model, count)`: whether so many requests wait or run."""

    def read(model, count):
        line = f'lrai_pending_requests{{model="{model}",version="1"}} {count}\n'
        return line in http(server.metrics, "/metrics").body.decode()

    return read


class Background:
    """Requests in threads of their own; `answers` are in the order of asking."""

    def __init__(self, ask, address):
        self._ask, self._address = ask, address
        self._threads, self.answers = [], []

    def __call__(self, path, body):
        place = len(self.answers)
        self.answers.append(None)

        def run():
            self.answers[place] = self._ask(self._address, path, body)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def join(self):
        for thread in self._threads:
            thread.join()
        return self.answers


@pytest.fixture
def background(server, http):
    background = Background(http, server.http)
    yield background
    background.join()


def ask_numbers(server, seed, wrong):
    """Ask for rows of this thread's own, of every number and length, over one connection."""
    choose = random.Random(seed)
    with closing(HTTPConnection(server.http, timeout=LIMIT_S)) as connection:
        for _ in range(60):
            rows = choose.randrange(0, 6)
            width = choose.choice((1, 3, 3, 3, 40))
            data = [choose.randrange(1 << 20) for _ in range(rows * width)]
            tensor = {"name": "x", "datatype": "FP32", "shape": [rows, width], "data": data}
            connection.request(
                "POST", "/v2/models/identity_FP32/infer", json.dumps({"inputs": [tensor]})
            )
            (output,) = json.loads(connection.getresponse().read())["outputs"]
            wrong += [] if (output["shape"], output["data"]) == ([rows, width], data) else [output]


def ask_texts(server, seed, wrong):
    """The same with texts, over gRPC."""
    choose = random.Random(seed)
    with triton.InferenceServerClient(server.grpc) as client:
        for _ in range(60):
            shape = (choose.randrange(1, 4), 2)
            texts = [f"{seed}:{'ü' * choose.randrange(60)}".encode() for _ in range(shape[0] * 2)]
            tensor = triton.InferInput("x", shape, "BYTES")
            tensor.set_data_from_numpy(np.array(texts, object).reshape(shape))
            back = client.infer("identity_BYTES", [tensor]).as_numpy("y")
            wrong += [] if (back.shape, back.ravel().tolist()) == (shape, texts) else [back]


def test_requests_of_many_clients_are_never_mixed_up(zoo):
    wrong = []
    threads = [
        threading.Thread(target=ask, args=(zoo, seed, wrong))
        for seed, ask in enumerate([ask_numbers, ask_texts] * 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_requests_that_wait_share_a_batch(background, is_pending, statistics):
    before = statistics("slow")
    background("/v2/models/slow/infer", sleep_body(0.3))
    wait_until(lambda: is_pending("slow", 1))
    for number in range(1, 6):
        background("/v2/models/slow/infer", sleep_body(*[number / 1024] * number))
    first, *others = background.join()
    assert first.status == 200
    for number, answer in enumerate(others, start=1):
        assert answer.json["outputs"][0]["data"] == [number / 1024] * number
    after = statistics("slow")
    assert after["inference_count"] - before["inference_count"] == 16
    assert after["execution_count"] - before["execution_count"] == 2


def test_one_wrong_request_of_a_batch_is_refused_alone(background, is_pending):
    background("/v2/models/slow/infer", sleep_body(0.3))
    wait_until(lambda: is_pending("slow", 1))
    for number in range(8):
        background("/v2/models/slow/infer", sleep_body(-1 if number == 5 else 0.001))
    _, *others = background.join()
    assert [answer.status for answer in others] == [200] * 5 + [400] + [200] * 2
    assert others[5].error == "time does not run backwards"


def test_a_full_queue_refuses_at_once(server, background, http, is_pending):
    for _ in range(3):
        background("/v2/models/narrow/infer", sleep_body(0.3))
    wait_until(lambda: is_pending("narrow", 3))
    began = time.monotonic()
    refused = http(server.http, "/v2/models/narrow/infer", sleep_body(0.3))
    assert (refused.status, refused.error) == (503, "Exceeds maximum queue size")
    assert time.monotonic() - began < 0.2
    assert "retry-after" in refused.headers
    tensor = triton.InferInput("seconds", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    with (
        triton.InferenceServerClient(server.grpc) as client,
        pytest.raises(triton.InferenceServerException) as caught,
    ):
        client.infer("narrow", [tensor])
    assert caught.value.status() == str(grpc.StatusCode.UNAVAILABLE)
    assert [answer.status for answer in background.join()] == [200] * 3


def test_who_has_gone_is_not_computed(server, background, is_pending, statistics):
    before = statistics("slow")["inference_count"]
    background("/v2/models/slow/infer", sleep_body(0.4))
    wait_until(lambda: is_pending("slow", 1))
    body = json.dumps(sleep_body(0.001)).encode()
    head = (
        f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: lrai\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, port = server.http.split(":")
    leaving = [socket.create_connection((host, int(port)), LIMIT_S) for _ in range(4)]
    for one in leaving:
        one.sendall(head.encode() + body)
    background("/v2/models/slow/infer", sleep_body(0.002))
    wait_until(lambda: is_pending("slow", 6))
    for one in leaving:
        one.close()
    last = background.join()[1]
    assert last.json["outputs"][0]["data"] == [pytest.approx(0.002)]
    assert statistics("slow")["inference_count"] - before == 2


def test_a_deadline_is_kept_in_the_queue_only(background, is_pending):
    background("/v2/models/slow/infer", sleep_body(0.3, timeout=100_000))
    wait_until(lambda: is_pending("slow", 1))
    background("/v2/models/slow/infer", sleep_body(0, timeout=1000))
    background("/v2/models/slow/infer", sleep_body(0, timeout=10_000_000))
    first, late, patient = background.join()
    assert (first.status, patient.status) == (200, 200)
    assert (late.status, late.error) == (503, "Request timeout expired")


def test_a_model_that_is_told_so_never_shares_a_batch(background, is_pending, statistics):
    background("/v2/models/alone/infer", sleep_body(0.2))
    wait_until(lambda: is_pending("alone", 1))
    for _ in range(3):
        background("/v2/models/alone/infer", sleep_body(0, 0))
    assert [answer.status for answer in background.join()] == [200] * 4
    assert statistics("alone")["execution_count"] == 4
