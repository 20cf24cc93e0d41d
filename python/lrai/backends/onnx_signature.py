"""What an ONNX graph's inputs and outputs mean in the protocol, and whether requests can share a
batch: read from the declared shapes, and confirmed by running zeros through the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from lrai.backends.onnx_file import OnnxFacts
from lrai.backends.tensors import NUMPY_TYPES, Array
from lrai.core.model import DATATYPES, Signature, TensorInfo
from lrai.errors import ModelLoadError

Dim = int | str | None
"""A dimension as the file has it: a size, a symbol, or nothing."""

NodeArg = Any
"""An input or output as onnxruntime describes it: `name`, `type` and `shape`, which is empty for a
scalar and for an unknown shape alike. The package has no types."""

Run = Callable[[Mapping[str, Array]], Sequence[Any]]
"""Runs the model once; outputs are arrays, or lists for sequences."""

# Datatype and number in onnx.proto of every type that the protocol can carry.
_ELEMENTS: Final = {
    f"tensor({one.onnx})": (name, one.onnx_number) for name, one in DATATYPES.items()
}
_ZIP_MAPS: Final = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")
_OLDEST_QUIET_OPSET: Final = 17
# More defaulted inputs than this are weights of an old exporter, not settings for a client.
_MAX_OPTIONAL_INPUTS: Final = 8
# Lengths to try for free dimensions: common strides divide 64, and sequences may be short.
_PROBE_LENGTHS: Final = (64, 1)


@dataclass(frozen=True)
class Tensor:
    """One input or output: what clients see, and what the engine needs."""

    info: TensorInfo
    dims: tuple[Dim, ...]
    element: int
    """Number of the element type in onnx.proto; 0 = a ZipMap's sequence of maps."""

    @property
    def is_plain(self) -> bool:
        """Whether its memory can be bound: neither strings nor maps."""
        return self.element != 0 and self.info.datatype != "BYTES"


