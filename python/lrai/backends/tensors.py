"""Tensors in slabs as numpy arrays: views of inputs, and one copy of each output."""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lrai.backends.base import Batch, BatchFaultError, Place, Slabs
from lrai.core.model import DATATYPES, TensorInfo

Array = npt.NDArray[Any]

NUMPY_TYPES: Final[Mapping[str, npt.DTypeLike]] = {
    name: np.dtype(datatype.numpy) for name, datatype in DATATYPES.items()
}
"""The numpy type of each datatype; BF16 has none, its 16 bits show as an unsigned number."""

_ALIGNMENT: Final = 64


def view(slab: memoryview, place: Place, datatype: str) -> Array:
    """Return a read-only array over one input; BYTES are copied, as an array of `bytes`."""
    offset, byte_len, dims = place
    memory = slab[offset : offset + byte_len].toreadonly()
    if datatype == "BYTES":
        return _read_strings(memory, dims)
    return np.frombuffer(memory, NUMPY_TYPES[datatype]).reshape(dims)


def read_inputs(slabs: Slabs, batch: Batch, inputs: Sequence[TensorInfo]) -> dict[str, Array]:
    """Return `view`s of a batch's inputs by name, without optional ones that were left out."""
    return {
        tensor.name: view(slabs.inputs, place, tensor.datatype)
        for place, tensor in zip(batch.inputs, inputs, strict=True)
        if place is not None
    }


def write_outputs(
    slabs: Slabs, batch: Batch, outputs: Sequence[TensorInfo], arrays: Iterable[Array]
) -> list[Place]:
    """Copy a batch's outputs into its slot; strings may be `str` or `bytes`."""
    writer = SlotWriter(slabs, batch.output_slot)
    pairs = zip(outputs, arrays, strict=True)
    return [writer.write(array, tensor.datatype) for tensor, array in pairs]


def _read_strings(memory: memoryview, dims: tuple[int, ...]) -> Array:
    """Read strings, each with its length before it; the gateway has checked the lengths."""
    elements = np.empty(int(np.prod(dims)), np.object_)
    start = 0
    for index in range(elements.size):
        (length,) = struct.unpack_from("<I", memory, start)
        start += 4
        elements[index] = bytes(memory[start : start + length])
        start += length
    return elements.reshape(dims)


class SlotWriter:
    """Gives the outputs of one batch their places in its slot, one after the other."""

    def __init__(self, slabs: Slabs, index: int) -> None:
        """Start at the beginning of slot `index`."""
        self._memory = slabs.slot(index)
        self._end = 0

    def reserve(self, num_bytes: int) -> int:
        """Return the offset of the next bytes; raises `BatchFaultError` if they do not fit."""
        offset = self._end
        if offset + num_bytes > len(self._memory):
            raise BatchFaultError(
                f"the outputs of this batch need {offset + num_bytes} bytes, "
                f"their slot has {len(self._memory)} hint: raise max_output_bytes"
            )
        self._end = offset + -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return offset

    def place(self, datatype: str, dims: tuple[int, ...]) -> Place:
        """Return the place of an output of fixed-size elements."""
        num_bytes = DATATYPES[datatype].num_bytes * math.prod(dims)
        return self.reserve(num_bytes), num_bytes, dims

    def write(self, array: Array, datatype: str) -> Place:
        """Copy an output into the slot; strings may be `str` or `bytes`."""
        if datatype == "BYTES":
            text = join_strings(array)
            offset = self.reserve(len(text))
            self._memory[offset : offset + len(text)] = text
            return offset, len(text), array.shape
        offset = self.reserve(array.nbytes)
        if array.size:
            target = np.frombuffer(self._memory, array.dtype, array.size, offset)
            target.reshape(array.shape)[...] = array
        return offset, array.nbytes, array.shape


def join_strings(array: Array) -> bytes:
    """Return strings, `str` or `bytes`, one after the other, each with its length before it."""
    texts = (one if isinstance(one, bytes) else str(one).encode() for one in array.flat)
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
