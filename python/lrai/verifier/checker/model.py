"""The checker's own reading of ONNX files: protobuf in, a Graph out."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import Builder, Graph, RefusedError, Slots
from lrai.verifier.checker.nodes import MOVES, NODES, Value

_MAX_ELEMENTS: Final = 1 << 26


def read_models(contents: Sequence[bytes]) -> Graph:
    """Read models one after the other; their inputs follow each other, and so do their outputs.

    RefusedError names what the checker does not know.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    builder = Builder()
    inputs, outputs = [], []
    for content in contents:
        try:
            model = ModelProto.FromString(content)
        except DecodeError as error:
            raise RefusedError(f"a model is no ONNX file: {error}") from error
        sources, results = _read_graph(builder, model)
        inputs.append(sources)
        outputs.append(results)
    return builder.finish(np.concatenate(inputs), np.concatenate(outputs))


def _read_graph(builder: Builder, model: Any) -> tuple[Slots, Slots]:
    graph = model.graph
    if graph.sparse_initializer or model.functions:
        raise RefusedError("the model has functions or sparse constants")
    values: dict[str, Any] = {"": None}
    values |= {tensor.name: _constant(tensor) for tensor in graph.initializer}
    given = {one.name: _input(builder, one) for one in graph.input if one.name not in values}
    values |= given
    for node in graph.node:
        what = f"{node.op_type} {node.name or list(node.output)[:1]}"
        is_known = all(name in values for name in node.input)
        if not is_known or len(node.output) != 1 or node.output[0] in values:
            raise RefusedError(f"{what} has unknown inputs, several outputs or none")
        values[node.output[0]] = _read_node(builder, node, what, [values[x] for x in node.input])
    found = [values.get(one.name) for one in graph.output]
    slots = [one.slots.reshape(-1) for one in found if isinstance(one, Value) and not one.grid]
    if not given or not found or len(slots) != len(found):
        raise RefusedError("the model has no input, or an output that is no number made from it")
    return np.concatenate([one.slots.reshape(-1) for one in given.values()]), np.concatenate(slots)


def _read_node(builder: Builder, node: Any, what: str, arguments: list[Any]) -> Any:
    found = {one.name: _attribute(one) for one in node.attribute}
    source = arguments[0] if arguments else None
    kind = node.op_type if node.domain in ("", "ai.onnx") else ""
    if kind not in MOVES and kind not in NODES:
        raise RefusedError(f"the checker does not know {what}")
    try:
        if kind in NODES:
            if kind != "DequantizeLinear" and any(getattr(one, "grid", None) for one in arguments):
                raise ValueError("it calculates with quantised values")
            made = NODES[kind](builder, found, *arguments)
            if isinstance(made, np.ndarray) and any(isinstance(one, Value) for one in arguments):
                made = Value(made)
        elif isinstance(source, Value):
            if source.grid and source.grid[-1] is not None:
                raise ValueError("channels would move away from their scales")
            made = Value(MOVES[kind](found, source.slots, *arguments[1:]), source.grid)
        else:
            made = np.asarray(MOVES[kind](found, *arguments))
        is_large = getattr(made, "slots", made).size > _MAX_ELEMENTS
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RefusedError(f"the checker does not know this form of {what}: {error}") from error
    if found or is_large:
        raise RefusedError(f"{what} is too large or has unknown attributes {sorted(found)}")
    return made


def _constant(tensor: Any) -> Any:
    from onnx import numpy_helper

    if tensor.data_location or math.prod(tensor.dims) > _MAX_ELEMENTS:
        raise RefusedError(f"the constant {tensor.name!r} is too large or not in the model file")
    try:
        return numpy_helper.to_array(tensor)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"the constant {tensor.name!r} cannot be read: {error}") from error


def _attribute(one: Any) -> Any:
    kinds = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints"}
    if one.type not in kinds:
        raise RefusedError(f"the checker does not know the attribute {one.name!r}")
    found = getattr(one, kinds[one.type])
    if one.type == 4:
        return _constant(found)
    return list(found) if one.type > 4 else found


def _input(builder: Builder, given: Any) -> Value:
    kind = given.type.tensor_type
    shape = [axis.dim_value for axis in kind.shape.dim]
    # An open first dimension is the batch: one row at a time.
    shape[:1] = [size or 1 for size in shape[:1]]
    if kind.elem_type != 1 or min(shape, default=1) < 1:
        raise RefusedError(f"the input {given.name!r} is no float32 tensor of fixed shape")
    return Value(builder.new(math.prod(shape)).reshape(shape))