@dataclass(frozen=True)
class Graph:
    """A model's inputs and outputs in its own order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()
    is_batchable: bool = False

    @property
    def signature(self) -> Signature:
        """What clients see."""
        return Signature(
            platform="onnxruntime_onnx",
            inputs=tuple(tensor.info for tensor in self.inputs),
            outputs=tuple(tensor.info for tensor in self.outputs),
            batchable=self.is_batchable,
            notes=self.notes,
        )


def read_graph(
    inputs: Sequence[NodeArg],
    defaulted: Sequence[NodeArg],
    outputs: Sequence[NodeArg],
    facts: OnnxFacts,
) -> Graph:
    """Translate; raises `ModelLoadError` for a type that the protocol cannot carry."""
    notes = []
    if 0 < facts.opset < _OLDEST_QUIET_OPSET:
        notes.append(f"opset {facts.opset} is old; the model is served as it is")
    if len(defaulted) > _MAX_OPTIONAL_INPUTS:
        notes.append(f"{len(defaulted)} inputs with defaults are taken for weights and not offered")
        defaulted = ()
    optional = [_tensor(node, facts) for node in defaulted]
    required = [_tensor(node, facts) for node in inputs]
    return Graph(
        inputs=(*required, *(replace(t, info=replace(t.info, optional=True)) for t in optional)),
        outputs=tuple(_tensor(node, facts) for node in outputs),
        notes=tuple(notes),
    )


def _tensor(node: NodeArg, facts: OnnxFacts) -> Tensor:
    labels = facts.labels.get(node.name, ())
    if node.type in _ZIP_MAPS:
        if not labels:
            raise ModelLoadError(
                f"output '{node.name}' is a sequence of maps and its class labels were not found",
                hint="export the model without ZipMap",
            )
        info = TensorInfo(node.name, "FP32", (-1, len(labels)), labels)
        return Tensor(info, dims=(None, len(labels)), element=0)
    datatype, element = _ELEMENTS.get(node.type, ("", 0))
    if not datatype:
        raise ModelLoadError(
            f"'{node.name}' has type {node.type}, which the protocol cannot carry",
            hint="export the model with plain tensors as inputs and outputs",
        )
    dims = tuple(node.shape)
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in dims)
    has_labels = datatype in ("FP32", "FP64") and shape[1:] == (len(labels),)
    return Tensor(
        TensorInfo(node.name, datatype, shape, labels if has_labels else ()), dims, element
    )


def probe(graph: Graph, run: Run) -> Graph:
    """Find whether requests can share a batch; running the model also warms it up.

    Returns the graph with what was found, output ranks included.
    """
    free = {dim for tensor in graph.inputs for dim in tensor.dims[1:] if not isinstance(dim, int)}
    if not _may_be_batchable(graph):
        sizes = {dim for tensor in graph.inputs for dim in tensor.dims if not isinstance(dim, int)}
        return graph if sizes else _with_ranks(graph, _try(graph, run, 1, 1)[0])
    is_told = _tells_batch(graph)
    if free and is_told:
        return replace(graph, is_batchable=True)
    for length in _PROBE_LENGTHS if free else (1,):
        one, _ = _try(graph, run, 1, length)
        if one is None:
            continue
        two, why = _try(graph, run, 2, length)
        graph = _with_ranks(graph, one)
        if two is None:
            return _alone(graph, f"runs one row but not two, so requests run alone: {why}")
        if any(shape[:1] != (rows,) for rows, shapes in ((1, one), (2, two)) for shape in shapes):
            return _alone(graph, "an output does not follow the rows, so requests run alone")
        return replace(graph, is_batchable=True)
    return replace(graph, is_batchable=is_told)


def _may_be_batchable(graph: Graph) -> bool:
    """Whether the declared shapes allow a batch; an output without dimensions is just unknown."""
    symbols = {t.dims[0] for t in graph.inputs if t.dims and isinstance(t.dims[0], str)}
    return (
        bool(graph.inputs)
        and all(t.dims and not isinstance(t.dims[0], int) for t in graph.inputs)
        and not any(t.dims and isinstance(t.dims[0], int) for t in graph.outputs)
        and not any(t.info.optional for t in graph.inputs)
        and len(symbols) <= 1
    )


def _tells_batch(graph: Graph) -> bool:
    """Whether no first dimension has a name of its own, so that the declaration can be believed."""
    tensors = [*graph.inputs, *graph.outputs]
    symbols = {t.dims[0] for t in tensors if t.dims and t.dims[0] is not None}
    return len(symbols) <= 1 and all(tensor.dims for tensor in tensors)


def _try(
    graph: Graph, run: Run, rows: int, length: int
) -> tuple[list[tuple[int, ...]] | None, str]:
    """Run zeros; return the outputs' shapes, or None and the reason."""
    required = [tensor for tensor in graph.inputs if not tensor.info.optional]
    if any(tensor.info.datatype == "BF16" for tensor in required):
        return None, "numpy has no BF16"
    try:
        outputs = run({t.info.name: _zeros(t, rows, length) for t in required})
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - zeros may be no valid input: that is no fault
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__
    return [(len(out),) if isinstance(out, list) else np.shape(out) for out in outputs], ""


def _zeros(tensor: Tensor, rows: int, length: int) -> Array:
    shape = [
        dim if isinstance(dim, int) else length if at else rows
        for at, dim in enumerate(tensor.dims)
    ]
    if tensor.info.datatype == "BYTES":
        return np.full(shape, "", np.object_)
    return np.zeros(shape, NUMPY_TYPES[tensor.info.datatype])


def _with_ranks(graph: Graph, shapes: Sequence[tuple[int, ...]] | None) -> Graph:
    """Give outputs whose shape the file does not tell the rank that was seen."""
    if shapes is None:
        return graph
    outputs = tuple(
        tensor
        if tensor.dims or not shape
        else replace(tensor, info=replace(tensor.info, shape=(-1,) * len(shape)))
        for tensor, shape in zip(graph.outputs, shapes, strict=True)
    )
    return replace(graph, outputs=outputs)


def _alone(graph: Graph, note: str) -> Graph:
    return replace(graph, notes=(*graph.notes, note))
