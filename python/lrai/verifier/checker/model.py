"""The checker's own reading of ONNX files; each supported node becomes sums and Relus.

What only moves data is run by ONNX's reference evaluator on the slots themselves, and so is what
depends on constants alone.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import MAX_ELEMENTS, Builder, Graph, RefusedError, Slots

_MOVES: Final = {
    *("Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements"),
    *("Identity", "Reshape", "Shape", "Slice", "SpaceToDepth", "Squeeze", "Tile", "Transpose"),
    "Unsqueeze",
}
_FOLDED: Final = _MOVES | {"Add", "Cast", "Constant", "DequantizeLinear", "Div", "Mul", "Sub"}
_SLACK: Final = 2.0**-20
_MAX_WINDOW: Final = 1 << 16


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input."""

    slots: Slots
    grid: tuple[Any, ...] = ()
    """What names the scale of a quantised one."""
    is_single: bool = False
    """Whether one node alone uses it, and what it was moved from."""


def read_models(contents: Sequence[bytes]) -> Graph:
    """Read models one after the other; their inputs follow each other, and so do their outputs.

    RefusedError names what the checker does not know.
    """
    from onnx import ModelProto

    builder = Builder()
    found = [_read_model(builder, ModelProto.FromString(content)) for content in contents]
    inputs, outputs = (np.concatenate(part) for part in zip(*found, strict=True))
    return Graph(tuple(builder.operations), builder.slots, inputs, outputs)


def _read_model(builder: Builder, model: Any) -> tuple[Slots, Slots]:
    from onnx import numpy_helper

    graph = model.graph
    tensors = [*graph.initializer, *(one.t for node in graph.node for one in node.attribute)]
    if any(tensor.data_location for tensor in tensors) or graph.sparse_initializer:
        raise RefusedError("the model has constants outside of its file, or sparse ones")
    values: dict[str, Any] = {"": None}
    values |= {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    given = {one.name: _input(builder, one) for one in graph.input if one.name not in values}
    values |= given
    uses = Counter([name for node in graph.node for name in node.input])
    uses.update(one.name for one in graph.output)
    for node in graph.node:
        what = f"{node.op_type} {node.name or list(node.output)}"
        try:
            ((name,), arguments) = node.output, [values[name] for name in node.input]
            before = builder.slots
            made = _read_node(builder, model, node, arguments)
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"the checker does not know this {what}: {error!r}") from error
        if name in values or getattr(made, "slots", made).size > MAX_ELEMENTS:
            raise RefusedError(f"{what} is too large, or its name is taken")
        if isinstance(made, Value):
            is_new = made.slots.min(initial=before) >= before
            is_own = is_new or all(one.is_single for one in arguments if isinstance(one, Value))
            made = replace(made, is_single=uses[name] == 1 and is_own)
        values[name] = made
    outputs = [values[one.name] for one in graph.output]
    if any(one.grid for one in outputs):
        raise RefusedError("an output of the model is quantised")
    flat = ([one.slots.reshape(-1) for one in part] for part in (given.values(), outputs))
    inputs, results = (np.concatenate(part) for part in flat)
    return inputs, results


def _input(builder: Builder, given: Any) -> Value:
    kind = given.type.tensor_type
    shape = [axis.dim_value for axis in kind.shape.dim]
    # An open first dimension is the batch: one row at a time.
    shape[:1] = [size or 1 for size in shape[:1]]
    if kind.elem_type != 1 or min(shape, default=1) < 1:
        raise RefusedError(f"the input {given.name!r} is no float32 tensor of fixed shape")
    return Value(builder.new(math.prod(shape)).reshape(shape))


def _read_node(builder: Builder, model: Any, node: Any, arguments: list[Any]) -> Any:
    from onnx import helper

    kind = node.op_type if node.domain in ("", "ai.onnx") else ""
    values = [one for one in arguments if isinstance(one, Value)]
    if kind in (_MOVES if values else _FOLDED):
        # Of several inputs the first alone is data, apart from those of Concat.
        if len(values) not in (0, len(arguments) if kind == "Concat" else 1) or (
            values and values[0] is not arguments[0]
        ):
            raise ValueError("constants among what is moved")
        made = _evaluate(
            node, [getattr(one, "slots", one) for one in arguments], model.opset_import
        )
        is_grid = any(one.grid for one in values)
        if is_grid:
            raise ValueError("quantised values are moved")
        return Value(made) if values and kind != "Shape" else made
    if kind not in _NODES:
        raise RefusedError(f"the checker does not know {node.op_type} {node.name}")
    if kind != "DequantizeLinear" and any(one.grid for one in values):
        raise ValueError("it calculates with quantised values")
    found = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    made = _NODES[kind](builder, found, *arguments)
    if found:
        raise ValueError(f"unknown attributes {sorted(found)}")
    return made if isinstance(made, Value) else Value(made)


