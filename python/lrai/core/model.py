"""What a model looks like from outside: its tensors and its signature."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

# The protocol's datatypes with the bytes of one element (0: each element carries its length).
DATATYPE_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}


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

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}{list(self.shape)}"


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
    load_ms: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can carry between processes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Signature":
        """Read what `as_dict` wrote."""
        return cls(
            platform=plain["platform"],
            inputs=tuple(_tensor_from_dict(tensor) for tensor in plain["inputs"]),
            outputs=tuple(_tensor_from_dict(tensor) for tensor in plain["outputs"]),
            batchable=plain["batchable"],
            notes=tuple(plain["notes"]),
            load_ms=plain["load_ms"],
        )

    def __str__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"({inputs}) -> ({outputs})"


def _tensor_from_dict(plain: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(
        name=plain["name"],
        datatype=plain["datatype"],
        shape=tuple(plain["shape"]),
        labels=tuple(plain["labels"]),
        optional=plain["optional"],
    )
