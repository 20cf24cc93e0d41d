"""Request bodies of the Open Inference Protocol as bytes: JSON, binary extension, gRPC.

Written out by hand, so that neither a server's nor a client's library has a say in what is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.models import MODELS, Array

Face = Literal["json", "binary", "grpc"]
FACES: tuple[Face, ...] = ("json", "binary", "grpc")

GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True)
class Payload:
    """One request, ready to be sent over and over."""

    face: Face
    path: str
    headers: Mapping[str, str]
    body: bytes
    """For gRPC the protobuf message, without the five bytes of framing."""

    def http_request(self, address: str) -> bytes:
        """Head and body as they travel over HTTP/1.1."""
        headers = {"Host": address, **self.headers, "Content-Length": str(len(self.body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + self.body

    def write(self, folder: Path) -> Path:
        """Writes the body, framed if it is gRPC, to a file that a load generator can read."""
        path = folder / f"{self.path.strip('/').replace('/', '_')}.{self.face}"
        framing = b"\0" + len(self.body).to_bytes(4, "big") if self.face == "grpc" else b""
        path.write_bytes(framing + self.body)
        return path


def _numbers(values: Array) -> list[float] | list[int]:
    """The values as JSON shows them: integers stay, floats get their shortest four decimals."""
    if values.dtype == np.float32:
        return [round(float(value), 4) for value in values.ravel()]
    return [int(value) for value in values.ravel()]


def _describe(name: str, values: Array) -> dict[str, object]:
    return {"name": name, "shape": list(values.shape), "datatype": _DATATYPES[values.dtype.name]}


def _json(inputs: Mapping[str, Array]) -> tuple[dict[str, str], bytes]:
    described = [
        {**_describe(name, values), "data": _numbers(values)} for name, values in inputs.items()
    ]
    text = json.dumps({"inputs": described}, separators=(",", ":"))
    return {"Content-Type": "application/json"}, text.encode()


def _binary(inputs: Mapping[str, Array]) -> tuple[dict[str, str], bytes]:
    described = [
        {**_describe(name, values), "parameters": {"binary_data_size": values.nbytes}}
        for name, values in inputs.items()
    ]
    request = {"inputs": described, "parameters": {"binary_data_output": True}}
    head = json.dumps(request, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return headers, head + b"".join(values.tobytes() for values in inputs.values())


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _grpc(model: str, inputs: Mapping[str, Array]) -> bytes:
    """A ModelInferRequest with raw contents."""
    message = _field(1, model.encode())
    for name, values in inputs.items():
        shape = b"".join(_varint(size) for size in values.shape)
        datatype = _DATATYPES[values.dtype.name].encode()
        message += _field(5, _field(1, name.encode()) + _field(2, datatype) + _field(3, shape))
    for values in inputs.values():
        message += _field(7, values.tobytes())
    return message


def request(name: str, face: Face, inputs: Mapping[str, Array]) -> Payload:
    """A request with these inputs to the model that is served under that name."""
    if face == "grpc":
        return Payload(face, GRPC_PATH, {}, _grpc(name, inputs))
    headers, body = _json(inputs) if face == "json" else _binary(inputs)
    return Payload(face, f"/v2/models/{name}/infer", headers, body)


def payload(model: str, face: Face, rows: int = 1, served_as: str = "") -> Payload:
    """The benchmark request for that model, whatever name it is served under."""
    return request(served_as or model, face, MODELS[model].sample(rows))