def _evaluate(node: Any, arrays: list[Any], opsets: Any) -> Any:
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    given = {name: one for name, one in zip(node.input, arrays, strict=True) if name}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names]
        for names in (given, node.output)
    )
    graph = helper.make_graph([node], "node", inputs, outputs)
    model: Any = helper.make_model(graph, opset_imports=opsets)
    found: Any = ReferenceEvaluator(model).run(None, given)
    return np.asarray(found[0])


def _arithmetic(builder: Builder, kind: str, x: Any, y: Any) -> Slots:
    """Sums and differences; products and quotients with constants."""
    if isinstance(x, Value) and isinstance(y, Value):
        return builder.pair(x.slots, y.slots, {"Add": (1.0, 1.0), "Sub": (1.0, -1.0)}[kind], 1)
    value, constant = (x, y) if isinstance(x, Value) else (y, x)
    number, is_first = np.asarray(constant, np.float64), value is x
    factor: Any
    shift: Any
    factor, shift = {
        "Add": (1.0, number),
        "Sub": (1.0, -number) if is_first else (-1.0, number),
        "Mul": (number, 0.0),
        # May be deployed as a product with the rounded inverse.
        "Div": (1.0 / number if is_first else math.nan, 0.0),
    }[kind]
    slots = np.broadcast_to(value.slots, np.broadcast_shapes(value.slots.shape, number.shape))
    return builder.scale(slots, (factor, shift, np.abs(shift)), 2, value.is_single)


def _matmul(builder: Builder, _found: Any, x: Any, y: Any) -> Slots:
    if isinstance(x, Value):
        out = builder.sum(x.slots.reshape(-1, len(y)), y[None], 0.0, len(y) + 2)
        return out.reshape(*x.slots.shape[:-1], y.shape[1])
    return builder.sum(y.slots.T, x.T[None], 0.0, x.shape[1] + 2).T


def _gemm(builder: Builder, found: Any, x: Any, y: Any, bias: Any = None) -> Slots:
    alpha, beta = found.pop("alpha", 1.0), found.pop("beta", 1.0)
    slots = x.slots.T if found.pop("transA", 0) else x.slots
    weights = np.asarray(y.T if found.pop("transB", 0) else y, np.float64)
    shift = 0.0 if bias is None else beta * np.asarray(bias, np.float64)
    return builder.sum(slots, alpha * weights[None], shift, len(weights) + 5)


def _windows(found: Any, x: Slots, kernel: Sequence[int]) -> Slots:
    """`(channels, positions..., elements of the kernel)`; slot 0 where the padding is.

    A convolution with one kernel for each element picks them out.
    """
    from onnx import helper

    size = math.prod(kernel)
    if size > _MAX_WINDOW or len(x) != 1 or found.pop("ceil_mode", 0):
        raise ValueError("such windows")
    picked = {
        name: found.pop(name)
        for name in ("auto_pad", "dilations", "pads", "strides")
        if name in found
    }
    node = helper.make_node("Conv", ["x", "w"], ["y"], **picked)
    kernels = np.eye(size).reshape(size, 1, *kernel)
    slots = _evaluate(
        node, [np.swapaxes(x, 0, 1).astype(float), kernels], [helper.make_opsetid("", 17)]
    )
    return np.asarray(np.moveaxis(slots, 1, -1), np.intp)


def _conv(builder: Builder, found: Any, x: Value, weights: Any, bias: Any = None) -> Slots:
    if list(found.pop("kernel_shape", weights.shape[2:])) != list(weights.shape[2:]):
        raise ValueError("such a kernel")
    windows, groups = _windows(found, x.slots, weights.shape[2:]), found.pop("group", 1)
    shift = np.zeros(len(weights)) if bias is None else bias
    size = weights[0].size
    if size * groups != len(windows) * windows.shape[-1]:
        raise ValueError("such groups")
    parts = [
        builder.sum(np.moveaxis(part, 0, -2).reshape(-1, size), kernels.T[None], shifts, size + 3)
        for part, kernels, shifts in zip(
            np.split(windows, groups),
            np.split(weights.reshape(len(weights), size), groups),
            np.split(shift, groups),
            strict=True,
        )
    ]
    joined: Slots = np.concatenate(parts, axis=1).T
    return joined.reshape(1, len(weights), *windows.shape[1:-1])


