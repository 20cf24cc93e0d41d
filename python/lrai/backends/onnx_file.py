"""The few facts of an .onnx file that onnxruntime does not tell: opset, class labels.

Reads protobuf's wire format itself, because importing `onnx` costs every actor 40 MB.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

Value = int | memoryview

_CLASSIC_DOMAIN: Final = "ai.onnx.ml"
# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_OPSET_IMPORT = 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE = 1
_NODE_OUTPUT, _NODE_ATTRIBUTE = 2, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTS, _ATTRIBUTE_STRINGS = 1, 8, 9


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
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _read_model(memoryview(mapped))
    except (OSError, ValueError, IndexError):
        return OnnxFacts()


def _read_model(model: memoryview) -> OnnxFacts:
    opsets: dict[str, int] = {}
    graphs: list[memoryview] = []
    for number, value in _fields(model):
        if number == _MODEL_OPSET_IMPORT and isinstance(value, memoryview):
            entry = dict(_fields(value))
            version = entry.get(_OPSET_VERSION, 0)
            opsets[_text(entry.get(_OPSET_DOMAIN))] = version if isinstance(version, int) else 0
        elif number == _MODEL_GRAPH and isinstance(value, memoryview):
            graphs.append(value)
    labels: dict[str, tuple[str, ...]] = {}
    # Only the operators of classical models carry labels; large networks are not searched.
    for graph in graphs if _CLASSIC_DOMAIN in opsets else ():
        for number, node in _fields(graph):
            if number == _GRAPH_NODE and isinstance(node, memoryview):
                _read_labels(node, labels)
    return OnnxFacts(opsets.get("", opsets.get("ai.onnx", 0)), labels)


def _read_labels(node: memoryview, labels: dict[str, tuple[str, ...]]) -> None:
    """Note the class labels of a classifier or a ZipMap under its outputs' names."""
    outputs: list[str] = []
    classes: list[str] = []
    for number, value in _fields(node):
        if number == _NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == _NODE_ATTRIBUTE and isinstance(value, memoryview):
            classes += _class_labels(value)
    if classes:
        labels.update(dict.fromkeys(outputs, tuple(classes)))


def _class_labels(attribute: memoryview) -> list[str]:
    name, classes = "", []
    for number, value in _fields(attribute):
        if number == _ATTRIBUTE_NAME:
            name = _text(value)
        elif number == _ATTRIBUTE_STRINGS:
            classes.append(_text(value))
        elif number == _ATTRIBUTE_INTS:
            numbers = [value] if isinstance(value, int) else list(_varints(value))
            classes += [str(n - (1 << 64) if n >> 63 else n) for n in numbers]
    return classes if name.startswith("classlabels_") else []


def _text(value: Value | None) -> str:
    return str(value, "utf-8", "replace") if isinstance(value, memoryview) else ""


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield each field's number with its value; nested messages and strings as memory."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(message):
            raise ValueError("truncated")
        yield key >> 3, message[position : position + length]
        position += length


def _varints(packed: memoryview) -> Iterator[int]:
    position = 0
    while position < len(packed):
        value, position = _varint(packed, position)
        yield value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
