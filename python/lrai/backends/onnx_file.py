"""The few facts of an .onnx file that onnxruntime does not tell: opset, class labels.

Reads protobuf's wire format itself, because importing `onnx` costs every actor 40 MB.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_CLASSIC_DOMAIN: Final = "ai.onnx.ml"
_FIXED_BYTES: Final = {1: 8, 5: 4}
# Paths of field numbers in onnx.proto, from the message that is searched.
_MODEL_OPSETS, _OPSET_DOMAIN, _OPSET_VERSION = (8,), (1,), (2,)
_MODEL_NODES, _NODE_OUTPUTS, _NODE_ATTRIBUTES = (7, 1), (2,), (5,)
_ATTRIBUTE_NAME, _ATTRIBUTE_INTS, _ATTRIBUTE_STRINGS = (1,), (8,), (9,)


@dataclass(frozen=True)
class OnnxFacts:
    """What was read from a file."""

    opset: int = 0
    """Version of the default operator set; 0 = unknown."""
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Class labels by the name of the tensor whose node carries them, in graph order."""


def read_facts(path: str) -> OnnxFacts:
    """Read the facts; a file that is no protobuf message has none."""
    try:
        with Path(path).open("rb") as file:
            model = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        opsets = {
            "".join(_texts(entry, _OPSET_DOMAIN)): next(_values(entry, _OPSET_VERSION), 0)
            for entry in _values(model, _MODEL_OPSETS)
        }
        labels: dict[str, tuple[str, ...]] = {}
        # Only the operators of classical models carry labels; large networks are not searched.
        for node in _values(model, _MODEL_NODES) if _CLASSIC_DOMAIN in opsets else ():
            if classes := _class_labels(node):
                labels |= dict.fromkeys(_texts(node, _NODE_OUTPUTS), classes)
        return OnnxFacts(opsets.get("", opsets.get("ai.onnx", 0)), labels)
    except (OSError, ValueError, IndexError, TypeError):
        return OnnxFacts()


def _class_labels(node: memoryview) -> tuple[str, ...]:
    """Return the class labels of a classifier or a ZipMap; of another node there are none."""
    labels: list[str] = []
    for attribute in _values(node, _NODE_ATTRIBUTES):
        if "".join(_texts(attribute, _ATTRIBUTE_NAME)).startswith("classlabels_"):
            labels += _texts(attribute, _ATTRIBUTE_STRINGS)
            for value in _values(attribute, _ATTRIBUTE_INTS):
                numbers = [value] if isinstance(value, int) else _packed(value)
                labels += [str(n - (1 << 64) if n >> 63 else n) for n in numbers]
    return tuple(labels)


def _texts(message: memoryview, path: tuple[int, ...]) -> list[str]:
    return [str(value, "utf-8", "replace") for value in _values(message, path)]


def _values(message: memoryview, path: tuple[int, ...]) -> Iterator[Any]:
    """Yield the values at a path of field numbers: integers, or memory."""
    for number, value in _fields(message):
        if number == path[0]:
            yield from _values(value, path[1:]) if path[1:] else (value,)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield each field's number with its value; nested messages and strings as memory."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7 == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            length, position = _varint(message, position)
        else:
            length = _FIXED_BYTES.get(key & 7, len(message))
        if position + length > len(message):
            raise ValueError("truncated, or of an unknown wire type")
        yield key >> 3, message[position : position + length]
        position += length


def _packed(memory: memoryview) -> Iterator[int]:
    position = 0
    while position < len(memory):
        value, position = _varint(memory, position)
        yield value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    end = position
    while message[end] & 0x80:
        end += 1
    digits = message[position : end + 1]
    return sum((byte & 0x7F) << 7 * at for at, byte in enumerate(digits)), end + 1