def _pool(builder: Builder, found: Any, x: Value, kind: str) -> Slots:
    is_global = kind.startswith("Global")
    kernel = x.slots.shape[2:] if is_global else found.pop("kernel_shape")
    windows = _windows(found, x.slots, kernel)
    flat = windows.reshape(-1, windows.shape[-1])
    if kind == "MaxPool" and flat.max(axis=1).all():
        found.pop("storage_order", 0)
        # Padding never is the largest: another element of the window stands for it.
        out = builder.largest(np.where(flat == 0, flat.max(axis=1, keepdims=True), flat))
    elif kind == "MaxPool":
        raise ValueError("a window of nothing but padding")
    else:
        inside = np.ones_like(flat) if found.pop("count_include_pad", 0) else flat != 0
        weights = np.broadcast_to(1.0 / inside.sum(axis=1)[:, None, None], (*flat.shape, 1))
        out = builder.sum(flat, weights, 0.0, flat.shape[1] + 2)
    return out.reshape(1, *windows.shape[:-1])


def _batch_norm(builder: Builder, found: Any, x: Value, *given: Any) -> Slots:
    found.pop("momentum", None)
    if found.pop("training_mode", 0):
        raise ValueError("in training")
    shape = (-1, *[1] * (x.slots.ndim - 2))
    scale, bias, mean, variance = (np.asarray(one, np.float64).reshape(shape) for one in given)
    factor = scale / np.sqrt(variance + found.pop("epsilon", 1e-5))
    line = (factor, bias - mean * factor, np.abs(bias) + np.abs(mean * factor))
    return builder.scale(x.slots, line, 8, x.is_single)


def _clip(builder: Builder, found: Any, x: Value, low: Any = None, high: Any = None) -> Slots:
    low, high = found.pop("min", low), found.pop("max", high)
    return builder.clip(x.slots, -np.inf if low is None else low, np.inf if high is None else high)


def _quantize(builder: Builder, found: Any, x: Value, scale: Any, zero: Any = None) -> Value:
    found.pop("saturate", None)
    zero = np.zeros(scale.shape, np.uint8) if zero is None else zero
    axis, limits = found.pop("axis", 1) * (scale.size > 1), np.iinfo(zero.dtype)
    shape = [scale.size if place == axis % x.slots.ndim else 1 for place in range(x.slots.ndim)]
    steps, zeros = (np.asarray(one, np.float64).reshape(shape) for one in (scale, zero))
    low, high = (limits.min - zeros) * steps, (limits.max - zeros) * steps
    # Half a step, and what roundings of the quotient may add next to a tie.
    slack = _SLACK * (np.maximum(np.abs(low), np.abs(high)) + steps)
    grid = (scale.tobytes(), zero.tobytes(), zero.dtype, axis)
    return Value(builder.clip(x.slots, low, high, steps / 2 + slack), grid)


def _dequantize(_: Builder, found: Any, x: Value, scale: Any, zero: Any = None) -> Value:
    zero = np.zeros(scale.shape, np.uint8) if zero is None else zero
    axis = found.pop("axis", 1) * (scale.size > 1)
    if x.grid != (scale.tobytes(), zero.tobytes(), zero.dtype, axis):
        raise ValueError("another scale than the one that it was quantised with")
    return Value(x.slots)


def _bend(builder: Builder, x: Slots, below: float, above: float, terms: int) -> Slots:
    return builder.pair(x, builder.relu(x), (below, above - below), terms)


_NODES: Final[dict[str, Callable[..., Any]]] = {
    "Abs": lambda builder, _, x: _bend(builder, x.slots, -1.0, 1.0, 0),
    "Add": lambda builder, _, x, y: _arithmetic(builder, "Add", x, y),
    "AveragePool": lambda builder, found, x: _pool(builder, found, x, "AveragePool"),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda builder, _, x, y: _arithmetic(builder, "Div", x, y),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda builder, found, x: _pool(builder, found, x, "GlobalAveragePool"),
    "LeakyRelu": lambda builder, found, x: _bend(
        builder, x.slots, found.pop("alpha", 0.01), 1.0, 2
    ),
    "MatMul": _matmul,
    "MaxPool": lambda builder, found, x: _pool(builder, found, x, "MaxPool"),
    "Mul": lambda builder, _, x, y: _arithmetic(builder, "Mul", x, y),
    "Neg": lambda builder, _, x: builder.scale(x.slots, (-1.0, 0.0, 0.0), 0, x.is_single),
    "QuantizeLinear": _quantize,
    "Relu": lambda builder, _, x: builder.relu(x.slots, is_hidden=True),
    "Sub": lambda builder, _, x, y: _arithmetic(builder, "Sub", x, y),
}
