"""What an actor does with its life: load one model, then run batches until its link closes."""

import _thread
import faulthandler
import os
import random
import socket
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

import zmq
from setproctitle import setproctitle

from lrai.actors.limits import (
    end_with_parent,
    give_way,
    limit_data,
    private_bytes,
    raise_oom_score,
    run_when_idle,
)
from lrai.actors.mailbox import Mailbox, map_slabs, open_mailbox
from lrai.actors.messages import (
    EXIT_LEFT,
    EXIT_MEMORY,
    ActorMessage,
    ActorSpec,
    ForkMessage,
    Kind,
)
from lrai.backends import find_backend
from lrai.backends.base import Backend, BackendSpec, BatchFaultError, Place, Slabs
from lrai.backends.tensors import view
from lrai.errors import LraiError, ModelLoadError
from lrai.monitor.sample import summarise

_HEARTBEAT_S: Final = 10.0
_SAMPLE_NS: Final = 1_000_000_000
# Processor time of a batch from which on a model leaves light ones their latency.
_HEAVY_NS: Final = 5_000_000
_NOT_SAMPLED: Final = ("BYTES", "BF16")
_HEARTBEAT_STACK: Final = 1 << 18
_ENGINE_STACK: Final = 1 << 23
_EXIT_FAULT: Final = 1
_REHEARSALS: Final = 10


def run_actor(message: ForkMessage, link_fd: int) -> NoReturn:
    """Be the actor of `message`; ends the process, never returns into the template's code."""
    # Ending inside each branch keeps the mailbox open until the end: its link must not close
    # before the exit code is decided.
    try:
        os._exit(_live(message, link_fd))
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except BaseException:  # noqa: BLE001 - nothing above this can report it
        traceback.print_exc()
        os._exit(_EXIT_FAULT)


def rehearse(backend: str) -> None:
    """Do in the template what every actor does first, and leave nothing open.

    Libraries set themselves up, and the interpreter specialises the code, in pages that all forks
    then share.
    """
    setproctitle(f"lrai: template {backend}")
    with suppress(ModelLoadError):  # which the actor then says in its own words
        find_backend(backend).rehearse()
    spec = ActorSpec("", "", backend, BackendSpec(""), memory_limit_bytes=1)
    for _ in range(_REHEARSALS):
        message = ForkMessage.decode(ForkMessage("rehearsal", 0, spec, "ipc://@nobody", 0).encode())
        _Reporter(message).close()
        private_bytes(os.getpid())
        summarise([("y", view(memoryview(bytes(8)), (0, 8, (1, 2)), "FP32"))])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    open_mailbox(theirs.detach())


def _live(message: ForkMessage, link_fd: int) -> int:
    _settle_in(message)
    reporter = _Reporter(message)
    baseline_bytes = private_bytes(os.getpid())
    _limit_memory(message.spec)
    try:
        backend = _load(message.spec)
    except LraiError as error:
        reporter.send("refused", {"message": error.message, "hint": error.hint})
        # The supervisor closes the link when it has heard the reason.
        open_mailbox(link_fd)
        return EXIT_LEFT
    reporter.send("loaded", {"signature": backend.signature, "baseline_bytes": baseline_bytes})
    if message.spec.is_trial:
        # Only trials pay for it.
        from lrai.actors.trial import answer_trials

        answer_trials(backend, link_fd, baseline_bytes, reporter.send)
        return EXIT_LEFT
    # Not threading.Thread, whose machinery would cost every actor 0.2 MB.
    _thread.stack_size(_HEARTBEAT_STACK)
    _thread.start_new_thread(reporter.beat, ())
    _thread.stack_size(0)
    if mailbox := open_mailbox(link_fd):
        setproctitle(f"lrai: {message.spec} #{message.number}")
        slabs = map_slabs(mailbox)
        backend.bind(slabs)
        mailbox.ready()
        _serve(mailbox, backend, slabs, reporter)
    return EXIT_LEFT


def _settle_in(message: ForkMessage) -> None:
    """Make the fresh fork a process of its own: title, seed, priority."""
    end_with_parent(message.parent_pid)
    random.seed()
    role = "standby"
    if message.spec.is_trial:
        role = "trial"
        run_when_idle()
    setproctitle(f"lrai: {message.spec} #{message.number} {role}")
    raise_oom_score()
    faulthandler.enable(all_threads=False)


def _limit_memory(spec: ActorSpec) -> None:
    """Let allocations beyond the limit fail, so that they cost this process and not the machine."""
    # Devices reserve address space far beyond what they use.
    if spec.memory_limit_bytes and spec.model.provider == "cpu":
        # Stacks of the engine's threads count as soon as they are reserved.
        limit_data(spec.memory_limit_bytes + spec.model.threads * _ENGINE_STACK)


def _load(spec: ActorSpec) -> Backend:
    try:
        return find_backend(spec.backend)(spec.model)
    except (LraiError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ModelLoadError(f"{type(error).__name__}: {reason}") from error


def _serve(mailbox: Mailbox, backend: Backend, slabs: Slabs, reporter: "_Reporter") -> None:
    sample_due_ns = 0
    while (batch := mailbox.receive()) is not None:
        started_ns = time.perf_counter_ns()
        is_sampled = started_ns >= sample_due_ns
        used_ns = time.process_time_ns() if is_sampled else 0
        try:
            places = backend.run(batch)
        except BatchFaultError as fault:
            mailbox.failed(batch.id, fault.code, str(fault))
            continue
        ended_ns = time.perf_counter_ns()
        # The slot is the gateway's again after `done`, so the sample is taken before.
        sample = None
        if is_sampled:
            # The first batch also pays for what is done only once.
            if sample_due_ns and time.process_time_ns() - used_ns > _HEAVY_NS:
                give_way()
            sample_due_ns = ended_ns + _SAMPLE_NS
            sample = _sample(backend, slabs.slot(batch.output_slot), places)
        mailbox.done(batch.id, ended_ns - started_ns, places)
        if sample is not None:
            shapes = [place[2] if place else () for place in batch.inputs]
            reporter.send("sample", {**sample, "shapes": shapes})


def _sample(backend: Backend, slot: memoryview, places: list[Place]) -> dict[str, Any]:
    return summarise(
        (tensor.name, view(slot, place, tensor.datatype))
        for tensor, place in zip(backend.signature.outputs, places, strict=True)
        if tensor.datatype not in _NOT_SAMPLED
    )


class _Reporter:
    """The actor's socket to the supervisor; its context is opened after the fork."""

    def __init__(self, message: ForkMessage) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, message.actor.encode())
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(message.endpoint)
        # Used by the heartbeat's thread too: ZeroMQ wants a barrier between threads.
        self._lock = _thread.allocate_lock()

    def send(self, kind: Kind, body: Mapping[str, Any] | None = None) -> None:
        """Send without waiting; a supervisor that does not read loses news, not the actor."""
        with self._lock:
            try:
                self._socket.send(ActorMessage(kind, body or {}).encode(), zmq.NOBLOCK)
            except zmq.Again:
                return

    def beat(self) -> None:
        """Send heartbeats for ever."""
        while True:
            time.sleep(_HEARTBEAT_S)
            self.send("heartbeat")

    def close(self) -> None:
        """Wait a moment until what was sent has left."""
        with self._lock:
            self._socket.close()
            self._context.term()
