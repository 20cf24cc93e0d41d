import json
from pathlib import Path

import numpy as np
import pytest

from lrai.cli import encode
from lrai.cli.encode import Shape, Tensor
from lrai.errors import ConfigError

OPEN = [Shape("ids", "INT64", (-1, -1)), Shape("mask", "INT64", (-1, 8))]
PAIR = [
    Tensor("x", "FP32", np.array([[1.5, -2.0]], np.float32)),
    Tensor("words", "BYTES", np.array([[b"a", b""]], object)),
]


def test_shape_is_read_with_and_without_its_datatype() -> None:
    assert encode.read_shape("x:1,3,224,224") == Shape("x", "", (1, 3, 224, 224))
    assert encode.read_shape("x:2:fp16") == Shape("x", "FP16", (2,))


@pytest.mark.parametrize("text", ["x", "x:", ":1", "x:1,a", "x:-1,2"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no shape"):
        encode.read_shape(text)


def test_rows_fill_the_first_dimension_and_a_shape_fills_all() -> None:
    chosen = encode.choose_shapes(OPEN, [Shape("ids", "", (4, 16))], rows=4)
    assert [shape.dims for shape in chosen] == [(4, 16), (4, 8)]
    assert {shape.datatype for shape in chosen} == {"INT64"}


def test_open_dimension_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigError, match=r"hint: say which, such as --shape ids:1,128"):
        encode.choose_shapes(OPEN, [], rows=1)


def test_shape_of_an_unknown_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="names 'y' hint: inputs are"):
        encode.choose_shapes(OPEN, [Shape("y", "", (1,))], rows=1)


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT32", "FP16", "BF16", "FP64", "BYTES"])
def test_random_values_fit_their_datatype_and_repeat_by_seed(datatype: str) -> None:
    shapes = [Shape("x", datatype, (2, 50))]
    (first,), (again,), (other,) = (
        encode.make_tensors(shapes, "random", seed) for seed in (1, 1, 2)
    )
    assert first.array.shape == (2, 50)
    assert first.array.tolist() == again.array.tolist()
    assert datatype == "BYTES" or first.array.tolist() != other.array.tolist()


def test_request_in_a_file_is_read_with_its_shapes(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    inputs = [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3, 4]}]
    file.write_text(json.dumps({"inputs": inputs}))
    (tensor,) = encode.make_tensors([], str(file), 0)
    assert tensor.array.tolist() == [[3.0, 4.0]]
    file.write_text('{"inputs": [{}]}')
    with pytest.raises(ConfigError, match="is no inference request"):
        encode.make_tensors([], str(file), 0)


def test_json_body_is_what_the_protocol_wants() -> None:
    body, fields = encode.json_body(PAIR)
    assert fields == {"Content-Type": "application/json"}
    assert json.loads(body)["inputs"] == [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, -2.0]},
        {"name": "words", "shape": [1, 2], "datatype": "BYTES", "data": ["a", ""]},
    ]


def test_json_refuses_half_precision() -> None:
    half = Tensor("x", "FP16", np.zeros(2, np.float16))
    with pytest.raises(ConfigError, match="hint: use --protocol http-binary"):
        encode.json_body([half])


def test_binary_body_has_its_head_length_and_blobs_in_order() -> None:
    body, fields = encode.binary_body(PAIR)
    at = int(fields["Inference-Header-Content-Length"])
    sizes = [one["parameters"]["binary_data_size"] for one in json.loads(body[:at])["inputs"]]
    assert sizes == [8, 9]
    assert body[at:] == np.array([1.5, -2.0], "<f4").tobytes() + b"\x01\0\0\0a" + b"\0\0\0\0"


def test_http_request_ends_its_head_and_tells_its_length() -> None:
    text = encode.http_request("/p", "h:1", b"body", {"X": "y"})
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /p HTTP/1.1"
    assert {b"Host: h:1", b"X: y", b"Content-Length: 4"} <= set(head.split(b"\r\n"))
    assert body == b"body"


def test_grpc_message_is_read_by_the_generated_classes() -> None:
    pb = pytest.importorskip("tritonclient.grpc.service_pb2")
    wide = Tensor("wide", "UINT8", np.zeros((300, 1000), np.uint8))
    message = pb.ModelInferRequest.FromString(encode.grpc_message("m", "3", [*PAIR, wide]))
    assert (message.model_name, message.model_version) == ("m", "3")
    described = [(one.name, one.datatype, list(one.shape)) for one in message.inputs]
    assert described == [
        ("x", "FP32", [1, 2]),
        ("words", "BYTES", [1, 2]),
        ("wide", "UINT8", [300, 1000]),
    ]
    assert [len(blob) for blob in message.raw_input_contents] == [8, 9, 300_000]
