"""The warm process that actors are forked from: it has imported one engine and opened nothing.

    python -P -m lrai.actors.template BACKEND fork|become

Requests come as JSON with a descriptor over the socket on descriptor 3. `fork` answers each with a
new actor; `become` is for engines that do not survive a fork: the process becomes the first one.

A page that the template or an actor writes to is no longer shared, so between two forks the
template does next to nothing, and what an actor will do has been rehearsed before.
"""

import gc
import importlib
import os
import signal
import socket
import sys
import warnings
from typing import Any, Final, NoReturn

from lrai.actors.limits import end_with_parent
from lrai.actors.messages import ForkedMessage, ForkMessage

CONTROL_FD: Final = 3
_MAX_MESSAGE: Final = 1 << 18
_ONE_DESCRIPTOR: Final = socket.CMSG_SPACE(4)
_register_at_fork: Final = os.register_at_fork
_fork_hooks: Final[list[dict[str, Any]]] = []


def main() -> None:
    """Import the engine, then answer requests until the server closes the socket."""
    backend, mode = sys.argv[1:]
    # What libraries want done at a fork renews locks that other threads may have held. Here are no
    # other threads, and running it would unshare 0.25 MB of every actor: actors get it for forks
    # of their own.
    vars(os).update(register_at_fork=lambda **hook: _fork_hooks.append(hook))
    end_with_parent(os.getppid())
    # For actors too: signals to all are the server's business, it closes the links when it is time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Importing onnxruntime may start a thread that only waits; no lock of it is held at a fork.
    warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
    control = socket.socket(fileno=CONTROL_FD)
    error = _warm_up(backend)
    gc.collect()
    gc.freeze()
    while True:
        text, ancillary, _, _ = control.recvmsg(_MAX_MESSAGE, _ONE_DESCRIPTOR)
        if not text:
            return
        link_fd = int.from_bytes(ancillary[0][2], sys.byteorder)
        if error:
            message = ForkMessage.decode(text)
            control.send(ForkedMessage(message.actor, error=error).encode())
        elif mode == "become":
            message = ForkMessage.decode(text)
            control.send(ForkedMessage(message.actor, pid=os.getpid()).encode())
            _become(control, message, link_fd)
        else:
            _fork_twice(control, text, link_fd)
        os.close(link_fd)


def _warm_up(backend: str) -> str:
    """Import what actors need and rehearse their life; return why it cannot be imported."""
    try:
        importlib.import_module("lrai.actors.worker").rehearse(backend)
    except ImportError as error:
        return str(error)
    return ""


def _fork_twice(control: socket.socket, text: bytes, link_fd: int) -> None:
    """Fork an actor whose parent is the server: it must see how the actor ends, and outlive us."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    try:
        actor = os.fork()
        message = ForkMessage.decode(text)
        if not actor:
            _become(control, message, link_fd)
        control.send(ForkedMessage(message.actor, pid=actor).encode())
    finally:
        os._exit(0)


def _become(control: socket.socket, message: ForkMessage, link_fd: int) -> NoReturn:
    from lrai.actors.worker import run_actor

    vars(os).update(register_at_fork=_register_at_fork)
    for hook in _fork_hooks:
        os.register_at_fork(**hook)
    control.close()
    run_actor(message, link_fd)


if __name__ == "__main__":
    main()
