"""An open loop that times every answer, refusals included.

lrai's generator does not time what failed. This one is for some hundred requests a second over
HTTP/1.1, from one thread of asyncio.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.load import LoadError

GRACE_S = 5.0
"""How long answers are awaited after the last request was due."""
LOST = 0
"""The status of a request whose connection was closed or that nobody answered."""


@dataclass(frozen=True)
class Schedule:
    """What is sent: a request at equal distances, over connections that are opened before."""

    address: str
    request: bytes
    """Head and body."""
    connections: int
    rate: float
    seconds: float


@dataclass(frozen=True)
class Timed:
    """One request and what became of it."""

    due_s: float
    """Since the start."""
    status: int
    waited_ms: float
    """From due to sent: a connection had to become free, or the client came late."""
    answered_ms: float
    """From due to the answer's last byte; infinite if it was lost."""


class _Loop:
    """The requests of one schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.loop = asyncio.get_running_loop()
        self.start = self.loop.time()
        self.free: list[_Connection] = []
        self.waiting: deque[float] = deque()
        """When they were due, the oldest first."""
        self.found: list[Timed] = []
        self.missing = round(schedule.rate * schedule.seconds)
        self.done = asyncio.Event()

    def begin(self) -> None:
        """Sets the clock to zero and schedules every request."""
        self.start = self.loop.time()
        for index in range(self.missing):
            due = self.start + index / self.schedule.rate
            self.loop.call_at(due, self.send, due)

    def send(self, due: float) -> None:
        """Sends what is due now, or lets it wait for a connection."""
        if self.free:
            self.free.pop().ask(due)
        else:
            self.waiting.append(due)

    def ended(self, due: float, sent: float, status: int) -> None:
        """Takes down what became of a request."""
        answered = self.loop.time() if status != LOST else math.inf
        times = [(time - due) * 1e3 for time in (sent, answered)]
        self.found.append(Timed(due - self.start, status, *times))
        self.missing -= 1
        if not self.missing:
            self.done.set()


class _Connection(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self, owner: _Loop) -> None:
        self._owner = owner
        self._transport: asyncio.WriteTransport | None = None
        self._due: float | None = None
        self._sent = 0.0
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is free from now on."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._owner.free.append(self)

    def ask(self, due: float) -> None:
        """Sends the request that was due then."""
        assert self._transport is not None
        self._due, self._sent = due, self._owner.loop.time()
        self._transport.write(self._owner.schedule.request)

    def data_received(self, data: bytes) -> None:
        """Ends the request when its answer is whole."""
        self._received += data
        head, gap, body = bytes(self._received).partition(b"\r\n\r\n")
        if not gap or len(body) < _content_length(head) or self._due is None:
            return
        due, self._due = self._due, None
        self._received.clear()
        self._owner.ended(due, self._sent, int(head[9:12]))
        if self._owner.waiting:
            self.ask(self._owner.waiting.popleft())
        else:
            self._owner.free.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        """The request that was under way is lost, and the connection for the rest."""
        if self in self._owner.free:
            self._owner.free.remove(self)
        if self._due is not None:
            due, self._due = self._due, None
            self._owner.ended(due, self._sent, LOST)

    def close(self) -> None:
        """Closes it; an answer that is still missing is lost."""
        if self._transport is not None:
            self._transport.abort()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise LoadError(f"an answer without a length: {head[:200]!r}")


async def _send(schedule: Schedule) -> list[Timed]:
    loop = _Loop(schedule)
    host, _, port = schedule.address.rpartition(":")
    connections = [
        (await loop.loop.create_connection(lambda: _Connection(loop), host, int(port)))[1]
        for _ in range(schedule.connections)
    ]
    loop.begin()
    with suppress(TimeoutError):
        await asyncio.wait_for(loop.done.wait(), schedule.seconds + GRACE_S)
    for connection in connections:
        connection.close()
    await asyncio.sleep(0)  # aborted transports say so in the next turn
    now = loop.loop.time()
    for due in loop.waiting:
        loop.ended(due, now, LOST)
    return loop.found


def send(schedule: Schedule) -> list[Timed]:
    """Sends the schedule and waits for every answer; LoadError if it cannot be sent."""
    try:
        return asyncio.run(_send(schedule))
    except OSError as error:
        raise LoadError(f"the open loop could not be sent: {error}") from error
