"""The process itself: signals, sockets, limits, metrics, logs, and what it holds in memory."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton

from lrai.testing import models, start_server

LIMIT_S = 10
SAMPLE = re.compile(r'^([a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*\})? (\S+)$')


def sleep_body(seconds):
    tensor = {"name": "seconds", "datatype": "FP32", "shape": [1], "data": [seconds]}
    return {"inputs": [tensor]}


def rows_body(rows=1):
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": [0.5] * 4 * rows}
    return {"inputs": [tensor]}


def address_of(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def read_metrics(http, server):
    return http(server.metrics, "/metrics").body.decode()


def wait_until(condition, limit_s=LIMIT_S):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def read_to_end(connection):
    """All that comes until the server closes; an end by reset is an end."""
    got = b""
    try:
        while part := connection.recv(65536):
            got += part
    except ConnectionResetError:
        pass
    return got


@pytest.fixture
def repository(tmp_path, write_model):
    models.identity(tmp_path / "models/plain.onnx")
    write_model(tmp_path / "models/slow")
    return tmp_path / "models"


@pytest.fixture
def flood():
    """`flood(count, target)` runs a function in threads; joins them at the end."""
    threads = []

    def start(count, target, *args):
        for _ in range(count):
            threads.append(threading.Thread(target=target, args=args))
            threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def test_sigterm_answers_what_was_sent_and_exits_with_0(repository, http, flood):
    answers, calls = [], []

    def ask_http():
        answers.append(http(server.http, "/v2/models/slow/infer", sleep_body(0.8)))

    def ask_grpc():
        tensor = triton.InferInput("seconds", [1], "FP32")
        tensor.set_data_from_numpy(np.array([0.8], np.float32))
        with triton.InferenceServerClient(server.grpc) as client:
            calls.append(client.infer("slow", [tensor]).as_numpy("slept").tolist())

    with start_server(repository) as server:
        flood(3, ask_http)
        flood(3, ask_grpc)
        pending = 'lrai_pending_requests{model="slow",version="1"} 6\n'
        wait_until(lambda: pending in read_metrics(http, server))
        assert server.stop() == 0
    wait_until(lambda: len(answers) == 3)
    wait_until(lambda: len(calls) == 3)
    assert [answer.status for answer in answers] == [200] * 3
    assert {answer.headers["connection"] for answer in answers} == {"close"}


def test_sigterm_fails_no_request_of_busy_clients(repository, flood):
    failures, counts, body = [], [], json.dumps(rows_body())

    def ask_until_gone():
        count = 0
        with closing(HTTPConnection(server.http, timeout=LIMIT_S)) as connection:
            while count < 100_000:
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    break
                while connection.sock:
                    connection.request("POST", "/v2/models/plain/infer", body)
                    answer = connection.getresponse()
                    answer.read()
                    failures.extend([answer.status] if answer.status != 200 else [])
                    count += 1
        counts.append(count)

    with start_server(repository) as server:
        flood(3, ask_until_gone)
        time.sleep(0.5)
        assert server.stop() == 0
    wait_until(lambda: len(counts) == 3)
    assert failures == []
    assert min(counts) > 10


def test_who_has_connected_before_sigterm_is_answered(repository):
    request = b"GET /v2/models/plain HTTP/1.1\r\nHost: lrai\r\n\r\n"
    with start_server(repository) as server, ExitStack() as stack:
        server.process.send_signal(signal.SIGSTOP)
        waiting = [stack.enter_context(connect(server.http)) for _ in range(20)]
        for one in waiting:
            one.sendall(request)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        answers = [read_to_end(one) for one in waiting]
        assert server.process.wait(LIMIT_S) == 0
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}


def test_a_unix_socket_carries_http_and_grpc(repository, tmp_path):
    path = tmp_path / "socket"
    with start_server(repository, f"--host=unix:{path}") as server:
        assert server.addresses["unix"] == str(path)
        assert path.stat().st_mode & 0o007 == 0
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://lrai") as client:
            assert client.post("/v2/models/plain/infer", json=rows_body()).status_code == 200
        # gRPC's C core would send the percent-encoded path, which is no authority of HTTP/2.
        options = [("grpc.default_authority", "localhost")]
        with triton.InferenceServerClient(f"unix:{path}", channel_args=options) as client:
            assert client.is_model_ready("plain")
        assert server.stop() == 0
    assert not path.exists()


def test_an_ipv6_literal_is_a_host(repository):
    with closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    with start_server(repository, "--host=::1") as server:
        assert server.http.startswith("[::1]:")
        answer = httpx.post(f"http://{server.http}/v2/models/plain/infer", json=rows_body())
        assert answer.status_code == 200
        with triton.InferenceServerClient(server.grpc) as client:
            assert client.is_server_ready()


def test_another_host_than_this_machine_is_warned_about(repository):
    with start_server(repository, "--host=0.0.0.0") as server:
        assert "there is no authentication" in server.events("open_host")[0]["message"]


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """A server with narrow limits."""
    folder = tmp_path_factory.mktemp("limited")
    models.identity(folder / "plain.onnx")
    flags = ("--max-connections=4", "--max-body-bytes=4096", "--body-timeout=300ms")
    with start_server(folder, *flags, "--header-timeout=300ms", "--access-log") as server:
        yield server


def connect(address):
    return closing(socket.create_connection(address_of(address), LIMIT_S))


def test_connections_beyond_the_limit_wait_and_metrics_answer(limited, http):
    head = b"GET /v2/health/live HTTP/1.1\r\nHost: lrai\r\n\r\n"
    with ExitStack() as stack:
        held = [stack.enter_context(connect(limited.http)) for _ in range(4)]
        for one in held:
            one.sendall(head)
            assert one.recv(1000).startswith(b"HTTP/1.1 200")
        late = stack.enter_context(connect(limited.http))
        late.sendall(head)
        late.settimeout(0.1)
        with pytest.raises(TimeoutError):
            late.recv(1)
        assert "lrai_connections" in read_metrics(http, limited)
        late.settimeout(LIMIT_S)
        held[0].close()
        assert late.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_body_that_does_not_come_is_answered_408(limited):
    with connect(limited.http) as client:
        began = time.monotonic()
        client.sendall(
            b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: lrai\r\nContent-Length: 100\r\n\r\n{"
        )
        got = read_to_end(client)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"the request body was not complete after 300 ms" in got
    assert 0.2 < time.monotonic() - began < 5


def test_a_body_that_dribbles_is_answered_408(limited):
    head = b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: lrai\r\nContent-Length: 1000\r\n\r\n"
    with connect(limited.http) as client:
        client.sendall(head)
        client.settimeout(0.05)
        got = b""
        for _ in range(100):
            try:
                client.sendall(b" ")
                got += client.recv(1000)
                break
            except TimeoutError:
                continue
    assert got.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("start", [b"", b"GET /v2 HTTP/1.1\r\nHost:", b"PRI * HTTP/2.0\r\n"])
def test_headers_that_do_not_come_end_the_connection(limited, start):
    with connect(limited.http) as client:
        client.sendall(start)
        got = read_to_end(client)
    assert got == b"" or got.startswith(b"HTTP/1.1 408 ")


def test_a_body_above_the_limit_is_answered_413(limited, http):
    answer = http(limited.http, "/v2/models/plain/infer", rows_body(500))
    assert answer.status == 413
    assert "4096 bytes" in answer.error
    assert "--max-body-bytes" in answer.error


def test_a_client_that_waits_for_100_gets_it(limited):
    body = json.dumps(rows_body()).encode()
    head = f"POST /v2/models/plain/infer HTTP/1.1\r\nHost: lrai\r\nContent-Length: {len(body)}\r\n"
    with connect(limited.http) as client:
        client.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_chunked_body_is_a_body(limited):
    body = json.dumps(rows_body()).encode()
    with closing(HTTPConnection(limited.http, timeout=LIMIT_S)) as connection:
        parts = (body[start : start + 7] for start in range(0, len(body), 7))
        connection.request("POST", "/v2/models/plain/infer", parts, encode_chunked=True)
        assert connection.getresponse().status == 200


def test_pipelined_requests_are_answered_in_order(limited):
    paths = (b"/v2/health/live", b"/nowhere", b"/v2/health/ready")
    with connect(limited.http) as client:
        for path in paths:
            close = b"Connection: close\r\n" if path == paths[-1] else b""
            client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: lrai\r\n" + close + b"\r\n")
        got = read_to_end(client)
    assert [got.index(text) for text in (b'"live"', b"no such path", b'"ready"')] == sorted(
        got.index(text) for text in (b'"live"', b"no such path", b'"ready"')
    )


def test_the_access_log_has_a_line_per_request(limited, http):
    def lines():
        return [row for row in limited.events() if row.get("path") == "/v2/models/plain/infer"]

    count = len(lines())
    http(limited.http, "/v2/models/plain/infer", rows_body())
    wait_until(lambda: len(lines()) > count)
    line = lines()[-1]
    assert (line["method"], line["status"]) == ("POST", 200)
    assert line["client"].startswith("127.0.0.1:")
    assert line["duration_seconds"] > 0
    assert line["request_bytes"] > 0


def test_http2_by_prior_knowledge_carries_many_requests_at_once(zoo):
    body = json.dumps(rows_body()).encode()
    headers = {"inference-header-content-length": str(len(body))}
    with httpx.Client(http1=False, http2=True, base_url=f"http://{zoo.http}") as client:
        answers = [client.post("/v2/models/identity_FP32/infer", content=body) for _ in range(20)]
        answers.append(client.post("/v2/models/identity_FP32/infer", content=body, headers=headers))
    assert {(answer.http_version, answer.status_code) for answer in answers} == {("HTTP/2", 200)}


def test_the_metrics_page_is_well_formed(zoo, http):
    http(zoo.http, "/v2/models/identity_FP32/infer", rows_body())
    answer = http(zoo.metrics, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    assert http(zoo.http, "/metrics").status == 200
    kinds, samples = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kinds.setdefault(name, kind) == kind
        elif not line.startswith("# HELP "):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert (name, labels) not in samples
            samples[name, labels] = float(value)
            assert {name, re.sub("_(bucket|sum|count)$", "", name)} & kinds.keys()
    assert text.endswith("\n")
    for name in ("request", "queue", "compute"):
        assert kinds[f"lrai_{name}_duration_seconds"] == "histogram"
    labels = '{model="identity_FP32",version="1"}'
    count = samples["lrai_request_duration_seconds_count", labels]
    endless = '{model="identity_FP32",version="1",le="+Inf"}'
    assert count == samples["lrai_request_duration_seconds_bucket", endless] > 0
    assert {"lrai_batch_rows", "lrai_batch_closed_total", "lrai_actor_restarts_total"} <= set(kinds)
    assert {"lrai_requests_refused_total", "lrai_pending_requests"} <= set(kinds)


def unary(server, path, message):
    with grpc.insecure_channel(server.grpc) as channel:
        return channel.unary_unary(path)(message, timeout=LIMIT_S)


def test_grpc_health_tells_of_server_and_models(zoo):
    path = "/grpc.health.v1.Health/Check"
    assert unary(zoo, path, b"") == b"\x08\x01"
    assert unary(zoo, path, b"\x0a\x06simple") == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as caught:
        unary(zoo, path, b"\x0a\x06nobody")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_grpc_reflection_lists_the_services(zoo, version):
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    with grpc.insecure_channel(zoo.grpc) as channel:
        (answer,) = channel.stream_stream(path)(iter([b"\x3a\x00"]), timeout=LIMIT_S)
    assert b"inference.GRPCInferenceService" in answer
    assert b"grpc.health.v1.Health" in answer


def test_what_the_serving_process_imports_holds_no_heavy_library():
    code = "import lrai.server, sys; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "zmq" in names
    assert not {"numpy", "onnx", "onnxruntime", "pydantic", "rich", "typer"} & set(names)


def test_processes_are_named_after_their_models(zoo):
    titles = list(zoo.processes().values())
    assert "lrai: simple/1 #0" in titles
    assert any("template" in title for title in titles)
