"""Writes the smallest useful ONNX models without the onnx package, to try engines with."""

from collections.abc import Iterable, Mapping
from typing import Final

FLOAT: Final = 1
UINT8: Final = 2
INT8: Final = 3
INT32: Final = 6

_IR_VERSION: Final = 8
_OPSET: Final = 13
_VARINT: Final = 0
_LENGTH: Final = 2


def matmul_model(size: int, operator: str, types: Mapping[str, int], weights: bytes) -> bytes:
    """Return a model of one operator: y = x (1 x size) times weights (size x size).

    `types` gives the element types of x, w and y.
    """
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, operator.encode())
    tensor = _field(1, size) * 2 + _field(2, types["w"]) + _field(8, b"w") + _field(9, weights)
    graph = b"".join(
        (
            _field(1, node),
            _field(2, b"tiny"),
            _field(5, tensor),
            _field(11, _value(b"x", types["x"], (1, size))),
            _field(12, _value(b"y", types["y"], (1, size))),
        )
    )
    opset = _field(1, b"") + _field(2, _OPSET)
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)


def _value(name: bytes, element: int, dims: Iterable[int]) -> bytes:
    shape = b"".join(_field(1, _field(1, dim)) for dim in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, element) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    """One field of protobuf's wire format."""
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
