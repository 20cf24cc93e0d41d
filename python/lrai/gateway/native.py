"""The door to the native gateway: values on this side, JSON text on the other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

from lrai import _native
from lrai.config import Settings
from lrai.errors import DataPlaneError, LraiError, RepositoryError
from lrai.gateway.faces.journal import journal_config
from lrai.registry.index import IndexRow
from lrai.registry.resolve import ServedModel


@dataclass(frozen=True)
class Event:
    """Something that happened in the data plane; fields that its kind does not use are empty."""

    event: str
    """replica_ready, replica_lost, command, removed, poison or journal."""
    key: int = 0
    replica: int = 0
    detail: str = ""
    """Of a lost replica: what it did against the rules, if anything."""
    ticket: int = 0
    """Of a command: what `Gateway.answer` wants; a client waits for it."""
    kind: str = ""
    """Of a command: load, unload or why."""
    model: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    reason: str = ""
    level: str = "info"
    message: str = ""


class Gateway:
    """The native gateway with typed values; every method but `stop` returns at once."""

    def __init__(self, native: _native.Gateway) -> None:
        """Wrap a native gateway; `open_gateway` makes one."""
        self._native = native
        self.event_fd = native.event_fd
        self.publish = _wrapped()(native.publish)
        self.remove_model = _wrapped()(native.remove_model)
        self.attach = _wrapped()(native.attach)
        self.settle = native.settle
        self.set_ready = native.set_ready
        self.set_knobs = _wrapped()(native.set_knobs)
        self.answer = native.answer
        self.drain = native.drain
        self.open_connections = native.open_connections
        self.stop = native.stop

    def start(self) -> dict[str, str]:
        """Listen; return the addresses by face: http, grpc, metrics, unix."""
        with _wrapped():
            addresses: dict[str, str] = json.loads(self._native.start())
        return {face: address for face, address in addresses.items() if address}

    def events(self) -> list[Event]:
        """Take everything that has happened since the last call."""
        return [Event(**json.loads(text)) for text in self._native.events()]

    def observe(self) -> list[Any]:
        """Return the numbers of models with traffic, as the rooms' `Window` protocols name them."""
        numbers: list[Any] = json.loads(
            self._native.observe(), object_hook=lambda plain: SimpleNamespace(**plain)
        )
        return numbers

    def add_model(self, served: ServedModel, config: str) -> int:
        """Know a model; return its key. It is not routed before `publish`.

        `config` is the text that /config answers.
        """
        # The data plane ignores what it has no use for.
        spec = {**asdict(served.model), **asdict(served), "config": config}
        with _wrapped():
            return self._native.add_model(json.dumps(spec))

    def set_index(self, rows: Sequence[IndexRow]) -> None:
        """Replace the repository index."""
        self._native.set_index(json.dumps([asdict(row) for row in rows]))


def open_gateway(settings: Settings) -> Gateway:
    """Make a native gateway; nothing listens before `start`."""
    with _wrapped():
        return Gateway(_native.Gateway(json.dumps(gateway_config(settings))))


def gateway_config(settings: Settings) -> dict[str, Any]:
    """Return the data plane's configuration: same names, times in milliseconds."""
    plain = asdict(settings.gateway)
    for name in ("header_timeout", "body_timeout", "keep_alive_timeout"):
        plain[f"{name}_ms"] = max(1, round(plain.pop(f"{name}_s") * 1e3))
    return {
        "threads": plain.pop("runtime_threads"),
        **plain,
        "not_ready_status": int(settings.gateway.not_ready_status),
        "explicit_control": settings.repository.model_control_mode == "explicit",
        "access_log": settings.log.access_log,
        "server_version": _native.__version__,
        "journal": journal_config(settings),
    }


def parse_model_config(text: str) -> str:
    """Turn the protobuf text of a config.pbtxt into JSON text."""
    with _wrapped(RepositoryError):
        return _native.parse_model_config(text)


@contextmanager
def _wrapped(kind: type[LraiError] = DataPlaneError) -> Iterator[None]:
    try:
        yield
    except _native.NativeError as error:
        message, _, hint = str(error).partition("hint: ")
        raise kind(message.rstrip(" ,"), hint) from error
