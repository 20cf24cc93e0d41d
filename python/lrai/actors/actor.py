"""One actor as the server sees it: its process, its end of the link, what it has said, its end."""

import asyncio
import math
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lrai.actors.limits import close_cgroup, private_bytes, waiting_s
from lrai.actors.messages import EXIT_LEFT, EXIT_MEMORY, ActorMessage, ActorSpec
from lrai.actors.spawn import describe_end
from lrai.actors.watch import SILENCE_S, hang_limit_s
from lrai.core.model import Signature
from lrai.core.plain import from_plain
from lrai.core.ports import Fault, Window
from lrai.errors import ModelLoadError

_LEAVE_S: Final = 2.0
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


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class Actor:
    """A process that loads or has loaded one model."""

    id: str
    spec: ActorSpec
    number: int
    link: socket.socket
    """The gateway's end of the link, until the data plane takes it."""
    loaded: asyncio.Future[Signature] = field(default_factory=_future)
    lost: asyncio.Future[str] = field(default_factory=_future)
    """What it did against the rules when the data plane lost the link; empty = it was closed."""
    gone: asyncio.Future[End] = field(default_factory=_future)
    pid: int = 0
    cgroup: Path | None = None
    key: int = 0
    """The model in the data plane, once it serves one."""
    succeeds_s: float | None = None
    """When its predecessor died."""
    heard_s: float = field(default_factory=time.monotonic)
    has_answered: bool = False
    is_leaving: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of the inputs of a recent batch."""
    measured: asyncio.Future[Mapping[str, Any]] = field(default_factory=_future)
    """What a trial has answered; whoever asks sets a new one."""
    _baseline_bytes: int = 0
    _weighed_s: float = 0.0
    _batch_age_s: float = math.inf
    _waited_s: float = 0.0
    """How long it had waited for a processor when its batch was first seen."""
    _verdict: End | None = None

    def __str__(self) -> str:
        return f"actor {self.spec} #{self.number} (pid {self.pid})"

    @property
    def signature(self) -> Signature:
        """What the actor has loaded."""
        return self.loaded.result()

    @property
    def _has_fixed_shapes(self) -> bool:
        return not any(-1 in one.shape[self.signature.batchable :] for one in self.signature.inputs)

    def hear(self, message: ActorMessage) -> None:
        """Take in what the actor says about itself."""
        self.heard_s = time.monotonic()
        self.has_answered |= message.kind == "sample"
        self.shapes = tuple(map(tuple, message.body.get("shapes", self.shapes)))
        if message.kind == "measured" and not self.measured.done():
            self.measured.set_result(message.body)
        if self.loaded.done():
            return
        if message.kind == "loaded":
            self._baseline_bytes = message.body["baseline_bytes"]
            self.loaded.set_result(from_plain(Signature, message.body["signature"]))
        elif message.kind == "refused":
            self.loaded.set_exception(ModelLoadError(**message.body))

    def kill(self, fault: Fault, words: str) -> None:
        """End the process now and remember why."""
        self._verdict = self._verdict or End(fault, words)
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended meanwhile is fine."""
        if self.pid and not self.gone.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def dismiss(self) -> None:
        """End it at once; its end is then no news."""
        self.is_leaving = True
        self.signal(signal.SIGKILL)

    async def leave(self) -> None:
        """Let it leave by closing its link, and end it if it does not."""
        self.is_leaving = True
        self.link.close()
        await asyncio.wait([self.gone], timeout=_LEAVE_S)
        self.dismiss()
        await asyncio.shield(self.gone)

    def lose(self, detail: str) -> None:
        """Take notice that the data plane has lost the link."""
        if not self.lost.done():
            self.lost.set_result(detail)
        if detail:
            self.kill("signal", f"was ended for this: {detail}")
        else:
            # Nearly always it is dying already, and this changes nothing.
            self.signal(signal.SIGKILL)

    def end(self, status: int) -> None:
        """Take notice of the process's end."""
        is_oom = self.cgroup is not None and close_cgroup(self.cgroup)
        self.link.close()
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
            if os.WTERMSIG(status) in _FAULT_SIGNALS:
                return End("signal", words)
            if is_oom:
                return End("memory", f"was ended by the kernel at its memory limit ({words})")
            return self._verdict or End("", words)
        code = os.waitstatus_to_exitcode(status)
        if code == EXIT_MEMORY:
            limit_mib = self.spec.memory_limit_bytes >> 20
            return End("memory", f"met its memory limit of {limit_mib} MiB")
        return End("" if code == EXIT_LEFT and self.is_leaving else "signal", words)

    def check_batch(self, age_s: float, window: Window, most_rows: int) -> None:
        """End it if it has run its batch for too long."""
        self.heard_s = time.monotonic()
        limit_s = self.spec.execution_timeout_s
        # Where shapes are free, batches that were quick say nothing of one of long sequences.
        if self._has_fixed_shapes:
            bounds_us, counts = window.compute_bounds_us, window.compute_counts
            limit_s = hang_limit_s(limit_s, bounds_us, counts, most_rows)
        waited_s = waiting_s(self.pid)
        if age_s < self._batch_age_s:
            self._waited_s = waited_s
        self._batch_age_s = age_s
        # On a machine that is too busy an actor waits for its turn, which is not its fault.
        ran_s = age_s - (waited_s - self._waited_s)
        if ran_s > limit_s:
            self.kill("hang", f"ran one batch for {ran_s:.1f} s, the limit is {limit_s:.1f} s")

    @property
    def used_bytes(self) -> int:
        """Memory beyond what it shares with its template."""
        return private_bytes(self.pid) - self._baseline_bytes

    def check_itself(self) -> None:
        """End it if it is silent or too large."""
        now_s, limit = time.monotonic(), self.spec.memory_limit_bytes
        # One that has said and done nothing since the last look is no larger than then.
        if limit and self.heard_s >= self._weighed_s:
            self._weighed_s = now_s
            if (used := self.used_bytes) > limit:
                self.kill("memory", f"uses {used >> 20} MiB, its memory limit is {limit >> 20} MiB")
        if now_s - self.heard_s > SILENCE_S:
            self.kill("hang", f"gave no sign of life for {SILENCE_S:g} s")
