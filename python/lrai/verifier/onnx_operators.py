"""ONNX nodes to operators: one builder per kind of node, and the table of all."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrai.errors import UnsupportedOperatorError
from lrai.verifier.onnx_graph import Graph, Value, attributes, evaluate
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.base import Array, Operator
from lrai.verifier.operators.linear import Contract, Scale, Sum
from lrai.verifier.operators.relu import Relu

if TYPE_CHECKING:
    import onnx

Inputs = Sequence[Value | None]
Builder = Callable[[Graph, "onnx.NodeProto", Inputs], Sequence[Value]]


def refuse(graph: Graph, node: "onnx.NodeProto", what: str) -> UnsupportedOperatorError:
    """The error for a node that is supported only in another form."""
    return UnsupportedOperatorError(
        f"{graph.name(node)}: {node.op_type} with {what} has no bounds.",
        "simplify the model, or verify a part of it",
    )


def unpack(graph: Graph, node: "onnx.NodeProto", inputs: Inputs, count: int) -> list[Value]:
    """The first inputs, all given and none an integer tensor."""
    found = [value for value in inputs[:count] if value is not None and value.levels is None]
    if len(found) != count:
        raise refuse(graph, node, f"fewer than {count} floating point inputs")
    return found


def elementwise(make: Callable[[dict[str, Any]], Operator]) -> Builder:
    """A builder for a function of one value."""

    def build(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
        (value,) = unpack(graph, node, inputs, 1)
        operator = make(attributes(node))
        return [graph.add(graph.name(node), operator, (value.node,), value.shape)]

    return build


def movement(*data: int) -> Builder:
    """A builder for a node that only moves elements of the inputs at these places (none: all)."""

    def build(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
        arrays: list[Any] = [None if value is None else value.constant for value in inputs]
        moved: list[Value] = []
        constants: list[Array] = []
        total = sum(_size(value) for value in inputs if value is not None and value.node >= 0)
        start = 0
        for position in data or range(len(inputs)):
            value = inputs[position]
            if value is None:
                raise refuse(graph, node, f"no input {position}")
            if value.constant is None:
                moved.append(value)
                first, start = start, start + _size(value)
            else:
                constants.append(value.floats.reshape(-1))
                first, total = total, total + _size(value)
            arrays[position] = np.arange(first, first + _size(value)).reshape(value.shape)
        if start != sum(_size(v) for v in inputs if v is not None and v.node >= 0):
            raise refuse(graph, node, "indices that are not constant")
        levels = {value.levels for value in moved}
        if len(levels) > 1 or (constants and levels != {None}):
            raise refuse(graph, node, "integer tensors of several scales")
        pool = np.concatenate([np.empty(0), *constants])
        found = evaluate(node, arrays, graph.opset)
        return [graph.select(graph.name(node), tuple(moved), item, pool) for item in found]

    return build


def _identity(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    value = inputs[0]
    if value is None:
        raise refuse(graph, node, "no input")
    if node.op_type == "Dropout" and any(graph.consumers[name] for name in node.output[1:]):
        raise refuse(graph, node, "a mask that is used")
    mode = inputs[2] if len(inputs) > 2 else None
    if mode is not None and (mode.constant is None or mode.constant.any()):
        raise refuse(graph, node, "training mode")
    return [value]


def _add(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    left, right = unpack(graph, node, inputs, 2)
    shape = np.broadcast_shapes(left.shape, right.shape)
    name, sign = graph.name(node), -1.0 if node.op_type == "Sub" else 1.0
    if left.constant is None and right.constant is None:
        parts = [graph.broadcast(name, value, shape) for value in (left, right)]
        operator: Operator = Sum((1.0, sign), int(np.prod(shape)))
        return [graph.add(name, operator, tuple(value.node for value in parts), shape)]
    if left.constant is None:
        source, value, factor, bias = node.input[0], left, 1.0, sign * right.floats
    else:
        source, value, factor, bias = node.input[1], right, sign, left.floats
    bias = np.broadcast_to(bias, shape).reshape(-1)
    if factor == 1.0 and not bias.any():
        return [graph.broadcast(name, value, shape)]
    if factor == 1.0 and value.shape == shape:
        fused = graph.add_bias(name, source, value, bias)
        if fused is not None:
            return [fused]
    value = graph.broadcast(name, value, shape)
    operator = Scale(np.full(bias.size, factor), bias, terms=1)
    return [graph.add(name, operator, (value.node,), shape)]


def _mat_mul(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    left, right = unpack(graph, node, inputs, 2)
    name = graph.name(node)
    shape = _product_shape(left.shape, right.shape)
    if _is_matrix(right):
        weights = right.floats.reshape(right.shape[-2:] if len(right.shape) > 1 else (-1, 1))
        outer = _size(left) // weights.shape[0]
        if outer == 1:
            operator: Operator = Affine((weights,), np.zeros(weights.shape[1]))
        else:
            operator = Contract(weights, outer, 1)
        return [graph.add(name, operator, (left.node,), shape)]
    if left.constant is not None and left.floats.ndim == 2:
        weights = left.floats.T
        inner = right.shape[-1] if len(right.shape) > 1 else 1
        outer = _size(right) // (weights.shape[0] * inner)
        return [graph.add(name, Contract(weights, outer, inner), (right.node,), shape)]
    raise refuse(graph, node, "these shapes")


def _gemm(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    left, right = unpack(graph, node, inputs, 2)
    stated = attributes(node)
    bias = inputs[2] if len(inputs) > 2 else None
    if right.constant is None or left.constant is not None or stated.get("transA", 0):
        raise refuse(
            graph, node, "a first input that is constant or transposed, or a varying second"
        )
    if bias is not None and bias.constant is None:
        raise refuse(graph, node, "a bias that varies")
    weights = (right.floats.T if stated.get("transB", 0) else right.floats) * stated.get("alpha", 1)
    shape = (left.shape[0], weights.shape[1])
    added = np.zeros(shape)
    if bias is not None:
        added = added + bias.floats * stated.get("beta", 1)
    operator: Affine | Contract = (
        Affine((weights,), added.reshape(-1)) if shape[0] == 1 else Contract(weights, shape[0], 1)
    )
    operator.bias = added.reshape(-1)
    operator.terms += 2 * (stated.get("alpha", 1) != 1 or stated.get("beta", 1) != 1)
    return [graph.add(graph.name(node), operator, (left.node,), shape)]


def _size(value: Value) -> int:
    return int(np.prod(value.shape, dtype=np.int64))


def _is_matrix(value: Value) -> bool:
    return value.constant is not None and all(size == 1 for size in value.shape[:-2])


def _product_shape(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return np.broadcast_shapes(left[:-2], right[:-2]) + rows + columns


_MOVEMENTS = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather"),
    *("GatherElements", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
)

BUILDERS: dict[str, Builder] = {
    "Add": _add,
    "Sub": _add,
    "MatMul": _mat_mul,
    "Gemm": _gemm,
    "Relu": elementwise(lambda _: Relu()),
    "Identity": _identity,
    "Dropout": _identity,
    "Concat": movement(),
    "Where": movement(1, 2),
} | {kind: movement(0) for kind in _MOVEMENTS}
