"""Collects ended children of the server: those that it waits for, and orphans that it adopted."""

import asyncio
import os
from contextlib import suppress
from typing import Final

_ANY_ENDED: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Reaper:
    """Waits for children by their pidfds; nobody else may collect a child of this process."""

    def __init__(self) -> None:
        """Wait for nobody yet."""
        self._ends: dict[int, asyncio.Future[int]] = {}

    def end_of(self, pid: int) -> asyncio.Future[int]:
        """Return what becomes the wait status of a child; the same for everyone who asks."""
        if pid not in self._ends:
            loop = asyncio.get_running_loop()
            pidfd = os.pidfd_open(pid)
            self._ends[pid] = loop.create_future()
            loop.add_reader(pidfd, self._collect, pid, pidfd)
        return self._ends[pid]

    def _collect(self, pid: int, pidfd: int) -> None:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            return  # Whoever stood between has not gone yet; the loop comes back until it has.
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        self._ends.pop(pid).set_result(status)

    def sweep(self) -> None:
        """Collect orphans that nobody waits for: what actors have started and left behind."""
        with suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, _ANY_ENDED)) and ended.si_pid not in self._ends:
                os.waitpid(ended.si_pid, 0)
