"""Broken requests over raw sockets: each gets a typed answer or its connection ends in time; nothing dies.

After every test the processes must be the same as before, and a good request must be answered.
"""

import gzip
import json
import random
import socket
import zlib
from contextlib import closing

import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as wire

from lrai.testing import models, start_server

LIMIT_S = 8
INFER = "/v2/models/plain/infer"
CALL = "/inference.GRPCInferenceService/ModelInfer"
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
GOOD = json.dumps({"inputs": [TENSOR]}).encode()
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def server(tmp_path_factory, write_model):
    folder = tmp_path_factory.mktemp("malformed")
    models.identity(folder / "plain.onnx")
    models.identity(folder / "text.onnx", "BYTES", ["N"])
    models.identity(folder / "byte.onnx", "UINT8", ["N", "M"])
    write_model(folder / "slow")
    flags = ("--max-body-bytes=1MiB", "--header-timeout=300ms", "--body-timeout=300ms")
    with start_server(folder, *flags, "--model-control-mode=explicit", "--load-model=*") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_died(server, http):
    before = alive(server)
    yield
    assert http(server.http, INFER, GOOD).json["outputs"][0]["data"] == [1, 2, 3, 4]
    assert alive(server) == before


def alive(server):
    return [server.process.pid, server.template(), *server.actors()]


def exchange(address, payload, is_end=False):
    """Send bytes, then read until the server closes; fails if it does not in time.

    With `is_end` the server is told that nothing more will come; it may then take us for gone.
    """
    host, port = address.split(":")
    got = b""
    with closing(socket.create_connection((host, int(port)), LIMIT_S)) as connection:
        try:
            connection.sendall(payload)
            if is_end:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                got += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
    return got


def request(body=b"", *headers, path=INFER, method="POST"):
    """A well-formed request, after which the connection shall end."""
    length = [f"Content-Length: {len(body)}"] if isinstance(body, bytes) else []
    lines = [f"{method} {path} HTTP/1.1", "Host: lrai", "Connection: close", *length, *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def refusal(got):
    """Status and error text of a refusal over HTTP/1.1."""
    head, _, body = got.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert 400 <= status < 500 or status == 501, got[:300]
    return status, json.loads(body)["error"] if body else ""


# ---- heads and framing -----------------------------------------------------------------------

HEAD = b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: lrai\r\nConnection: close\r\n"
HEADS = {
    "nothing": b"",
    "half a method": b"GE",
    "no version": b"GET /v2\r\n\r\n",
    "half a head": b"GET /v2 HTTP/1.1\r\nHos",
    "a future version": b"GET /v2 HTTP/9.9\r\n\r\n",
    "a method with an at sign": b"G@T /v2 HTTP/1.1\r\n\r\n",
    "no method": b" /v2 HTTP/1.1\r\n\r\n",
    "a path with a space": b"GET /v2 /x HTTP/1.1\r\n\r\n",
    "a path with a zero": b"GET /v2\x00 HTTP/1.1\r\n\r\n",
    "a path of other bytes": b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
    "a header without a colon": b"GET /v2 HTTP/1.1\r\nnonsense\r\n\r\n",
    "a header with a zero": b"GET /v2 HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    "a folded header": b"GET /v2 HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    "a huge header": b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n",
    "many headers": b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "an endless path": b"GET /" + b"a" * 2_000_000,
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length with a plus": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a hexadecimal length": HEAD + b"Content-Length: 0x2\r\n\r\n{}",
    "a length of 20 digits": HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    "a length above the limit": HEAD + b"Content-Length: 18446744073709551615\r\n\r\n{}",
    "a body shorter than its length": HEAD + b"Content-Length: 50\r\n\r\n{}",
    "an unknown transfer coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "no chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    "a huge chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n{}",
    "a longer chunk than huge": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n1FFFFFFFFFFFFFFFFF\r\n{}",
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{}",
    "a chunk without an end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}X\r\n0\r\n\r\n",
    "an endless chunk extension": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n2;"
    + b"a" * 200_000
    + b"\r\n{}\r\n0\r\n\r\n",
    "TLS": bytes.fromhex("160301020001000 1fc0303".replace(" ", "")) + bytes(300),
    "HTTP/2 without its end": PREFACE[:-2],
    "HTTP/2 that turns out as HTTP/1": b"PRI /v2 HTTP/1.1\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("is_end", [True, False], ids=["ended", "left open"])
@pytest.mark.parametrize("name", HEADS)
def test_a_broken_head_is_refused_or_cut(server, name, is_end):
    got = exchange(server.http, HEADS[name], is_end)
    assert not got or refusal(got)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_broken_head_on_the_grpc_port_is_refused_or_cut(server, name):
    got = exchange(server.grpc, HEADS[name], is_end=True)
    assert not got or refusal(got)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", INFER, 405),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/plain", 405),
        ("POST", "/v2/health/live", 405),
        ("PATCH", "/v2", 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/metrics", 405),
        ("POST", "/nowhere", 404),
        ("GET", "/v2/models/plain/versions/x", 404),
        ("GET", "/v2/models/plain/versions/1/nowhere", 404),
        ("GET", "/v2/models/%ZZ", 404),
        ("GET", "/v2/models/%ff", 400),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 400),
        ("GET", "/v2/models/" + "a" * 30_000, 404),
        ("POST", "/v2/repository/models/..%2fx/load", 400),
        ("POST", "/v2/repository/models/nobody/load", 404),
        ("OPTIONS", "/v2", 405),
        ("CONNECT", "lrai:80", 404),
        ("TRACE", "/v2", 405),
    ],
)
def test_a_wrong_method_or_path_is_refused(server, method, path, status):
    assert refusal(exchange(server.http, request(method=method, path=path)))[0] == status


