"""Builders of ONNX's arithmetic: sums, products, powers and reductions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lrai.verifier.onnx_graph import (
    Builder,
    Graph,
    Inputs,
    Value,
    attributes,
    constant,
    refuse,
    unpack,
)
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.base import Operator
from lrai.verifier.operators.linear import Contract, Scale, Sum
from lrai.verifier.operators.product import Maximum, Product
from lrai.verifier.operators.smooth import Reciprocal, Sqrt, Square

if TYPE_CHECKING:
    import onnx


def _add(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    left, right = unpack(graph, node, inputs, 2)
    shape = np.broadcast_shapes(left.shape, right.shape)
    name, sign = graph.name(node), -1.0 if node.op_type == "Sub" else 1.0
    if left.constant is None and right.constant is None:
        parts = [graph.broadcast(name, value, shape) for value in (left, right)]
        total = Sum((1.0, sign), int(np.prod(shape)))
        return [graph.add(name, total, tuple(value.node for value in parts), shape)]
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


def _sum(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    values = unpack(graph, node, inputs, len(inputs))
    if any(value.constant is not None for value in values):
        raise refuse(graph, node, "a constant")
    name, shape = graph.name(node), np.broadcast_shapes(*(value.shape for value in values))
    parts = [graph.broadcast(name, value, shape) for value in values]
    total = Sum((1.0,) * len(parts), int(np.prod(shape)))
    return [graph.add(name, total, tuple(value.node for value in parts), shape)]


def _multiply(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    left, right = unpack(graph, node, inputs, 2)
    shape, name = np.broadcast_shapes(left.shape, right.shape), graph.name(node)
    if node.op_type == "Div" and right.constant is None:
        right = graph.add(name, Reciprocal(), (right.node,), right.shape)
    if left.constant is None and right.constant is None:
        if left.node == right.node and left.shape == right.shape:
            return [graph.add(name, Square(), (left.node,), shape)]
        parts = [graph.broadcast(name, value, shape) for value in (left, right)]
        product = Product(int(np.prod(shape)), 1, 1, 1)
        return [graph.add(name, product, tuple(value.node for value in parts), shape)]
    value, other = (left, right) if left.constant is None else (right, left)
    factor = np.broadcast_to(other.floats, shape).reshape(-1)
    if node.op_type == "Div" and other is right:
        if not factor.all():
            raise refuse(graph, node, "a divisor of 0")
        factor = 1 / factor
    graph.loosen(value, 8)
    value = graph.broadcast(name, value, shape)
    return [graph.add(name, Scale(factor, np.zeros(factor.size)), (value.node,), shape)]


def _negate(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    return [_negative(graph, graph.name(node), value)]


def _power(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    exponent, name = constant(graph, node, inputs, 1), graph.name(node)
    if exponent is None or exponent.size != 1:
        raise refuse(graph, node, "more than one exponent")
    number = float(exponent.reshape(()))
    if number == 1:
        return [value]
    kinds: dict[float, type[Operator]] = {2: Square, 3: Square, 0.5: Sqrt, -1: Reciprocal}
    if number not in kinds:
        raise refuse(graph, node, f"the exponent {number:g}")
    found = graph.add(name, kinds[number](), (value.node,), value.shape)
    if number == 3:
        product = Product(value.size, 1, 1, 1)
        found = graph.add(name, product, (value.node, found.node), value.shape)
    return [found]


def _mat_mul(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    left, right = unpack(graph, node, inputs, 2)
    name, shape = graph.name(node), _product_shape(left.shape, right.shape)
    if _is_matrix(right):
        weights = right.floats.reshape(right.shape[-2:] if len(right.shape) > 1 else (-1, 1))
        outer = left.size // weights.shape[0]
        if outer == 1:
            operator: Operator = Affine((weights,), np.zeros(weights.shape[1]))
        else:
            operator = Contract(weights, outer, 1)
        return [graph.add(name, operator, (left.node,), shape)]
    if _is_matrix(left):
        weights = left.floats.reshape(left.shape[-2:] if len(left.shape) > 1 else (1, -1)).T
        inner = right.shape[-1] if len(right.shape) > 1 else 1
        outer = right.size // (weights.shape[0] * inner)
        operator = Contract(weights, outer, inner)
        return [graph.add(name, operator, (right.node,), shape)]
    if min(len(left.shape), len(right.shape)) < 2 or left.node < 0 or right.node < 0:
        raise refuse(graph, node, "a vector, or several constant matrices")
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    first = graph.broadcast(name, left, batch + left.shape[-2:])
    second = graph.broadcast(name, right, batch + right.shape[-2:])
    product = Product(int(np.prod(batch)), left.shape[-2], left.shape[-1], right.shape[-1])
    return [graph.add(name, product, (first.node, second.node), shape)]


def _gemm(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    left, right = unpack(graph, node, inputs, 2)
    stated = attributes(node)
    added = constant(graph, node, inputs, 2)
    if right.constant is None or left.constant is not None or stated.get("transA", 0):
        raise refuse(
            graph, node, "a first input that is constant or transposed, or a varying second"
        )
    alpha, beta = stated.get("alpha", 1.0), stated.get("beta", 1.0)
    weights = (right.floats.T if stated.get("transB", 0) else right.floats) * alpha
    shape = (left.shape[0], weights.shape[1])
    bias = np.zeros(shape) if added is None else np.broadcast_to(added * beta, shape)
    operator: Affine | Contract
    if shape[0] == 1:
        operator = Affine((weights,), bias.reshape(-1))
    else:
        operator = Contract(weights, shape[0], 1)
        operator.bias = bias.reshape(-1)
    operator.terms += 2 * int(alpha != 1 or beta != 1)
    return [graph.add(graph.name(node), operator, (left.node,), shape)]


def _reduce(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    stated, stated_axes = attributes(node), constant(graph, node, inputs, 1)
    rank = len(value.shape)
    axes = stated.get("axes") if stated_axes is None else stated_axes.astype(int).tolist()
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, rank))
    elif not axes and stated.get("noop_with_empty_axes", 0):
        return [value]
    picked = tuple(sorted(axis % rank for axis in (axes or range(rank))))
    count = int(np.prod([value.shape[axis] for axis in picked]))
    kept = [1 if axis in picked else size for axis, size in enumerate(value.shape)]
    if not stated.get("keepdims", 1):
        kept = [size for axis, size in enumerate(value.shape) if axis not in picked]
    grouped = graph.groups(graph.name(node), value, picked)
    weight = 1.0 if node.op_type == "ReduceSum" else 1 / count
    operator = Contract(np.full((count, 1), weight), value.size // count, 1)
    return [graph.add(graph.name(node), operator, (grouped.node,), tuple(kept))]


def _maximum(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    values = unpack(graph, node, inputs, len(inputs))
    name, shape = graph.name(node), np.broadcast_shapes(*(value.shape for value in values))
    smallest = node.op_type == "Min"
    moved = [value for value in values if value.constant is None]
    fixed = [value.floats.reshape(-1) for value in values if value.constant is not None]
    if smallest:
        moved = [_negative(graph, name, value) for value in moved]
        fixed = [-array for array in fixed]
    indices, start = [], 0
    for value in sorted(values, key=lambda value: value.constant is not None):
        own = np.arange(start, start + value.size).reshape(value.shape)
        indices.append(np.broadcast_to(own, shape))
        start += value.size
    pool = np.concatenate([np.empty(0), *fixed])
    grouped = graph.select(name, tuple(moved), np.stack(indices, axis=-1), pool)
    found = graph.add(name, Maximum(len(values)), (grouped.node,), shape)
    return [_negative(graph, name, found) if smallest else found]


def _negative(graph: Graph, name: str, value: Value) -> Value:
    operator = Scale(np.full(value.size, -1.0), np.zeros(value.size), terms=0)
    return graph.add(name, operator, (value.node,), value.shape)


def _is_matrix(value: Value) -> bool:
    return value.constant is not None and all(size == 1 for size in value.shape[:-2])


def _product_shape(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return np.broadcast_shapes(left[:-2], right[:-2]) + rows + columns


ARITHMETIC: dict[str, Builder] = {
    "Add": _add,
    "Sub": _add,
    "Sum": _sum,
    "Mul": _multiply,
    "Div": _multiply,
    "Neg": _negate,
    "Pow": _power,
    "MatMul": _mat_mul,
    "Gemm": _gemm,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "GlobalAveragePool": _reduce,
    "Max": _maximum,
    "Min": _maximum,
}
