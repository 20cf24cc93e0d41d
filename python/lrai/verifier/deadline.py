"""Ends a computation when its time is up, wherever it stands."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

Clock = Literal["wall", "cpu"]
"""What a limit counts: time that passes, or this process's seconds on a processor."""
_TIMERS: Final = {
    "wall": (signal.ITIMER_REAL, signal.SIGALRM),
    "cpu": (signal.ITIMER_PROF, signal.SIGPROF),
}


class ElapsedError(BaseException):
    """The time is up. No Exception, so that nothing on the way takes it for its own."""


@contextmanager
def deadline(seconds: float, clock: Clock) -> Iterator[None]:
    """Raise ElapsedError in the block after so many seconds, between two of Python's instructions.

    What a library does in one call is waited for. Only the main thread hears of timers; in another
    one the block is not ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer, number = _TIMERS[clock]
    before = signal.signal(number, _raise)
    signal.setitimer(timer, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)


def _raise(_number: int, _frame: object) -> None:
    raise ElapsedError
