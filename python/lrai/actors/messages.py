"""What server, templates and actors tell each other: small, frozen, JSON on the wire."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

from lrai.backends.base import BackendSpec
from lrai.core.plain import from_plain

EXIT_LEFT: Final = 0
EXIT_MEMORY: Final = 77
"""The actor met its memory limit."""


@dataclass(frozen=True)
class ActorSpec:
    """A replica to be: which model, with which engine, within which limits."""

    name: str
    version: str
    backend: str
    model: BackendSpec
    memory_limit_bytes: int = 0
    """Memory beyond the bare process; 0 = no limit."""
    execution_timeout_s: float = 30.0
    """A batch that runs longer is a hang; the supervisor learns a shorter time."""
    load_timeout_s: float = 600.0
    is_trial: bool = False
    """It only measures, in time that nobody else wants, and never serves."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Message:
    """A frozen value on its way to another process."""

    def encode(self) -> bytes:
        """Return the message's bytes."""
        return json.dumps(self, default=vars).encode()

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Read what `encode` wrote."""
        return from_plain(cls, json.loads(text))


@dataclass(frozen=True)
class ForkMessage(Message):
    """Asks a template for an actor; the actor's end of the link travels beside it."""

    actor: str
    """Identity of the actor on the socket of the supervisor."""
    number: int
    """Counts the actors of one model version, for the title of the process."""
    spec: ActorSpec
    endpoint: str
    """Address of the supervisor's socket."""
    parent_pid: int
    """The server; the actor ends with it."""


@dataclass(frozen=True)
class ForkedMessage(Message):
    """A template's answer: the actor's process, or why there is none."""

    actor: str
    pid: int = 0
    error: str = ""


Kind = Literal["loaded", "refused", "heartbeat", "sample", "measured"]


@dataclass(frozen=True)
class ActorMessage(Message):
    """What an actor tells the supervisor over ZeroMQ.

    `loaded` carries the signature, `refused` a sentence and a hint; `heartbeat` comes every ten
    seconds, `sample` with the first good answer and then at most every second, with a summary of
    the batch's outputs and the shapes of its inputs, empty for one that was left out. `measured`
    carries a `TrialResult`.
    """

    kind: Kind
    body: Mapping[str, Any] = field(default_factory=dict)
