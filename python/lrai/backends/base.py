"""What every backend is: a loaded model with a signature that runs batches between two slabs."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lrai.core.model import DATATYPES, Signature, TensorInfo
from lrai.errors import ModelLoadError

Place = tuple[int, int, tuple[int, ...]]
"""A tensor in a slab: offset, length in bytes, full shape. Plain, because it crosses the seam."""

FaultCode = Literal[0, 1, 2]
"""Why a batch failed, as the link carries it: the model, the input, or unsupported."""


@dataclass(frozen=True)
class Padding:
    """What a backend shall find out about requests of different lengths, see `find_ragged`."""

    mode: Literal["off", "auto", "accept"] = "off"
    """Not to pad; to pad where that changes no answer; to pad because the user says so."""
    tolerance: float = 1e-4
    """Largest change of an answer, relative to the output's largest value."""
    dimension: str = ""
    """Name of the length in the graph; empty = the only free dimension."""
    mask_inputs: tuple[str, ...] = ()
    """Inputs that are 1 where there is data, beside those with `mask` in their name."""


@dataclass(frozen=True)
class BackendSpec:
    """What a backend needs to load a model."""

    path: str
    """The model's file, or its folder for the `python` backend."""
    threads: int = 1
    """Processors that one batch may use."""
    provider: str = "cpu"
    """The engine's device: `cpu`, `cuda`, `openvino`..."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Parameters of the model's configuration; a backend ignores those it does not know."""
    padding: Padding = Padding()


@dataclass(frozen=True)
class Slabs:
    """The memory that an actor shares with the gateway."""

    inputs: memoryview
    """Read-only; rows of other batches may lie in it, so a view must not outlive its batch."""
    outputs: memoryview
    """All output slots, one after the other."""
    output_slot_bytes: int

    def slot(self, index: int) -> memoryview:
        """Return the memory of one output slot."""
        start = index * self.output_slot_bytes
        return self.outputs[start : start + self.output_slot_bytes]


class Batch(Protocol):
    """One batch, as the mailbox hands it over."""

    @property
    def output_slot(self) -> int:
        """Index of the slot that takes the outputs."""
        ...

    @property
    def inputs(self) -> tuple[Place | None, ...]:
        """Places in the input slab in the model's order; None for an optional input left out."""
        ...


@dataclass(frozen=True)
class LocalBatch:
    """A batch of the process's own, where there is no mailbox."""

    inputs: tuple[Place | None, ...]
    output_slot: int = 0


class BatchFaultError(Exception):
    """A batch failed and the actor lives; the message goes to the client."""

    def __init__(self, message: str, code: FaultCode = 0) -> None:
        """Keep the sentence, and whether the model, the input or a missing feature is to blame."""
        super().__init__(message)
        self.code = code


class Backend(ABC):
    """A loaded model. The constructor loads it, or raises `ModelLoadError` with a sentence."""

    signature: Signature
    slabs: Slabs

    @abstractmethod
    def __init__(self, spec: BackendSpec) -> None:
        """Load the model of `spec`, and run it once on zeros where its shapes are known."""

    @classmethod
    def rehearse(cls) -> None:
        """Do in the template what the engine does once, so that all forks share its memory.

        Must leave no thread and no open file behind.
        """
        return

    def bind(self, slabs: Slabs) -> None:
        """Take the memory that batches will lie in; again when it is another."""
        self.slabs = slabs

    @abstractmethod
    def run(self, batch: Batch) -> list[Place]:
        """Run one batch and return the places of all outputs, relative to the slot's start.

        Raises `BatchFaultError` where the batch is to blame; `MemoryError` ends the actor.
        """


def declared_tensors(tensors: object, where: str) -> tuple[TensorInfo, ...]:
    """Read a list of `[name, datatype, shape]`; `where` names it in the message if it is wrong."""
    hint = 'write a list such as [("x", "FP32", [-1, 4])]'
    if not isinstance(tensors, Sequence) or not tensors or isinstance(tensors, str):
        raise ModelLoadError(f"{where} declares no tensors", hint=hint)
    found = []
    for tensor in tensors:
        match tensor:
            case [str(name), str(datatype), [*dims]] if all(isinstance(dim, int) for dim in dims):
                found.append(TensorInfo(name, datatype, tuple(dims)))
            case _:
                message = f"{where} holds {tensor!r}, which declares no tensor"
                raise ModelLoadError(message, hint=hint)
        if datatype not in DATATYPES:
            message = f"{where} gives '{name}' the datatype '{datatype}'"
            raise ModelLoadError(message, hint=f"the datatypes are {', '.join(DATATYPES)}")
    return tuple(found)


def optional_tensors(options: Mapping[str, str], key: str) -> tuple[TensorInfo, ...]:
    """Read tensors that the model's configuration declares as JSON; empty if it does not."""
    text = options.get(key)
    return declared_tensors(json.loads(text), f"the configuration's '{key}'") if text else ()


def has_batch_dimension(tensors: Sequence[TensorInfo]) -> bool:
    """Whether the first dimension of every tensor is free."""
    return all(tensor.shape and tensor.shape[0] == -1 for tensor in tensors)
