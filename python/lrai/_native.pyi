"""The compiled half of lrai: the data plane as Python sees it; held true by stubtest.

Cold paths cross as JSON text; nothing here is called per request in the serving process.
"""

from collections.abc import Callable
from typing import final

__all__ = [
    "Batch",
    "Gateway",
    "Mailbox",
    "NativeError",
    "Simulator",
    "__version__",
    "parse_model_config",
    "run_load",
]

__version__: str

class NativeError(Exception):
    """The data plane refused a call; the text is one sentence."""

def parse_model_config(text: str) -> str:
    """Read Triton's config.pbtxt (protobuf text); return JSON with the .proto's field names.

    Only fields that the text sets are there. Raises NativeError with line and field.
    """

def run_load(
    config: str, requests: list[bytes], progress: Callable[[int, int], object] | None = None
) -> str:
    """Send a load (JSON of the load generator's Config) on a thread of its own; return the report.

    A request is the whole text of HTTP/1.1, or the message of a gRPC call; they are used in turn.
    `progress` is called ten times a second with the answers and errors so far; an exception from
    it, or Ctrl-C, ends the load. What goes wrong on the way is counted in the report; NativeError
    means that the load could not begin.
    """

@final
class Gateway:
    """The data plane: listeners, queues, links; runs in threads that never take the GIL."""

    def __new__(cls, config: str) -> Gateway:
        """Read the configuration (JSON); nothing listens yet."""

    def start(self) -> str:
        """Listen; return the addresses as JSON: http, grpc, metrics, unix."""

    @property
    def event_fd(self) -> int:
        """A descriptor that is readable while `events` has something."""

    def events(self) -> list[str]:
        """Take all waiting events, each a JSON object with the key `event`."""

    def add_model(self, spec: str) -> int:
        """Know a model (JSON of ModelSpec); return its key. It is not routed before `publish`."""

    def publish(self, key: int) -> None:
        """Route the model's name and version to it; a former one of the same name drains."""

    def remove_model(self, key: int) -> None:
        """Unroute; open requests finish, then event `removed` comes and the links are closed."""

    def attach(self, key: int, link_fd: int) -> int:
        """Take the gateway's end of a link to a replica of the model; return the replica's id."""

    def settle(self, replica: int, fault: str) -> None:
        """Say why a lost replica died: `""`, `signal`, `hang`, `memory` or `retired`."""

    def set_index(self, rows: str) -> None:
        """Replace the repository index (JSON list of name, version, state, reason; sorted)."""

    def set_ready(self, ready: bool) -> None:
        """Set what /v2/health/ready answers."""

    def set_knobs(self, key: int, knobs: str) -> None:
        """Set when a batch of the model leaves (JSON of Knobs; absent fields take their defaults).

        `{"k", "cap", "tau_us", "slack_us", "work_conserving", "goal_us", "service": [[edge, rows,
        microseconds], ...], "edges", "token_budget", "caps": [[edge, rows], ...]}`; NativeError
        names a field that is not one.
        """

    def observe(self) -> str:
        """Return the numbers of every model that had traffic since the last call, or has some.

        JSON list of Observed; what it tells "since the last look" is since this was called last,
        by whomever.
        """

    def answer(self, ticket: int, code: str, message: str) -> None:
        """Answer a `command` event; code "" = done, and the message what the client asked for."""

    def drain(self) -> None:
        """Stop accepting; finish open requests, then close their connections."""

    def open_connections(self) -> int:
        """Return how many connections are open."""

    def stop(self) -> None:
        """Close everything and join the threads."""

@final
class Mailbox:
    """The actor's end of a link: waits for batches, hands back rows, without the GIL."""

    def __new__(cls, link_fd: int) -> Mailbox:
        """Wait for ATTACH; takes the descriptor."""

    @property
    def slab_fds(self) -> tuple[int, int]:
        """Descriptors of the input slab, which can only be read, and of this replica's output."""

    @property
    def output_slot_bytes(self) -> int:
        """Bytes of one output slot."""

    def ready(self) -> None:
        """Say that the model is loaded, bound and warm."""

    def receive(self) -> Batch | None:
        """Wait for the next batch; None = leave."""

    def done(
        self, batch_id: int, compute_ns: int, outputs: list[tuple[int, int, tuple[int, ...]]]
    ) -> None:
        """Answer a batch: for every output its offset in the slot, its bytes, its dimensions."""

    def failed(self, batch_id: int, code: int, message: str) -> None:
        """Refuse a batch: 0 the model failed, 1 its input is wrong, 2 unsupported."""

@final
class Batch:
    """One batch as it lies in the input slab."""

    @property
    def id(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def output_slot(self) -> int: ...
    @property
    def inputs(self) -> tuple[tuple[int, int, tuple[int, ...]] | None, ...]: ...

@final
class Simulator:
    """One model's waiting line on a fake clock; every time that it tells is simulated."""

    def __new__(cls, config: str, times_ns: bytes, rows: bytes, lengths: bytes) -> Simulator:
        """Read the configuration (JSON) and the arrivals: int64 ns, uint32, uint32, little-endian.

        A length of 0 stands for a model that knows none. Raises NativeError.
        """

    def set_knobs(self, knobs: str) -> None:
        """Set when batches leave and what is refused (JSON) from now on."""

    def advance(self, seconds: float) -> None:
        """Let time pass."""

    def drain(self) -> None:
        """Let time pass until every request is answered or refused."""

    def observe(self) -> str:
        """Return what a gateway would tell its control loop now, as JSON."""

    def outcome(self) -> str:
        """Return what was counted since the warm-up, as JSON."""
