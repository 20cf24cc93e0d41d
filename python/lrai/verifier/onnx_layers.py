"""Builders of ONNX's layers: convolution, pooling, normalisation, softmax, quantisation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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
from lrai.verifier.operators.conv import Conv, Window
from lrai.verifier.operators.linear import Contract, Normalise, Scale, Variance
from lrai.verifier.operators.product import Maximum, Product
from lrai.verifier.operators.quantize import FakeQuantize
from lrai.verifier.operators.smooth import Reciprocal, Sqrt, Square
from lrai.verifier.operators.softmax import Softmax

if TYPE_CHECKING:
    import onnx

# Their bounds take the square of this in memory.
_LARGEST_GROUP = 2048


def _conv(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    weights, bias = constant(graph, node, inputs, 1), constant(graph, node, inputs, 2)
    if weights is None:
        raise refuse(graph, node, "no weights")
    window = _window(graph, node, value, weights.shape[2:])
    bias = np.zeros(len(weights)) if bias is None else bias
    groups = attributes(node).get("group", 1)
    operator = Conv(weights, bias, value.shape, window, groups)
    shape = (value.shape[0], len(weights), *operator.output)
    return [graph.add(graph.name(node), operator, (value.node,), shape)]


def _window(graph: Graph, node: "onnx.NodeProto", value: Value, kernel: tuple[int, ...]) -> Window:
    stated, rank = attributes(node), len(kernel)
    strides = tuple(stated.get("strides", [1] * rank))
    dilations = tuple(stated.get("dilations", [1] * rank))
    pads = tuple(stated.get("pads", [0] * 2 * rank))
    automatic = stated.get("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        total = [
            max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            for size, stride, k, dilation in zip(
                value.shape[2:], strides, kernel, dilations, strict=True
            )
        ]
        small, large = [n // 2 for n in total], [n - n // 2 for n in total]
        pads = (*small, *large) if automatic == "SAME_UPPER" else (*large, *small)
    elif automatic == "VALID":
        pads = (0,) * 2 * rank
    if stated.get("ceil_mode", 0):
        raise refuse(graph, node, "ceil_mode")
    return Window(kernel, strides, dilations, pads[:rank], pads[rank:])


def _windows(graph: Graph, node: "onnx.NodeProto", value: Value) -> NDArray[np.int64]:
    """Indices of each pooling window, `(1, C, *output, elements)`; -1 stands for padding."""
    kernel = tuple(attributes(node)["kernel_shape"])
    window = _window(graph, node, value, kernel)
    output = window.output(value.shape[2:])
    padding = [(0, 0), (0, 0), *zip(window.begin, window.end, strict=True)]
    indices = np.arange(value.size).reshape(value.shape)
    padded = np.pad(indices, padding, constant_values=-1)
    parts = [
        padded[(slice(None), slice(None), *window.slices(offset, output))]
        for offset in np.ndindex(*kernel)
    ]
    return np.stack(parts, axis=-1)


def _max_pool(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    if any(graph.consumers[name] for name in node.output[1:]):
        raise refuse(graph, node, "indices that are used")
    windows = _windows(graph, node, value)
    # A padded place repeats an element of its own window.
    windows = np.where(windows < 0, windows.max(axis=-1, keepdims=True), windows)
    if windows.min() < 0:
        raise refuse(graph, node, "a window of padding only")
    grouped = graph.select(graph.name(node), (value,), windows, np.empty(0))
    operator = Maximum(windows.shape[-1])
    return [graph.add(graph.name(node), operator, (grouped.node,), windows.shape[:-1])]


def _average_pool(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    name, windows = graph.name(node), _windows(graph, node, value)
    shape, count = windows.shape[:-1], windows.shape[-1]
    padded = np.where(windows < 0, value.size, windows)
    grouped = graph.select(name, (value,), padded, np.zeros(1))
    total = Contract(np.ones((count, 1)), windows.size // count, 1)
    summed = graph.add(name, total, (grouped.node,), shape)
    counts = np.full(shape, count)
    if not attributes(node).get("count_include_pad", 0):
        counts = (windows >= 0).sum(axis=-1)
    operator = Scale(1 / counts.reshape(-1), np.zeros(counts.size))
    return [graph.add(name, operator, (summed.node,), shape)]


def _batch_norm(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    found = [constant(graph, node, inputs, place) for place in (1, 2, 3, 4)]
    if attributes(node).get("training_mode", 0) or any(graph.consumers[n] for n in node.output[1:]):
        raise refuse(graph, node, "training mode")
    channel = (1, -1) + (1,) * (len(value.shape) - 2)
    factor, offset, mean, variance = (
        np.broadcast_to(np.ones(1) if item is None else item.reshape(channel), value.shape)
        for item in found
    )
    factor = factor / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    graph.loosen(value, 8)
    operator = Normalise(factor.reshape(-1), mean.reshape(-1), offset.reshape(-1))
    return [graph.add(graph.name(node), operator, (value.node,), value.shape)]


def _softmax(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    rank, old = len(value.shape), graph.opset < 13
    axis = attributes(node).get("axis", 1 if old else -1) % rank
    # Before opset 13 all axes from the named one on are one.
    axes = tuple(range(axis, rank)) if old else (axis,)
    name, kept = graph.name(node), tuple(a for a in range(rank) if a not in axes)
    count = int(np.prod([value.shape[a] for a in axes]))
    if count > _LARGEST_GROUP:
        raise refuse(graph, node, f"{count} elements in a group")
    grouped = graph.groups(name, value, axes)
    found = graph.add(name, Softmax(count, value.size // count), (grouped.node,), grouped.shape)
    order = np.argsort(kept + axes)
    sizes = [value.shape[a] for a in kept + axes]
    back = np.arange(value.size).reshape(sizes).transpose(order)
    return [graph.select(name, (found,), back, np.empty(0))]


def _layer_norm(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    scale, bias = constant(graph, node, inputs, 1), constant(graph, node, inputs, 2)
    if any(graph.consumers[name] for name in node.output[1:]):
        raise refuse(graph, node, "a mean or deviation that is used")
    name, axis = graph.name(node), attributes(node).get("axis", -1) % len(value.shape)
    count = int(np.prod(value.shape[axis:]))
    outer = value.size // count
    if count > _LARGEST_GROUP:
        raise refuse(graph, node, f"{count} elements in a group")
    centring = Contract(np.eye(count) - 1 / count, outer, 1)
    centring.terms = count + 4
    centred = graph.add(name, centring, (value.node,), value.shape)
    squares = graph.add(name, Square(), (centred.node,), value.shape)
    variance = Variance(outer, count)
    variance.bias = np.full(outer, attributes(node).get("epsilon", 1e-5))
    shape = (*value.shape[:axis], *(1 for _ in value.shape[axis:]))
    found = graph.add(name, variance, (squares.node, value.node), shape)
    for operator in (Sqrt(), Reciprocal()):
        found = graph.add(name, operator, (found.node,), shape)
    deviation = graph.broadcast(name, found, value.shape)
    product = Product(value.size, 1, 1, 1)
    normal = graph.add(name, product, (centred.node, deviation.node), value.shape)
    factor, offset = (
        np.broadcast_to(default if item is None else item, value.shape).reshape(-1)
        for item, default in ((scale, np.ones(1)), (bias, np.zeros(1)))
    )
    return [graph.add(name, Scale(factor, offset, terms=4), (normal.node,), value.shape)]


def _quantize(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    (value,) = unpack(graph, node, inputs, 1)
    scale, zero = _levels(graph, node, inputs)
    point = inputs[2] if len(inputs) > 2 else None
    kind = np.dtype("u1") if point is None else np.asarray(point.constant).dtype
    if kind.kind not in "iu" or kind.itemsize > 2:
        raise refuse(graph, node, f"the type {kind}")
    ends = np.iinfo(kind)
    operator = FakeQuantize(scale, int(ends.min - zero), int(ends.max - zero))
    found = graph.add(graph.name(node), operator, (value.node,), value.shape)
    return [replace(found, levels=(scale, zero))]


def _dequantize(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> Sequence[Value]:
    value = inputs[0]
    if value is None or value.levels != _levels(graph, node, inputs):
        raise refuse(graph, node, "another scale or zero point than the QuantizeLinear before it")
    return [replace(value, levels=None)]


def _levels(graph: Graph, node: "onnx.NodeProto", inputs: Inputs) -> tuple[float, float]:
    scale, zero = constant(graph, node, inputs, 1), constant(graph, node, inputs, 2)
    zero = np.zeros(1) if zero is None else zero
    if scale is None or scale.size != 1 or zero.size != 1:
        raise refuse(graph, node, "a scale per channel of a value that varies")
    return float(scale.reshape(())), float(zero.reshape(()))


LAYERS: dict[str, Builder] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
