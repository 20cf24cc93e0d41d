import json
from pathlib import Path

import pytest

from lrai.cli.encode import Shape
from lrai.cli.target import Ask, model_target, plain_target, read_address
from lrai.errors import ConfigError

SHAPES = (Shape("x", "FP32", (1, 2)),)


def ask(**changes: object) -> Ask:
    usual = {"model": "m", "version": "", "protocol": "http-json", "shapes": SHAPES}
    return Ask(**(usual | {"data": "random", "rows": 1, "seed": 0} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "protocol", "place", "prefix"),
    [
        ("http://127.0.0.1:9000", "http-json", "127.0.0.1:9000", ""),
        ("localhost:9000", "http-binary", "localhost:9000", ""),
        ("http://host/proxy/", "http-json", "host:8000", "/proxy"),
        ("grpc://[::1]:8001", "grpc", "[::1]:8001", ""),
        ("host", "grpc", "host:8001", ""),
        ("unix:/run/lrai.sock", "http-json", "unix:/run/lrai.sock", ""),
        ("unix:///run/lrai.sock", "grpc", "unix:/run/lrai.sock", ""),
    ],
)
def test_address_is_read(url: str, protocol: str, place: str, prefix: str) -> None:
    address = read_address(url, protocol)
    assert (address.place, address.prefix) == (place, prefix)


@pytest.mark.parametrize(
    ("url", "protocol", "hint"),
    [
        ("http://h:8000", "grpc", "write it as grpc://HOST:8001"),
        ("https://h", "http-json", "write it as http://HOST:8000"),
        ("http://h", "http2", "it is one of http-json, http-binary, grpc"),
    ],
)
def test_address_that_does_not_fit_is_refused(url: str, protocol: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"hint: {hint}"):
        read_address(url, protocol)


def test_random_requests_differ_and_given_ones_are_one() -> None:
    address = read_address("http://h:1/p", "http-json")
    target = model_target(address, ask(), "")
    assert len(set(target.requests)) == len(target.requests) > 1
    assert target.requests[0].startswith(b"POST /p/v2/models/m/infer HTTP/1.1\r\nHost: h:1\r\n")
    assert len(model_target(address, ask(data="zero"), "").requests) == 1


def test_protocols_make_their_own_requests() -> None:
    http, grpc = read_address("h", "http-binary"), read_address("h", "grpc")
    binary = model_target(http, ask(protocol="http-binary", version="2"), "")
    assert b"/v2/models/m/versions/2/infer" in binary.requests[0]
    assert b"Inference-Header-Content-Length" in binary.requests[0]
    called = model_target(grpc, ask(protocol="grpc"), "")
    assert called.path == "/inference.GRPCInferenceService/ModelInfer"
    assert called.requests[0].startswith(b"\x0a\x01m")


def test_huge_requests_are_few() -> None:
    huge = (Shape("x", "FP32", (8, 1 << 20)),)
    target = model_target(read_address("h", "grpc"), ask(shapes=huge, protocol="grpc"), "")
    assert len(target.requests) == 1


def test_any_path_takes_any_file(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"\0raw")
    target = plain_target(read_address("h:1", "http-json"), "/predict", body, "image/png")
    (request,) = target.requests
    assert request.endswith(b"\r\n\r\n\0raw")
    assert b"Content-Type: image/png\r\n" in request


def test_whole_request_of_a_file_needs_no_metadata(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    inputs = [{"name": "x", "shape": [1], "datatype": "INT64", "data": [7]}]
    file.write_text(json.dumps({"inputs": inputs}))
    socket = read_address("unix:/run/lrai.sock", "http-json")
    (request,) = model_target(socket, ask(shapes=(), data=str(file)), "").requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"Host: localhost\r\n" in head
    assert json.loads(body) == {"inputs": inputs}


def test_missing_pieces_are_named() -> None:
    with pytest.raises(ConfigError, match="no model is named hint: add --model"):
        model_target(read_address("h", "http-json"), ask(model=""), "")
    with pytest.raises(ConfigError, match="hint: add --metadata-url"):
        model_target(read_address("unix:/s", "http-json"), ask(shapes=()), "")
    with pytest.raises(ConfigError, match="cannot be read"):
        plain_target(read_address("h", "http-json"), "/p", Path("/nowhere/at/all"), "")
