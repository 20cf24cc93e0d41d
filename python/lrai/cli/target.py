"""What `lrai bench` sends and where: from an address and a model to bytes that travel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from lrai.cli import encode
from lrai.cli.client import Client, model_path
from lrai.errors import ConfigError, LraiError

PROTOCOLS: Final = ("http-json", "http-binary", "grpc")
# Different requests, so that no cache answers; few enough to fit a processor's own cache.
_MOST_REQUESTS, _MOST_BYTES = 16, 32 << 20
_DEFAULT_PORT: Final = {"http": 8000, "grpc": 8001}


@dataclass(frozen=True)
class Address:
    """Where a load goes."""

    place: str
    """HOST:PORT or unix:/PATH."""
    scheme: Literal["http", "grpc"]
    host: str
    prefix: str
    """Path in front of all others, of a server behind a proxy."""

    @property
    def authority(self) -> str:
        """What the Host field says."""
        return self.host if self.place.startswith("unix:") else self.place


@dataclass(frozen=True)
class Target:
    """Where the load goes, and what it is; whole requests, or messages of gRPC."""

    address: Address
    path: str
    requests: tuple[bytes, ...]


@dataclass(frozen=True)
class Ask:
    """What to ask a model."""

    model: str
    version: str
    protocol: str
    shapes: tuple[encode.Shape, ...]
    data: str
    rows: int
    seed: int


def read_address(url: str, protocol: str) -> Address:
    """Read http://HOST:PORT, grpc://HOST:PORT, HOST:PORT or unix:/PATH."""
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"--protocol is {protocol!r}", hint=f"it is one of {', '.join(PROTOCOLS)}"
        )
    scheme: Literal["http", "grpc"] = "grpc" if protocol == "grpc" else "http"
    if url.startswith("unix:"):
        return Address(
            "unix:" + url.removeprefix("unix:").replace("//", "", 1), scheme, "localhost", ""
        )
    parts = urlsplit(url if "//" in url else f"{scheme}://{url}")
    if parts.scheme != scheme or not parts.hostname:
        hint = f"write it as {scheme}://HOST:{_DEFAULT_PORT[scheme]}"
        raise ConfigError(f"{url!r} is no address for --protocol {protocol}", hint=hint)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = f"{host}:{parts.port or _DEFAULT_PORT[scheme]}"
    return Address(place, scheme, host, parts.path.rstrip("/"))


def plain_target(address: Address, path: str, file: Path | None, content_type: str) -> Target:
    """Send one file to one path, whatever they mean."""
    try:
        body = file.read_bytes() if file else b""
    except OSError as error:
        raise ConfigError(f"--body {file} cannot be read: {error.strerror or error}") from error
    if address.scheme == "grpc":
        return Target(address, path, (body,))
    fields = {"Content-Type": content_type}
    return Target(address, path, (encode.http_request(path, address.authority, body, fields),))


def model_target(address: Address, ask: Ask, metadata_url: str) -> Target:
    """Ask a model, with inputs as its metadata says; unless all shapes have a datatype."""
    if not ask.model:
        raise ConfigError("no model is named", hint="add --model NAME, or --path and --body")
    shapes = list(ask.shapes)
    if not ask.data.endswith(".json") and not (shapes and all(one.datatype for one in shapes)):
        shapes = _model_inputs(metadata_url or _metadata_url(address), ask)
        if ask.data in ("random", "zero"):
            shapes = encode.choose_shapes(shapes, ask.shapes, ask.rows)
    path = f"{address.prefix}{model_path(ask.model, ask.version)}/infer"
    if address.scheme == "grpc":
        path = encode.INFER_METHOD
    requests: list[bytes] = []
    while len(requests) < _MOST_REQUESTS and sum(map(len, requests)) < _MOST_BYTES:
        tensors = encode.make_tensors(shapes, ask.data, ask.seed + len(requests))
        requests.append(_request(address, path, ask, tensors))
        if ask.data != "random":
            break
    return Target(address, path, tuple(requests))


def _metadata_url(address: Address) -> str:
    if address.place.startswith("unix:"):
        raise ConfigError("metadata is read over TCP", hint="add --metadata-url http://HOST:PORT")
    place = address.place if address.scheme == "http" else f"{address.host}:{_DEFAULT_PORT['http']}"
    return f"http://{place}{address.prefix}"


def _model_inputs(url: str, ask: Ask) -> list[encode.Shape]:
    metadata = Client(url).get(model_path(ask.model, ask.version))
    try:
        return [
            encode.Shape(one["name"], one["datatype"], tuple(int(size) for size in one["shape"]))
            for one in metadata["inputs"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        message = f"{url} described the model in a way that cannot be read: {error!r}"
        hint = "give every input as --shape NAME:1,3,224,224:FP32"
        raise LraiError(message, hint=hint) from error


def _request(address: Address, path: str, ask: Ask, tensors: Sequence[encode.Tensor]) -> bytes:
    if address.scheme == "grpc":
        return encode.grpc_message(ask.model, ask.version, tensors)
    make = encode.binary_body if ask.protocol == "http-binary" else encode.json_body
    body, fields = make(tensors)
    return encode.http_request(path, address.authority, body, fields)
