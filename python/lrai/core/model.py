"""What a model looks like from outside: its tensors and its signature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple


class Datatype(NamedTuple):
    """What one of the protocol's datatypes is called elsewhere."""

    num_bytes: int
    """Bytes of one element; 0 = each element carries its length."""
    numpy: str
    """Type of an array that holds it; BF16 has none, its 16 bits show as an unsigned number."""
    onnx: str
    onnx_number: int
    """In onnx.proto."""


DATATYPES: Final[Mapping[str, Datatype]] = {
    "BOOL": Datatype(1, "bool", "bool", 9),
    "UINT8": Datatype(1, "uint8", "uint8", 2),
    "UINT16": Datatype(2, "uint16", "uint16", 4),
    "UINT32": Datatype(4, "uint32", "uint32", 12),
    "UINT64": Datatype(8, "uint64", "uint64", 13),
    "INT8": Datatype(1, "int8", "int8", 3),
    "INT16": Datatype(2, "int16", "int16", 5),
    "INT32": Datatype(4, "int32", "int32", 6),
    "INT64": Datatype(8, "int64", "int64", 7),
    "FP16": Datatype(2, "float16", "float16", 10),
    "BF16": Datatype(2, "uint16", "bfloat16", 16),
    "FP32": Datatype(4, "float32", "float", 1),
    "FP64": Datatype(8, "float64", "double", 11),
    "BYTES": Datatype(0, "object", "string", 8),
}
"""Every datatype of the Open Inference Protocol."""


_FIRST_EDGE: Final = 16


class Allocation(NamedTuple):
    """What of the processors a model gets."""

    replicas: int
    threads: int
    """Engine threads of each replica."""

    def __str__(self) -> str:
        return f"{self.replicas} x {self.threads}"


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model."""

    name: str
    datatype: str
    """Name of the Open Inference Protocol: `FP32`, `INT64`, `BYTES`..."""
    shape: tuple[int, ...]
    """Full shape, batch dimension included; -1 = any length."""
    labels: tuple[str, ...] = ()
    """Class labels of an output, if the model knows them."""
    optional: bool = False
    """An input that a request may leave out."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can be it."""
        return len(shape) == len(self.shape) and all(
            want in (-1, have) for want, have in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}{list(self.shape)}"


@dataclass(frozen=True)
class Cut:
    """How an output's length follows that of the inputs: `(length + add) // stride`."""

    axis: int = 0
    """The axis of its length; 0 = its shape does not follow."""
    stride: int = 1
    add: int = 0

    def length(self, length: int) -> int:
        """Return the output's length for one of the inputs."""
        return max(0, (length + self.add) // self.stride)


@dataclass(frozen=True)
class Ragged:
    """How requests of different lengths share a batch, padded with zeros to a bucket's edge."""

    inputs: tuple[int, ...] = ()
    """Each input's axis of the length, 0 for none; empty = they do not share one."""
    outputs: tuple[Cut, ...] = ()
    edges: tuple[int, ...] = ()
    """Upper edges of the buckets, ascending, until others are learnt or set."""
    longest: int = 0
    """No request is padded beyond this length."""
    note: str = ""
    """Why lengths stay apart, where they could have come together."""


def first_edges(longest: int, multiple: int = 0) -> tuple[int, ...]:
    """Return the edges of the buckets until they are learnt: two in each doubling, or multiples."""
    edges = [multiple, multiple * 2] if multiple else [_FIRST_EDGE, _FIRST_EDGE * 3 // 2]
    while edges[-1] < longest:
        edges.append(edges[-1] + multiple if multiple else edges[-2] * 2)
    return (*(edge for edge in edges if edge < longest), longest)


@dataclass(frozen=True)
class Signature:
    """What a backend found in a model; reported once by the actor that loaded it."""

    platform: str
    """For example `onnxruntime_onnx`."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    batchable: bool
    """The first dimension of every tensor is free, so requests can share a batch."""
    notes: tuple[str, ...] = ()
    """Sentences for the log: an old opset, a substituted type."""
    ragged: Ragged = field(default=Ragged(), compare=False)
    """Measured by the first replica only, so that successors start at once."""

    def __str__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"({inputs}) -> ({outputs})"