# ---- bodies ------------------------------------------------------------------------------------


def tensor(**fields):
    return json.dumps({"inputs": [{**TENSOR, **fields}]}).encode()


def binary(size, blob=b"", **fields):
    """A binary request whose head declares `size` bytes."""
    described = {**TENSOR, "parameters": {"binary_data_size": size}, **fields}
    del described["data"]
    head = json.dumps({"inputs": [described]}).encode()
    return head + blob, f"Inference-Header-Content-Length: {len(head)}"


DEEP = 100_000
NUMBERS = (b"1e999999", b"-", b"01", b"1.", b".5", b"0x1", b"+1", b"NaN1", b"1e", b"--1")
BODIES = {
    "nothing": b"",
    "no JSON": b"hello",
    "half of it": GOOD[:-5],
    "more than it": GOOD + b"x",
    "a list": b"[]",
    "null": b"null",
    "no inputs": b"{}",
    "inputs that are no list": b'{"inputs": {}}',
    "an input that is no object": b'{"inputs": [1]}',
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "a key that is no text": b'{1: 2, "inputs": []}',
    "a lone surrogate as a name": tensor(name="\ud800"),
    "no UTF-8": b'{"inputs": [{"name": "\xff"}]}',
    "a control letter": b'{"inputs": [{"name": "a\nb"}]}',
    "a bad escape": rb'{"inputs": [{"name": "\x"}]}',
    "half an escape": rb'{"inputs": [{"name": "\u12',
    "deep lists": b"[" * DEEP,
    "deep lists that end": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep data": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":' + b"[" * DEEP,
    "deep parameters": b'{"parameters":' + b'{"a":' * DEEP,
    "a deep parameter": b'{"parameters":{"a":' + b"[" * DEEP + b"]" * DEEP + b'}, "inputs": []}',
    "a deep id": b'{"id":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "an id that is a number": b'{"id": 7, "inputs": []}',
    "huge shape": tensor(shape=[2**62, 2**62]),
    "a dimension above 64 bits": tensor(shape=[2**64]),
    "the largest dimension": tensor(shape=[1, 2**63 - 1]),
    "many dimensions": tensor(shape=[1] * 70_000),
    "a real dimension": tensor(shape=[1.5, 4]),
    "a text dimension": tensor(shape=["1", 4]),
    "a negative dimension": tensor(shape=[-1, 4]),
    "no shape": tensor(shape=None),
    "an unknown datatype": tensor(datatype="FP128"),
    "fewer elements": tensor(data=[1, 2, 3]),
    "more elements": tensor(data=[1, 2, 3, 4, 5]),
    "texts for numbers": tensor(data=["a"] * 4),
    "nulls for numbers": tensor(data=[None] * 4),
    "objects for numbers": tensor(data=[{}] * 4),
    "a number for a list": tensor(data=1),
    "an object for a list": tensor(data={"0": 1}),
    "ragged lists": tensor(data=[[1, 2, 3], [4, 5]]),
    "many inputs": json.dumps({"inputs": [TENSOR] * 5000}).encode(),
    "many outputs": json.dumps({"inputs": [TENSOR], "outputs": [{"name": "y"}] * 5000}).encode(),
    "both data and size": tensor(parameters={"binary_data_size": 16}),
    "a size without a head": binary(16)[0],
} | {f"the number {text.decode()}": GOOD.replace(b"1, 2", text + b", 2") for text in NUMBERS}


