"""Collects ended children of the server, and tells who waits for them how they ended."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Ended = Callable[[int], None]
"""Called with the wait status."""


class Reaper:
    """Owns SIGCHLD. Orphans that nobody knows are reaped too: the server adopts all of them."""

    def __init__(self) -> None:
        """Nothing is reaped before `start`."""
        self._waiting: dict[int, Ended] = {}
        self._early: dict[int, int] = {}
        self._expected = 0

    def start(self) -> None:
        """Reap from now on, on the running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def stop(self) -> None:
        """Leave children alone."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Keep the statuses of unknown processes meanwhile: a child may end before it is known."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected:
                self._early.clear()

    def watch(self, pid: int, ended: Ended) -> None:
        """Call `ended` once, when `pid` has ended; soon, if it already has."""
        status = self._early.pop(pid, None)
        if status is None:
            self._waiting[pid] = ended
        else:
            asyncio.get_running_loop().call_soon(ended, status)

    def reap(self) -> None:
        """Collect everyone who has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if ended := self._waiting.pop(pid, None):
                asyncio.get_running_loop().call_soon(ended, status)
            elif self._expected:
                self._early[pid] = status
