"""Slabs in this process, and batches on them."""

from dataclasses import dataclass

import numpy as np
import pytest

from lrai.backends.base import Slabs
from lrai.backends.tensors import NUMPY_TYPES

SLOT_BYTES = 1 << 16


@dataclass(frozen=True)
class Batch:
    inputs: tuple
    output_slot: int = 0


class Runner:
    """Runs arrays through a backend as the gateway would, and gives arrays back."""

    def __init__(self, backend, slot_bytes=SLOT_BYTES):
        self.backend = backend
        self.inputs = bytearray(1 << 20)
        self.outputs = bytearray(slot_bytes)
        self.end = 0
        backend.bind(
            Slabs(memoryview(self.inputs).toreadonly(), memoryview(self.outputs), slot_bytes)
        )

    def put(self, array):
        if array is None:
            return None
        data = array.tobytes() if array.dtype != object else encode(array)
        offset, self.end = self.end, self.end + -(-len(data) // 64) * 64
        self.inputs[offset : offset + len(data)] = data
        return offset, len(data), array.shape

    def run(self, *arrays):
        self.end = 0
        places = self.backend.run(Batch(tuple(self.put(array) for array in arrays)))
        infos = self.backend.signature.outputs
        return [self.get(place, info) for place, info in zip(places, infos, strict=True)]

    def get(self, place, info):
        offset, byte_len, dims = place
        data = bytes(self.outputs[offset : offset + byte_len])
        if info.datatype == "BYTES":
            return decode(data)
        return np.frombuffer(data, NUMPY_TYPES[info.datatype]).reshape(dims)


def encode(array):
    return b"".join(len(text).to_bytes(4, "little") + text for text in array.flat)


def decode(data):
    texts = []
    while data:
        length = int.from_bytes(data[:4], "little")
        texts.append(data[4 : 4 + length])
        data = data[4 + length :]
    return texts


@pytest.fixture
def runner():
    return Runner