@pytest.mark.parametrize("name", BODIES)
def test_a_broken_body_is_refused(server, name):
    status, error = refusal(exchange(server.http, request(BODIES[name])))
    assert status == 400
    assert 0 < len(error) < 3000


@pytest.mark.parametrize("value", [256, -1, 1.5, 1e3, True, "1", None, 2**64, -(2**70)])
def test_a_number_that_does_not_fit_is_refused(server, value):
    body = tensor(datatype="UINT8", shape=[1, 1], data=[value])
    got = exchange(server.http, request(body, path="/v2/models/byte/infer"))
    assert refusal(got)[0] == 400


@pytest.mark.parametrize("text", [1, None, [], {}, True])
def test_what_is_no_text_is_refused(server, text):
    body = tensor(datatype="BYTES", shape=[1], data=[text])
    got = exchange(server.http, request(body, path="/v2/models/text/infer"))
    assert refusal(got)[0] == 400


HEAD_SIZES = ["-1", "x", "", "1e3", "99999999999999999999", "1000000", "0x10", "5"]


@pytest.mark.parametrize("size", HEAD_SIZES)
def test_a_wrong_head_length_is_refused(server, size):
    headers = f"Inference-Header-Content-Length: {size}"
    assert refusal(exchange(server.http, request(GOOD, headers)))[0] == 400


@pytest.mark.parametrize("size", [-1, 15, 17, 2**31, 2**63, 2**64 - 1, 2**64, 1.5, "16", None])
def test_a_wrong_blob_size_is_refused(server, size):
    body, header = binary(size, bytes(16))
    assert refusal(exchange(server.http, request(body, header)))[0] == 400


@pytest.mark.parametrize("blob", [b"\x01", b"\xff\xff\xff\xff", b"\x05\0\0\0abc", bytes(8)])
def test_texts_that_point_behind_their_end_are_refused(server, blob):
    body, header = binary(len(blob), blob, datatype="BYTES", shape=[1])
    got = exchange(server.http, request(body, header, path="/v2/models/text/infer"))
    assert refusal(got)[0] == 400


PACKED = gzip.compress(GOOD)
BOMB = gzip.compress(bytes(50 << 20), 9)
CODED = {
    "no gzip": (b"hello", "gzip", 400),
    "half of it": (PACKED[:-12], "gzip", 400),
    "a wrong checksum": (PACKED[:-8] + bytes(8), "gzip", 400),
    "deflate without its head": (zlib.compress(GOOD)[2:-4], "deflate", 400),
    "gzip called deflate": (PACKED, "deflate", 400),
    "nothing": (b"", "gzip", 400),
    "another coding": (GOOD, "br", 501),
    "two codings": (gzip.compress(PACKED), "gzip, gzip", 501),
    "a bomb": (BOMB, "gzip", 413),
    "a bomb in a bomb": (gzip.compress(BOMB), "gzip", 400),
    "a deflate bomb": (zlib.compress(bytes(50 << 20), 9), "deflate", 413),
    "deep lists": (gzip.compress(b"[" * 1_000_000), "gzip", 400),
}


