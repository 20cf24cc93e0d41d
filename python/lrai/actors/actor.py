"""One actor as the server sees it: its process, its end of the link, what it has said, its end."""

import asyncio
import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from lrai.actors.limits import ActorCgroup
from lrai.actors.messages import EXIT_LEFT, EXIT_MEMORY, ActorMessage, ActorSpec
from lrai.actors.spawn import describe_end
from lrai.core.model import Signature
from lrai.core.ports import Fault
from lrai.errors import ModelLoadError

# What a process dies of when its own code is at fault; SIGKILL and SIGTERM come from outside.
_FAULT_SIGNALS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS}
)


@dataclass(frozen=True)
class End:
    """How an actor ended."""

    fault: Fault
    """Evidence against the batch that it ran."""
    words: str
    """The rest of a sentence: `was ended by SIGSEGV`."""

    @property
    def hint(self) -> str:
        """What may help when this happened to a model while loading."""
        if self.fault == "memory":
            return "raise memory_limit"
        return "`lrai doctor` tries the engine of this machine; the lines above may tell more"


@dataclass(eq=False)
class Actor:
    """A process that loads or has loaded one model. Changed by the supervisor only."""

    id: str
    spec: ActorSpec
    number: int
    link_fd: int
    """The gateway's end of the link until the data plane takes it; then -1."""
    loaded: asyncio.Future[Signature]
    gone: asyncio.Future[End]
    pid: int = 0
    cgroup: ActorCgroup | None = None
    lineage: "Lineage | None" = None
    replica: int | None = None
    loss: str | None = None
    """What the data plane said when it lost the link; empty = it was closed."""
    heard_s: float = field(default_factory=time.monotonic)
    batch_age_s: float = math.inf
    """Age of the batch in flight, when last looked at."""
    waited_s: float = 0.0
    """How long it had waited for a processor when that batch was first seen."""
    baseline_bytes: int = 0
    is_leaving: bool = False
    verdict: End | None = None
    """Why the supervisor killed it, if it did."""

    def __str__(self) -> str:
        return f"actor {self.spec} #{self.number} (pid {self.pid})"

    def hear(self, message: ActorMessage) -> None:
        """Take in what the actor says about itself."""
        self.heard_s = time.monotonic()
        if self.loaded.done():
            return
        if message.kind == "loaded":
            self.baseline_bytes = message.body["baseline_bytes"]
            self.loaded.set_result(Signature.from_dict(message.body["signature"]))
        elif message.kind == "refused":
            self.loaded.set_exception(ModelLoadError(**message.body))

    def kill(self, fault: Fault, words: str) -> None:
        """End the process now and remember why."""
        if self.verdict is None:
            self.verdict = End(fault, words)
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended meanwhile is fine."""
        if self.pid and not self.gone.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def take_link(self) -> int:
        """Give the gateway's end of the link away."""
        link_fd, self.link_fd = self.link_fd, -1
        return link_fd

    def close_link(self) -> None:
        """Close the gateway's end, unless the data plane owns it: the actor then leaves."""
        if self.link_fd >= 0:
            os.close(self.take_link())

    def dismiss(self) -> None:
        """Let it leave; its end is then no news."""
        self.is_leaving = True
        self.close_link()

    @property
    def signature(self) -> Signature:
        """What the actor has loaded."""
        return self.loaded.result()

    def ended(self, status: int) -> None:
        """Take notice of the process's end."""
        is_oom = self.cgroup.close() if self.cgroup else False
        self.close_link()
        end = self._explain(status, is_oom)
        self.gone.set_result(end)
        if self.is_leaving:
            self.loaded.cancel()
        elif not self.loaded.done():
            self.loaded.set_exception(
                ModelLoadError(f"its process {end.words} while loading it", hint=end.hint)
            )

    def _explain(self, status: int, is_oom: bool) -> End:
        words = describe_end(status)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number in _FAULT_SIGNALS:
                return End("signal", words)
            if is_oom:
                return End("memory", f"was ended by the kernel at its memory limit ({words})")
            return self.verdict or End("", words)
        code = os.waitstatus_to_exitcode(status)
        if code == EXIT_MEMORY:
            limit_mib = self.spec.memory_limit_bytes >> 20
            return End("memory", f"met its memory limit of {limit_mib} MiB")
        if code == EXIT_LEFT and self.is_leaving:
            return End("", words)
        return End("signal", words)


@dataclass(eq=False)
class Lineage:
    """One replica's place in a model: an actor, and after its death the next."""

    key: int
    """The model in the data plane."""
    spec: ActorSpec
    number: int
    signature: Signature
    early_deaths: int = 0
    """Deaths and failed loads since the last good answer."""
    died_s: float | None = None
    actor: Actor | None = None
    successor: asyncio.Task[None] | None = None
