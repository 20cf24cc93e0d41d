"""The ONNX operators that the checker knows: `MOVES` of data, and `NODES` that calculate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import Array, Builder, Slots

_STEPS: Final = {name: np.iinfo(name) for name in ("uint8", "int8", "uint16", "int16")}
_SLACK: Final = 2.0**-20
_MAX_WINDOW: Final = 1 << 12
_SIGNS: Final[dict[Any, float]] = {np.add: 1.0, np.subtract: -1.0}


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input; `grid` names the scale of a quantised one."""

    slots: Slots
    grid: tuple[object, ...] | None = None


def _reshape(found: Any, x: Any, shape: Any) -> Any:
    sizes = [int(size) for size in shape]
    if not found.pop("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _squeeze(found: Any, x: Any, axes: Any = None) -> Any:
    axes = found.pop("axes", axes)
    return np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes))


def _unsqueeze(found: Any, x: Any, axes: Any = None) -> Any:
    return np.expand_dims(x, tuple(int(axis) for axis in found.pop("axes", axes)))


def _flatten(found: Any, x: Any) -> Any:
    axis = found.pop("axis", 1) % (x.ndim + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(found: Any, x: Any) -> Any:
    return np.transpose(x, found.pop("perm", None))


def _slice(_found: Any, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise ValueError("a step backwards")
        cut[int(axis)] = slice(int(start), int(end), int(step))
    return x[tuple(cut)]


def _gather(found: Any, x: Any, indices: Any) -> Any:
    return np.take(x, indices, axis=found.pop("axis", 0))


def _dropout(found: Any, x: Any, _ratio: Any = None, training: Any = None) -> Any:
    found.pop("ratio", None), found.pop("seed", None)
    if training is not None and np.any(training):
        raise ValueError("in training")
    return x


MOVES: Final[dict[str, Callable[..., Any]]] = {
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda _, x: x,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _arithmetic(build: Builder, kind: Callable[..., Any], x: Any, y: Any) -> Any:
    """x + y, x - y, x * y or x / y; of two values only sums and differences."""
    if not isinstance(x, Value) and not isinstance(y, Value):
        return kind(x, y)
    if isinstance(x, Value) and isinstance(y, Value):
        return build.add(x.slots, y.slots, _SIGNS[kind])
    shape = np.broadcast_shapes(*(getattr(one, "slots", one).shape for one in (x, y)))
    if isinstance(x, Value):
        slots, other = np.broadcast_to(x.slots, shape), np.asarray(y, np.float64)
        if kind in (np.add, np.subtract):
            return build.scale(slots, 1.0, kind(0.0, other), 1)
        # A quotient may be deployed as a product with the rounded inverse.
        return build.scale(slots, kind(1.0, other), 0.0, 2)
    slots, other = np.broadcast_to(y.slots, shape), np.asarray(x, np.float64)
    if kind is np.multiply:
        return build.scale(slots, other, 0.0, 2)
    return build.scale(slots, _SIGNS[kind], other, 1)


def _matmul(build: Builder, _found: Any, x: Any, y: Any) -> Slots:
    if isinstance(x, Value):
        size, columns = y.shape
        out = build.sum(x.slots.reshape(-1, size), y[None], 0.0, size + 2)
        return out.reshape(*x.slots.shape[:-1], columns)
    return build.sum(y.slots.T, x.T[None], 0.0, x.shape[1] + 2).T


def _gemm(build: Builder, found: Any, x: Any, y: Any, bias: Any = None) -> Slots:
    alpha, beta = found.pop("alpha", 1.0), found.pop("beta", 1.0)
    slots = x.slots.T if found.pop("transA", 0) else x.slots
    weights = np.asarray(y.T if found.pop("transB", 0) else y, np.float64)
    shift = 0.0 if bias is None else beta * np.asarray(bias, np.float64)
    return build.sum(slots, alpha * weights[None], shift, weights.shape[0] + 5)


def _windows(found: Any, x: Slots, kernel: Any) -> Slots:
    """`(channels, positions..., elements of the kernel)`; slot 0 where the padding is."""
    axes = len(kernel)
    strides, dilations = (found.pop(name, [1] * axes) for name in ("strides", "dilations"))
    pads, mode = list(found.pop("pads", [0] * 2 * axes)), found.pop("auto_pad", b"NOTSET")
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        sizes = zip(x.shape[2:], strides, spans, strict=True)
        sums = [
            max((math.ceil(size / step) - 1) * step + span - size, 0) for size, step, span in sizes
        ]
        less, more = [size // 2 for size in sums], [size - size // 2 for size in sums]
        pads = less + more if mode == b"SAME_UPPER" else more + less
    elif mode == b"VALID":
        pads = [0] * 2 * axes
    if found.pop("ceil_mode", 0) or max([*pads, *spans]) > _MAX_WINDOW or x.shape[0] != 1:
        raise ValueError("such windows")
    padded = np.pad(x[0], [(0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    view = np.lib.stride_tricks.sliding_window_view(padded, tuple(spans), tuple(range(1, axes + 1)))
    view = view[(slice(None), *(slice(None, None, step) for step in [*strides, *dilations]))]
    return np.asarray(view.reshape(*view.shape[: axes + 1], -1))


def _conv(build: Builder, found: Any, x: Value, weights: Any, bias: Any = None) -> Slots:
    if list(found.pop("kernel_shape", weights.shape[2:])) != list(weights.shape[2:]):
        raise ValueError("such a kernel")
    windows = _windows(found, x.slots, weights.shape[2:])
    groups = found.pop("group", 1)
    shift = np.zeros(len(weights)) if bias is None else np.asarray(bias, np.float64)
    if weights.shape[1] * groups != len(windows) or len(weights) % groups:
        raise ValueError("such groups")
    parts = []
    for sources, kernels, shifts in zip(
        np.split(windows, groups), np.split(weights, groups), np.split(shift, groups), strict=True
    ):
        size = sources.shape[0] * sources.shape[-1]
        inputs = np.moveaxis(sources, 0, -2).reshape(-1, size)
        parts.append(
            build.sum(inputs, kernels.reshape(len(kernels), size).T[None], shifts, size + 3)
        )
    return np.concatenate(parts, axis=1).T.reshape(1, len(weights), *windows.shape[1:-1])


def _average_pool(build: Builder, found: Any, x: Value) -> Slots:
    windows = _windows(found, x.slots, found.pop("kernel_shape"))
    flat = windows.reshape(-1, windows.shape[-1])
    inside = np.ones_like(flat) if found.pop("count_include_pad", 0) else flat != 0
    weights = np.repeat(1.0 / inside.sum(axis=1, keepdims=True), flat.shape[1], axis=1)
    out = build.sum(flat, weights[:, :, None], 0.0, flat.shape[1] + 2)
    return out.reshape(1, *windows.shape[:-1])


def _global_average_pool(build: Builder, _found: Any, x: Value) -> Slots:
    flat = x.slots.reshape(math.prod(x.slots.shape[:2]), -1)
    weights = np.full((1, flat.shape[1], 1), 1.0 / flat.shape[1])
    out = build.sum(flat, weights, 0.0, flat.shape[1] + 2)
    return out.reshape(*x.slots.shape[:2], *[1] * (x.slots.ndim - 2))


def _max_pool(build: Builder, found: Any, x: Value) -> Slots:
    found.pop("storage_order", None)
    windows = _windows(found, x.slots, found.pop("kernel_shape"))
    flat = windows.reshape(-1, windows.shape[-1])
    # Padding never is the largest: another element of the window stands for it.
    flat = np.where(flat == 0, flat.max(axis=1, keepdims=True), flat)
    if (flat == 0).any():
        raise ValueError("a window of nothing but padding")
    return build.largest(flat).reshape(1, *windows.shape[:-1])


def _batch_norm(  # noqa: PLR0913 - as ONNX has it
    build: Builder, found: Any, x: Value, scale: Any, bias: Any, mean: Any, variance: Any
) -> Slots:
    found.pop("momentum", None)
    if found.pop("training_mode", 0) or found.pop("spatial", 1) != 1:
        raise ValueError("in training")
    shape = (-1, *[1] * (x.slots.ndim - 2))
    parts = (np.asarray(one, np.float64).reshape(shape) for one in (scale, bias, mean, variance))
    scale, bias, mean, variance = parts
    factor = scale / np.sqrt(variance + found.pop("epsilon", 1e-5))
    size = np.abs(bias) + np.abs(mean * factor)
    return build.scale(x.slots, factor, bias - mean * factor, 8, size)


def _clip(build: Builder, found: Any, x: Value, low: Any = None, high: Any = None) -> Slots:
    low, high = found.pop("min", low), found.pop("max", high)
    return build.clip(x.slots, -np.inf if low is None else low, np.inf if high is None else high)


def _grid(found: Any, rank: int, scale: Any, zero: Any) -> tuple[Array, Array, Any, Any]:
    """Scale and zero point shaped to be broadcast, the steps, and what names them all."""
    zero = np.zeros(scale.shape, np.uint8) if zero is None else zero
    axis = found.pop("axis", 1)
    shape = [1] * rank
    if scale.size > 1:
        shape[axis] = -1
    name = (scale.tobytes(), zero.tobytes(), zero.dtype.name, axis if scale.size > 1 else None)
    steps = np.asarray(scale, np.float64).reshape(shape)
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError("such a scale")
    return steps, np.asarray(zero, np.float64).reshape(shape), _STEPS.get(zero.dtype.name), name


def _quantize(build: Builder, found: Any, x: Value, scale: Any, zero: Any = None) -> Value:
    found.pop("saturate", None)
    steps, zeros, limits, name = _grid(found, x.slots.ndim, scale, zero)
    low, high = (limits.min - zeros) * steps, (limits.max - zeros) * steps
    # Half a step, and what roundings of the quotient may add next to a tie.
    slack = _SLACK * (np.maximum(np.abs(low), np.abs(high)) + steps)
    return Value(build.clip(x.slots, low, high, steps / 2 + slack), name)


def _dequantize(_build: Builder, found: Any, x: Any, scale: Any, zero: Any = None) -> Any:
    if not isinstance(x, Value):
        steps, zeros, _, _ = _grid(found, x.ndim, scale, zero)
        return ((x.astype(np.float64) - zeros) * steps).astype(np.float32)
    if _grid(found, x.slots.ndim, scale, zero)[3] != x.grid:
        raise ValueError("another scale than the one that it was quantised with")
    return Value(x.slots)


def _constant(_build: Builder, found: Any) -> Any:
    (value,) = [found.pop(name) for name in list(found) if name.startswith("value")]
    return np.asarray(value, np.float32) if isinstance(value, float) else np.asarray(value)


def _concat(_build: Builder, found: Any, *parts: Any) -> Any:
    axis = found.pop("axis")
    if any(isinstance(one, Value) for one in parts):
        return Value(np.concatenate([one.slots for one in parts], axis=axis))
    return np.concatenate(parts, axis=axis)


NODES: Final[dict[str, Callable[..., Any]]] = {
    "Abs": lambda build, _, x: build.bend(x.slots, -1.0, 1.0, 0),
    "Add": lambda build, _, x, y: _arithmetic(build, np.add, x, y),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda build, _, x, y: _arithmetic(build, np.divide, x, y),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "LeakyRelu": lambda build, found, x: build.bend(x.slots, found.pop("alpha", 0.01), 1.0, 2),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": lambda build, _, x, y: _arithmetic(build, np.multiply, x, y),
    "Neg": lambda build, _, x: build.scale(x.slots, -1.0, 0.0, 0),
    "QuantizeLinear": _quantize,
    "Relu": lambda build, _, x: build.relu(x.slots, is_hidden=True),
    "Sub": lambda build, _, x, y: _arithmetic(build, np.subtract, x, y),
}