@pytest.mark.parametrize("name", CODED)
def test_a_broken_coding_is_refused(server, name):
    body, coding, status = CODED[name]
    got = exchange(server.http, request(body, f"Content-Encoding: {coding}"))
    assert refusal(got)[0] == status


@pytest.mark.parametrize(
    "body", [b"[", b"[]", b'{"parameters": 1}', b"[" * DEEP, b'{"a":' * DEEP, b'{"ready": 1}']
)
@pytest.mark.parametrize("action", ["models/plain/load", "index"])
def test_a_broken_command_is_refused(server, http, action, body):
    got = exchange(server.http, request(body, path=f"/v2/repository/{action}"))
    is_fine = (action, body) in (
        ("index", b'{"parameters": 1}'),
        ("models/plain/load", b'{"ready": 1}'),
    )
    assert is_fine or refusal(got)[0] == 400


def test_a_broken_configuration_is_refused_and_the_model_stays(server):
    fields = ("max_batch_size", "instance_group", "input", "version_policy", "dynamic_batching")
    configs = ["[", "[]", "7", "[" * 5000, '{"backend": "../x"}', '{"input": [1]}']
    for config in (*configs, *(json.dumps({field: "x"}) for field in fields)):
        body = json.dumps({"parameters": {"config": config}}).encode()
        got = exchange(server.http, request(body, path="/v2/repository/models/plain/load"))
        assert refusal(got)[0] == 400, config


# ---- HTTP/2 and gRPC -----------------------------------------------------------------------------


def message_of(**fields):
    good = wire.ModelInferRequest(model_name="plain")
    good.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    good.raw_input_contents.append(np.arange(4, dtype=np.float32).tobytes())
    for key, value in fields.items():
        setattr(good, key, value)
    return good


def framed(message, flag=0, length=None):
    message = message if isinstance(message, bytes) else message.SerializeToString()
    return bytes([flag]) + (len(message) if length is None else length).to_bytes(4, "big") + message


