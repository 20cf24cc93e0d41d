"""ONNX nodes to operators: the table of all builders, and those that only move elements."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.onnx_arithmetic import ARITHMETIC
from lrai.verifier.onnx_graph import (
    Builder,
    Graph,
    Inputs,
    Value,
    attributes,
    constant,
    evaluate,
    refuse,
    unpack,
)
from lrai.verifier.onnx_layers import LAYERS
from lrai.verifier.operators.base import Operator
from lrai.verifier.operators.curve import Clip, LeakyRelu
from lrai.verifier.operators.linear import Scale
from lrai.verifier.operators.relu import Relu
from lrai.verifier.operators.smooth import Erf, Exp, Gelu, Reciprocal, Sigmoid, Sqrt, Tanh

if TYPE_CHECKING:
    import onnx


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
        places = data or tuple(range(len(inputs)))
        moved = [value for value in inputs if value is not None and value.constant is None]
        fixed = [value for place in places if (value := inputs[place]) and value.node < 0]
        if len(moved) + len(fixed) != len(places):
            raise refuse(graph, node, "indices that are not constant")
        levels = {value.levels for value in moved}
        if len(levels) > 1 or (fixed and levels != {None}):
            raise refuse(graph, node, "integer tensors of several scales")
        arrays = [None if value is None else value.constant for value in inputs]
        starts = dict.fromkeys(places, 0)
        start = 0
        for place in sorted(places, key=lambda place: _present(inputs[place]).node < 0):
            value = _present(inputs[place])
            starts[place], start = start, start + value.size
            arrays[place] = np.arange(starts[place], start).reshape(value.shape)
        pool = np.concatenate([np.empty(0), *(value.floats.reshape(-1) for value in fixed)])
        found = evaluate(node, arrays, graph.opset)
        return [graph.select(graph.name(node), tuple(moved), item, pool) for item in found]

    return build


def _present(value: Value | None) -> Value:
    assert value is not None
    return value


def _identity(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    value = inputs[0]
    if value is None:
        raise refuse(graph, node, "no input")
    if node.op_type == "Dropout" and any(graph.consumers[name] for name in node.output[1:]):
        raise refuse(graph, node, "a mask that is used")
    mode = constant(graph, node, inputs, 2)
    if mode is not None and mode.any():
        raise refuse(graph, node, "training mode")
    return [value]


def _cast(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    import onnx

    (value,) = unpack(graph, node, inputs, 1)
    if attributes(node)["to"] not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        raise refuse(graph, node, "a type other than float32 and float64")
    operator = Scale(np.ones(value.size), np.zeros(value.size), terms=1)
    return [graph.add(graph.name(node), operator, (value.node,), value.shape)]


def _clip(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    stated = attributes(node)
    low, high = constant(graph, node, inputs, 1), constant(graph, node, inputs, 2)
    operator = Clip(
        float(stated.get("min", -np.inf) if low is None else low),
        float(stated.get("max", np.inf) if high is None else high),
    )
    return [graph.add(graph.name(node), operator, (value.node,), value.shape)]


def _p_relu(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    slope = constant(graph, node, inputs, 1)
    if slope is None:
        raise refuse(graph, node, "no slope")
    operator = LeakyRelu(np.broadcast_to(slope, value.shape).reshape(-1))
    return [graph.add(graph.name(node), operator, (value.node,), value.shape)]


def _pad(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    import onnx

    (value,) = unpack(graph, node, inputs, 1)
    stated = attributes(node)
    filler = constant(graph, node, inputs, 2)
    content = float(stated.get("value", 0) if filler is None else filler)
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    indices = np.arange(value.size, dtype=np.float64).reshape(value.shape)
    arrays: list[NDArray[Any] | None] = [indices]
    arrays += (None if item is None else item.constant for item in inputs[1:])
    if stated.get("mode", "constant") == "constant" and len(arrays) > 1:
        # The filler becomes the index of the one constant behind the value's elements.
        axes = [*plain.input[3:4]]
        del plain.input[2:]
        plain.input.extend(["filler", *axes])
        arrays = [indices, arrays[1], np.array(value.size, np.float64), *arrays[3:4]]
    elif stated.get("mode", "constant") == "constant":
        raise refuse(graph, node, "pads as an attribute")
    (found,) = evaluate(plain, arrays, graph.opset)
    return [graph.select(graph.name(node), (value,), found, np.array([content]))]


_MOVEMENTS = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather"),
    *("GatherElements", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
)

BUILDERS: dict[str, Builder] = {
    "Relu": elementwise(lambda _: Relu()),
    "LeakyRelu": elementwise(lambda stated: LeakyRelu(float(stated.get("alpha", 0.01)))),
    "PRelu": _p_relu,
    "Abs": elementwise(lambda _: LeakyRelu(-1.0)),
    "Clip": _clip,
    "Sigmoid": elementwise(lambda _: Sigmoid()),
    "Tanh": elementwise(lambda _: Tanh()),
    "Erf": elementwise(lambda _: Erf()),
    "Exp": elementwise(lambda _: Exp()),
    "Sqrt": elementwise(lambda _: Sqrt()),
    "Reciprocal": elementwise(lambda _: Reciprocal()),
    "Gelu": elementwise(lambda stated: Gelu(stated.get("approximate", "none") == "tanh")),
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _cast,
    "Pad": _pad,
    "Concat": movement(),
    "Where": movement(1, 2),
    **{kind: movement(0) for kind in _MOVEMENTS},
    **ARITHMETIC,
    **LAYERS,
}
