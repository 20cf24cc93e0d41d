"""A data plane for tests: speaks the link's wire format with real actors, one batch at a time."""

import asyncio
import itertools
import mmap
import os
import socket
from dataclasses import dataclass, field

import numpy as np
import pytest

from lrai.actors.messages import ActorSpec
from lrai.actors.supervisor import Supervisor
from lrai.backends.base import BackendSpec

SLAB_BYTES = 1 << 20
SLOT_BYTES = 1 << 16
OUTPUT_SLOTS = 2


@dataclass
class Answer:
    """What an actor said about a batch."""

    kind: str
    outputs: list = field(default_factory=list)
    code: int = 0
    message: str = ""


@dataclass
class Replica:
    key: int
    link: socket.socket
    inputs: mmap.mmap
    outputs: mmap.mmap
    ready: asyncio.Future
    answers: dict = field(default_factory=dict)
    running_since: float | None = None


@dataclass
class FakeWindow:
    key: int
    inflight_age_ms: list
    pending: int = 0
    batches: int = 0
    rows: int = 0
    compute_bounds_us: tuple = ()
    compute_counts: tuple = ()


class FakeDataPlane:
    """Attaches links as the gateway does and reports to the supervisor."""

    def __init__(self):
        self.replicas = {}
        self.settled = []
        self.supervisor = None
        self._changed = asyncio.Event()

    def attach(self, key, link_fd):
        loop = asyncio.get_running_loop()
        link = socket.socket(fileno=link_fd)
        link.setblocking(False)
        replica_id = len(self.replicas) + 1
        memory = []
        for name, size in (("in", SLAB_BYTES), ("out", SLOT_BYTES * OUTPUT_SLOTS)):
            descriptor = os.memfd_create(name)
            os.ftruncate(descriptor, size)
            memory.append((descriptor, mmap.mmap(descriptor, size)))
        message = numbers(SLOT_BYTES)
        socket.send_fds(link, [message], [descriptor for descriptor, _ in memory])
        for descriptor, _ in memory:
            os.close(descriptor)
        replica = Replica(key, link, memory[0][1], memory[1][1], loop.create_future())
        self.replicas[replica_id] = replica
        loop.add_reader(link, self._read, replica_id, replica)
        return replica_id

    def settle(self, replica, fault):
        self.settled.append((replica, fault))
        self._changed.set()

    async def settled_once(self, count=1):
        async with asyncio.timeout(20):
            while len(self.settled) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.settled[-1][1]

    async def ready(self, replica_id):
        """Wait until replica number `replica_id` (counted from 1) exists and is ready."""
        async with asyncio.timeout(20):
            while replica_id not in self.replicas:
                self._changed.clear()
                await self._changed.wait()
            await self.replicas[replica_id].ready

    async def run(self, replica_id, arrays, slot=0):
        """Run one batch; arrays of inputs in, arrays of outputs (float32) back."""
        answer = await self.submit(replica_id, arrays, slot)
        assert answer.kind == "done", answer
        outputs = []
        for offset, byte_len, dims in answer.outputs:
            start = slot * SLOT_BYTES + offset
            memory = self.replicas[replica_id].outputs[start : start + byte_len]
            outputs.append(np.frombuffer(memory, np.float32).reshape(dims))
        return outputs

    def submit(self, replica_id, arrays, slot=0):
        replica = self.replicas[replica_id]
        batch_id = len(replica.answers) + 1
        packet = numbers(batch_id, len(arrays[0]), slot, len(arrays))
        offset = 0
        for array in arrays:
            replica.inputs[offset : offset + array.nbytes] = array.tobytes()
            dims = (size << 1 for size in array.shape)
            packet += numbers(1, offset, array.nbytes, array.ndim, *dims)
            offset += -(-array.nbytes // 64) * 64
        future = replica.answers[batch_id] = asyncio.get_running_loop().create_future()
        replica.running_since = asyncio.get_running_loop().time()
        replica.link.send(packet)
        return asyncio.wait_for(future, 20)

    def window(self, key, batches):
        return FakeWindow(key, [], batches=batches)

    def windows(self, bounds=(), counts=()):
        now = asyncio.get_running_loop().time()
        return [
            FakeWindow(
                replica.key,
                [(number, int((now - replica.running_since) * 1000))],
                compute_bounds_us=bounds,
                compute_counts=counts,
            )
            for number, replica in self.replicas.items()
            if replica.running_since is not None
        ]

    def close(self, key):
        """Close the links of a removed model."""
        for replica in self.replicas.values():
            if replica.key == key:
                self._close(replica)
                replica.inputs.close()
                replica.outputs.close()

    def _close(self, replica):
        if replica.link.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(replica.link)
            replica.link.close()
        replica.running_since = None
        for future in (replica.ready, *replica.answers.values()):
            if not future.done():
                future.set_exception(ConnectionError("the actor has gone"))
                future.exception()

    def _read(self, replica_id, replica):
        try:
            packet = replica.link.recv(1 << 16)
        except OSError:
            packet = b""
        if not packet:
            self._close(replica)
            self.supervisor.lost(replica_id)
            return
        reader = Reader(packet)
        kind = reader.number()
        if kind == 0:
            replica.ready.set_result(None)
            self.supervisor.ready(replica_id)
            self._changed.set()
            return
        replica.running_since = None
        replica.answers[reader.number()].set_result(reader.answer(kind))


def numbers(*values):
    """Unsigned integers as postcard writes them: seven bits a byte, the lowest first."""
    packet = bytearray()
    for value in values:
        while value > 0x7F:
            packet.append(value & 0x7F | 0x80)
            value >>= 7
        packet.append(value)
    return bytes(packet)


class Reader:
    """Takes values off the front of a packet."""

    def __init__(self, packet):
        self._bytes = iter(packet)

    def number(self):
        value = shift = 0
        for byte in self._bytes:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise ValueError("a number without its end")

    def answer(self, kind):
        """DONE (1) or FAILED (2) behind its batch's id; dimensions are never negative here."""
        if kind == 2:
            code = next(self._bytes)
            text = bytes(itertools.islice(self._bytes, self.number()))
            return Answer("failed", code=code, message=text.decode())
        self.number()  # the time that it took
        outputs = []
        for _ in range(self.number()):
            offset, byte_len, ndim = self.number(), self.number(), self.number()
            outputs.append((offset, byte_len, tuple(self.number() >> 1 for _ in range(ndim))))
        return Answer("done", outputs)


@pytest.fixture
async def data_plane():
    return FakeDataPlane()


@pytest.fixture
async def supervisor(data_plane, tmp_path):
    supervisor = data_plane.supervisor = Supervisor(data_plane, tmp_path)
    await supervisor.start()
    yield supervisor
    await supervisor.stop()
    for key in {replica.key for replica in data_plane.replicas.values()}:
        data_plane.close(key)


@pytest.fixture
def python_model(tmp_path):
    """Write a model.py with the given body of predict and return its spec."""

    def write(predict="return {'y': inputs['x'] * 2}", load="pass", columns=2, **more):
        lines = [
            "import ctypes, os, signal, sys, time",
            "import numpy as np",
            f"INPUTS = [('x', 'FP32', [-1, {columns}])]",
            f"OUTPUTS = [('y', 'FP32', [-1, {columns}])]",
            "def load(context):",
            *(f"    {line}" for line in load.splitlines()),
            "def predict(inputs):",
            *(f"    {line}" for line in predict.splitlines()),
        ]
        (tmp_path / "model.py").write_text("\n".join(lines))
        return ActorSpec("double", "1", "python", BackendSpec(str(tmp_path)), **more)

    return write