def call(server, body, path=CALL, **headers):
    """Make a gRPC call with these bytes as its body; return its status, or what ended it."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    fields = {"content-type": "application/grpc", "te": "trailers", **headers}
    pseudo = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "lrai"}
    connection.send_headers(1, [*pseudo.items(), *fields.items()])
    for start in range(0, len(body), 16_000):
        connection.send_data(1, body[start : start + 16_000])
    connection.end_stream(1)
    host, port = server.grpc.split(":")
    seen = {}
    with closing(socket.create_connection((host, int(port)), LIMIT_S)) as link:
        link.sendall(connection.data_to_send())
        while data := link.recv(65536):
            for event in connection.receive_data(data):
                seen.update(dict(getattr(event, "headers", None) or {}))
                if isinstance(event, h2.events.StreamEnded):
                    return seen.get(b"grpc-status", seen.get(b":status")).decode()
                if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return f"reset {event.error_code!r}"
            link.sendall(connection.data_to_send())
    return "closed"


def both_contents():
    message = message_of()
    message.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    return message


def wrong_contents():
    message = message_of()
    message.inputs[0].contents.bool_contents.extend([True] * 4)
    del message.raw_input_contents[:]
    return message


def with_shape(*shape):
    message = message_of()
    message.inputs[0].shape[:] = shape
    return message


def twice(field):
    message = message_of()
    message.MergeFrom(message_of()) if field == "inputs" else None
    if field == "raw":
        message.raw_input_contents.append(b"1234")
    return message


MESSAGES = {
    "no message": b"",
    "half a prefix": b"\0\0",
    "a prefix alone": b"\0\0\0\0\5",
    "a message longer than said": framed(b"abc", length=1),
    "a message shorter than said": framed(message_of(), length=1000),
    "4 GiB": framed(b"abc", length=2**32 - 1),
    "an unknown flag": framed(message_of(), flag=2),
    "compressed without a coding": framed(message_of(), flag=1),
    "two messages": framed(message_of()) * 2,
    "no protobuf": framed(b"\xff" * 100),
    "deep groups": framed(b"\x0b" * 50_000),
    "a field longer than its message": framed(b"\x0a\xff\xff\xff\xff\x0f"),
    "no UTF-8": framed(b"\x0a\x02\xff\xfe"),
    "no model": framed(message_of(model_name="")),
    "an unknown model": framed(message_of(model_name="nobody")),
    "raw and typed": framed(both_contents()),
    "typed as another type": framed(wrong_contents()),
    "more blobs than inputs": framed(twice("raw")),
    "an input twice": framed(twice("inputs")),
    "a negative shape": framed(with_shape(-1, 4)),
    "a huge shape": framed(with_shape(2**62, 2**62)),
    "the smallest dimension": framed(with_shape(-(2**63), 4)),
    "many dimensions": framed(with_shape(*[1] * 30_000)),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_broken_call_is_refused(server, name):
    assert call(server, MESSAGES[name]) not in ("0", "200", "closed")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"grpc-encoding": "gzip"}, framed(b"hello", flag=1)),
        ({"grpc-encoding": "gzip"}, framed(BOMB, flag=1)),
        ({"grpc-encoding": "snappy"}, framed(message_of(), flag=1)),
        ({"grpc-timeout": "soon"}, framed(message_of())),
        ({"grpc-timeout": "99999999999S"}, framed(message_of())),
        ({"content-type": "application/json"}, framed(message_of())),
        ({"path": "/inference.GRPCInferenceService/Nothing"}, framed(message_of())),
        ({"path": "/nothing.Service/Nothing"}, framed(message_of())),
        ({"path": "/inference.GRPCInferenceService/RepositoryModelLoad"}, framed(b"\xff" * 9)),
        ({"path": "/grpc.health.v1.Health/Check"}, framed(b"\xff" * 9)),
    ],
    ids=str,
)
def test_a_call_with_a_broken_head_is_refused(server, headers, body):
    assert call(server, body, **headers) not in ("0", "200", "closed")


def frame(kind, payload=b"", flags=0, stream=0, length=None):
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
FRAMES = {
    "no settings": frame(PING, bytes(8)),
    "settings of a wrong size": frame(SETTINGS, bytes(5)),
    "settings on a stream": frame(SETTINGS, stream=1),
    "an endless window": frame(SETTINGS, bytes.fromhex("0004ffffffff")),
    "data on no stream": frame(SETTINGS) + frame(DATA, b"x"),
    "data on a stream that is not open": frame(SETTINGS) + frame(DATA, b"x", stream=1),
    "headers on no stream": frame(SETTINGS) + frame(HEADERS, b"\x82", flags=4),
    "headers on a server's stream": frame(SETTINGS) + frame(HEADERS, b"\x82", flags=4, stream=2),
    "headers that point nowhere": frame(SETTINGS) + frame(HEADERS, b"\xff\xff\x7f", 5, 1),
    "headers that are text": frame(SETTINGS) + frame(HEADERS, b"GET / HTTP/1.1", 5, 1),
    "padding longer than its frame": frame(SETTINGS) + frame(HEADERS, b"\xff\x82", 13, 1),
    "headers without an end": frame(SETTINGS)
    + frame(HEADERS, b"\x82", 0, 1)
    + frame(PING, bytes(8)),
    "a continuation of nothing": frame(SETTINGS) + frame(CONTINUATION, b"\x82", 4, 1),
    "endless continuations": frame(SETTINGS)
    + frame(HEADERS, b"\x82", 1, 1)
    + frame(CONTINUATION, b"\x00\x01a\x01b" * 1000, 0, 1) * 200,
    "a stream that depends on itself": frame(SETTINGS) + frame(PRIORITY, b"\0\0\0\1\0", 0, 1),
    "a window that grows by nothing": frame(SETTINGS) + frame(WINDOW, bytes(4)),
    "a window that overflows": frame(SETTINGS) + frame(WINDOW, b"\x7f\xff\xff\xff") * 3,
    "a ping of a wrong size": frame(SETTINGS) + frame(PING, bytes(7)),
    "a reset of nothing": frame(SETTINGS) + frame(RESET, bytes(4), stream=1),
    "a push": frame(SETTINGS) + frame(PUSH, bytes(5), 4, 1),
    "a frame above the limit": frame(SETTINGS) + frame(DATA, b"x", stream=1, length=0xFFFFFF),
    "half a frame": frame(SETTINGS) + frame(SETTINGS, b"\0\1", length=6),
    "an unknown frame": frame(SETTINGS) + frame(99, b"x" * 100),
    "many pings": frame(SETTINGS) + frame(PING, bytes(8)) * 20_000,
    "many settings": frame(SETTINGS) * 20_000,
    "a goodbye": frame(SETTINGS) + frame(GOAWAY, bytes(8)),
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize(("face", "is_end"), [("http", False), ("grpc", True)])
def test_broken_frames_end_the_connection_at_most(server, face, is_end, name):
    exchange(getattr(server, face), PREFACE + FRAMES[name], is_end)


def test_streams_that_are_reset_at_once_cost_nothing(server):
    """The attack known as rapid reset."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    head = [(":method", "POST"), (":scheme", "http"), (":path", CALL), (":authority", "lrai")]
    for stream in range(1, 4001, 2):
        connection.send_headers(stream, [*head, ("content-type", "application/grpc")])
        connection.reset_stream(stream)
    exchange(server.grpc, connection.data_to_send(), is_end=True)


