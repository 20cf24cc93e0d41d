"""Makes requests of the Open Inference Protocol as the bytes that travel: JSON, binary, gRPC."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from lrai.backends.tensors import Array
from lrai.cli.tensors import decode_tensor, encode_tensor, plain_values, read_array, zeros
from lrai.errors import ConfigError

INFER_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_ONLY_BINARY: Final = ("FP16", "BF16")
# Small enough for the vocabulary of any model that looks them up.
_LARGEST_INTEGER: Final = 9
_LEVELS: Final = 256


@dataclass(frozen=True)
class Shape:
    """What one input of a request looks like."""

    name: str
    datatype: str
    """The protocol's name, such as FP32; empty = as the model says."""
    dims: tuple[int, ...]
    """-1 where the model leaves it open."""


@dataclass(frozen=True)
class Tensor:
    """One input of a request, with its values."""

    name: str
    datatype: str
    array: Array


def read_shape(text: str) -> Shape:
    """Read name:1,3,224,224 or name:1,3,224,224:FP32."""
    name, _, rest = text.partition(":")
    dims, _, datatype = rest.partition(":")
    try:
        sizes = tuple(int(size) for size in dims.split(",") if size)
        if not name or not rest or min(sizes, default=0) < 0:
            raise ValueError(text)
    except ValueError as error:
        hint = "write it as name:1,3,224,224 or name:1,3,224,224:FP32"
        raise ConfigError(f"--shape {text!r} is no shape", hint=hint) from error
    return Shape(name, datatype.upper(), sizes)


def choose_shapes(inputs: Sequence[Shape], given: Sequence[Shape], rows: int) -> list[Shape]:
    """Give the model's inputs the shapes that were asked for, and rows where the first is open."""
    asked = {shape.name: shape for shape in given}
    known = {shape.name for shape in inputs}
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(f"--shape names {unknown[0]!r}", hint=f"inputs are {sorted(known)}")
    chosen = []
    for shape in inputs:
        dims = asked[shape.name].dims if shape.name in asked else shape.dims
        if dims[:1] == (-1,):
            dims = (rows, *dims[1:])
        if -1 in dims:
            hint = f"say which, such as --shape {shape.name}:{','.join(map(_example_size, dims))}"
            raise ConfigError(f"input {shape.name!r} takes any of {list(dims)}", hint=hint)
        chosen.append(Shape(shape.name, shape.datatype, dims))
    return chosen


def make_tensors(shapes: Sequence[Shape], data: str, seed: int) -> list[Tensor]:
    """Fill the shapes: `random`, `zero`, an .npy file for a single input, or a .json request."""
    if data in ("random", "zero"):
        random = np.random.default_rng(seed) if data == "random" else None
        return [Tensor(one.name, one.datatype, _values(one, random)) for one in shapes]
    if data.endswith(".json"):
        return _read_request(Path(data))
    if len(shapes) != 1:
        hint = "use a .json file with a whole request"
        raise ConfigError(f"--data {data} is for one input, the model has {len(shapes)}", hint=hint)
    (shape,) = shapes
    return [Tensor(shape.name, shape.datatype, read_array(data, shape.datatype, shape.dims))]


def http_request(path: str, host: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a whole POST as it travels over HTTP/1.1."""
    fields = {"Host": host, "Accept": "*/*", **headers, "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def json_body(tensors: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:
    """Return a JSON request's body and its header fields."""
    for tensor in tensors:
        if tensor.datatype in _ONLY_BINARY:
            message = f"input {tensor.name!r} is {tensor.datatype}, which JSON cannot carry"
            raise ConfigError(message, hint="use --protocol http-binary or grpc")
    inputs = [{**_head(tensor), "data": plain_values(tensor.array)} for tensor in tensors]
    body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    return body, {"Content-Type": "application/json"}


def binary_body(tensors: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:
    """Return the body and the header fields of a request in the binary tensor extension."""
    blobs = [encode_tensor(tensor.array, tensor.datatype) for tensor in tensors]
    inputs = [
        {**_head(tensor), "parameters": {"binary_data_size": len(blob)}}
        for tensor, blob in zip(tensors, blobs, strict=True)
    ]
    request = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    head = json.dumps(request, separators=(",", ":")).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return head + b"".join(blobs), {"Content-Type": "application/octet-stream", **length}


def grpc_message(model: str, version: str, tensors: Sequence[Tensor]) -> bytes:
    """Return a ModelInferRequest with raw contents; by hand, as it needs three kinds of field."""
    parts = [_field(1, model.encode()), _field(2, version.encode()) if version else b""]
    for tensor in tensors:
        dims = b"".join(_varint(size) for size in tensor.array.shape)
        name, datatype = _field(1, tensor.name.encode()), _field(2, tensor.datatype.encode())
        parts.append(_field(5, name + datatype + _field(3, dims)))
    parts += [_field(7, encode_tensor(tensor.array, tensor.datatype)) for tensor in tensors]
    return b"".join(parts)


def _values(shape: Shape, random: np.random.Generator | None) -> Array:
    if shape.datatype == "BYTES":
        return np.full(shape.dims, b"text", object)
    array = zeros(shape.datatype, shape.dims)
    if random is None:
        return array
    if array.dtype.kind == "f":
        return np.asarray(random.standard_normal(shape.dims, np.float32)).astype(array.dtype)
    high = {"BOOL": 2, "UINT8": _LEVELS}.get(shape.datatype, _LARGEST_INTEGER + 1)
    return np.asarray(random.integers(0, high, shape.dims)).astype(array.dtype)


def _read_request(file: Path) -> list[Tensor]:
    try:
        inputs = json.loads(file.read_text(encoding="utf-8"))["inputs"]
        return [
            Tensor(
                one["name"],
                one["datatype"],
                decode_tensor(one["data"], one["datatype"], one["shape"]),
            )
            for one in inputs
        ]
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        hint = 'it should hold {"inputs": [{"name", "shape", "datatype", "data"}]}'
        raise ConfigError(f"{file} is no inference request: {error!r}", hint=hint) from error


def _head(tensor: Tensor) -> dict[str, object]:
    dims = list(tensor.array.shape)
    return {"name": tensor.name, "shape": dims, "datatype": tensor.datatype}


def _example_size(size: int) -> str:
    return "128" if size < 0 else str(size)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    return bytes([number & 0x7F | 0x80]) + _varint(number >> 7)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
