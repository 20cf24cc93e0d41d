"""The warm process that actors are forked from: it has imported one engine and opened nothing.

    python -P -m lrai.actors.template BACKEND fork|become

Requests come as JSON with a descriptor over the socket on descriptor 3. `fork` answers each with a
new actor; `become` is for engines that do not survive a fork: the process becomes the first one.
"""

import gc
import importlib
import os
import signal
import socket
import sys
import warnings
from typing import Any, Final

from lrai.actors.limits import end_with_parent
from lrai.actors.messages import ForkedMessage, ForkMessage
from lrai.backends import find_backend
from lrai.errors import ModelLoadError

CONTROL_FD: Final = 3
_MAX_MESSAGE: Final = 1 << 18
_register_at_fork: Final = os.register_at_fork


def main() -> None:
    """Import the engine, then answer requests until the server closes the socket."""
    backend, mode = sys.argv[1:]
    hooks = _postpone_fork_hooks()
    from setproctitle import setproctitle

    end_with_parent(os.getppid())
    # For actors too: signals to all are the server's business, it closes the links when it is time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    setproctitle(f"lrai: template {backend}")
    control = socket.socket(fileno=CONTROL_FD)
    error = _import_engine(backend)
    _rehearse_mailbox()
    from lrai.actors import worker
    from lrai.actors.messages import ActorSpec
    from lrai.actors import limits
    for _ in range(10):
        r = worker._Reporter(ForkMessage("a", 0, ActorSpec("a","1","null",""), "ipc://@nobody", 0))
        r.send("heartbeat")
        r._socket.close(linger=0)
        r.close()
        limits.private_bytes(1)
        limits._prctl(1, 9)
        limits.raise_oom_score()
        worker.faulthandler.enable()
        worker.random.seed()
        limits.end_with_parent(os.getppid())
        setproctitle(f"lrai: template {backend}")
    gc.collect()
    gc.freeze()
    while True:
        text, descriptors, _, _ = socket.recv_fds(control, _MAX_MESSAGE, 1)
        if not text:
            return
        message = ForkMessage.decode(text)
        if error:
            control.send(ForkedMessage(message.actor, error=error).encode())
        elif mode == "become":
            control.send(ForkedMessage(message.actor, pid=os.getpid()).encode())
            _become(control, message, descriptors[0], hooks)
        else:
            _fork_twice(control, message, descriptors[0], hooks)
        for descriptor in descriptors:
            os.close(descriptor)


def _postpone_fork_hooks() -> list[dict[str, Any]]:
    """Collect what libraries want done at a fork, for actors to register.

    They renew locks that other threads may have held; here there are none, and running them would
    cost every actor 0.6 MB of memory that is no longer shared.
    """
    hooks: list[dict[str, Any]] = []
    vars(os).update(register_at_fork=lambda **hook: hooks.append(hook))
    return hooks


def _import_engine(backend: str) -> str:
    """Import what actors of the backend need; return why it cannot be imported."""
    try:
        importlib.import_module("lrai.actors.worker")
        find_backend(backend).rehearse()
    except ImportError as error:
        return str(error)
    except ModelLoadError:
        # The actor says it in its own words.
        return ""
    return ""


def _rehearse_mailbox() -> None:
    """Let the native half set up its memory here, where all forks share it."""
    from lrai.actors.mailbox import open_mailbox

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    open_mailbox(theirs.detach())


def _fork_twice(
    control: socket.socket, message: ForkMessage, link_fd: int, hooks: list[dict[str, Any]]
) -> None:
    """Fork an actor whose parent is the server: it must see how the actor ends, and outlive us."""
    middle = _fork()
    if middle:
        os.waitpid(middle, 0)
        return
    try:
        actor = _fork()
        if not actor:
            _become(control, message, link_fd, hooks)
        control.send(ForkedMessage(message.actor, pid=actor).encode())
    finally:
        os._exit(0)


def _fork() -> int:
    with warnings.catch_warnings():
        # Importing onnxruntime starts a thread that only waits; no lock of it is ever held.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _become(
    control: socket.socket, message: ForkMessage, link_fd: int, hooks: list[dict[str, Any]]
) -> None:
    from lrai.actors.worker import run_actor

    vars(os).update(register_at_fork=_register_at_fork)
    for hook in hooks:
        os.register_at_fork(**hook)
    control.close()
    run_actor(message, link_fd)


if __name__ == "__main__":
    main()