# ---- chance --------------------------------------------------------------------------------------


@st.composite
def damaged(draw, good):
    """`good` with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        kind = draw(st.sampled_from(("put", "cut", "double", "end")))
        if kind == "put":
            data[at : at + length] = draw(st.binary(max_size=12))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 3))
        else:
            del data[at:]
    return bytes(data)


def is_typed(got):
    return not got or got.startswith((b"HTTP/1.", b"\0"))


@FUZZ
@given(data=st.binary(max_size=400))
@pytest.mark.parametrize("face", ["http", "grpc", "metrics"])
def test_random_bytes_are_refused_or_cut(server, face, data):
    assert is_typed(exchange(getattr(server, face), data, is_end=True))


@FUZZ
@given(data=damaged(request(GOOD)))
def test_damaged_requests_are_answered_or_cut(server, data):
    assert is_typed(exchange(server.http, data, is_end=True))


@FUZZ
@given(data=damaged(GOOD))
def test_damaged_json_is_answered(server, data):
    got = exchange(server.http, request(data))
    assert got.startswith(b"HTTP/1.1 200 ") or refusal(got)


@FUZZ
@given(data=damaged(b"".join(binary(16, bytes(16))[:1])))
def test_damaged_binary_requests_are_answered(server, data):
    got = exchange(server.http, request(data, "Inference-Header-Content-Length: 96"))
    assert got.startswith(b"HTTP/1.1 200 ") or refusal(got)


@FUZZ
@given(data=damaged(framed(message_of())))
def test_damaged_messages_are_answered(server, data):
    assert call(server, data).isdigit()


@FUZZ
@given(data=st.binary(max_size=300))
def test_random_frames_end_the_connection_at_most(server, data):
    exchange(server.grpc, PREFACE + frame(SETTINGS) + data, is_end=True)


def test_many_broken_requests_at_once_hurt_no_other(server, http):
    """Connections that stay open with broken requests on them, while good ones are answered."""
    order = random.Random(3)
    names = sorted(HEADS, key=lambda _: order.random())
    opened = []
    for name in names * 3:
        host, port = server.http.split(":")
        opened.append(socket.create_connection((host, int(port)), LIMIT_S))
        try:
            opened[-1].sendall(HEADS[name][:10_000])
        except OSError:
            continue
        if len(opened) % 10 == 0:
            assert http(server.http, INFER, GOOD).status == 200
    for one in opened:
        one.close()
