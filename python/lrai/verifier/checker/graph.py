"""What the checker makes of a network: sums, maxima with zero, and bounded noise; nothing else.

Every scalar has a slot, a number; to move data is to move slots, and slot 0 holds zero. LeakyRelu,
Clip, Abs, MaxPool and pairs of QuantizeLinear and DequantizeLinear become sums and Relu.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Slots = NDArray[np.intp]

_MAX_ELEMENTS: Final = 1 << 26


class RefusedError(Exception):
    """Why something is not accepted, in a sentence."""


@dataclass(frozen=True)
class Sum:
    """`out[p, c] = sum_k in[p, k] * weights[p, k, c] + bias[p, c]`, up to roundings and noise."""

    start: int
    """Slot of the first output; the others follow, row-major."""
    inputs: Slots
    """`(P, K)`."""
    weights: Array
    """`(1 or P, K, C)`."""
    bias: Array
    """`(P, C)`."""
    size: Array
    """`(P, C)`: at least the sum of the absolute values of what makes up the bias."""
    terms: int
    """Roundings on the way of one term when deployed; 0: computed without any."""
    noise: Array | float = 0.0
    """`(P, C)`: an unknown value of at most this size is added."""
    hull: Slots | None = None
    """`(P, k)`: the output is the largest of these slots (C is 1)."""

    @property
    def stop(self) -> int:
        """Slot behind the last output."""
        return self.start + self.bias.size

    def makes(self, x: Slots) -> bool:
        """Whether all these slots are outputs of this sum."""
        return bool(x.min() >= self.start and x.max() < self.stop)


@dataclass(frozen=True)
class Relu:
    """`out[i] = max(in[i], 0)`; the inputs are outputs of one sum."""

    start: int
    inputs: Slots
    is_hidden: bool
    """Whether it is a Relu of the model, whose neurons are counted."""

    @property
    def stop(self) -> int:
        """Slot behind the last output."""
        return self.start + self.inputs.size


@dataclass(frozen=True)
class Graph:
    """Operations in topological order over `slots` numbered scalars."""

    operations: tuple[Sum | Relu, ...]
    slots: int
    inputs: Slots
    outputs: Slots


class Builder:
    """Appends operations; several models may share one."""

    def __init__(self) -> None:
        """Start with the slot of zero."""
        self._operations: list[Sum | Relu] = []
        self._slots = 1

    def new(self, count: int) -> Slots:
        """Slots for new values."""
        self._slots += count
        if self._slots > _MAX_ELEMENTS:
            raise RefusedError("the network is too large for the checker")
        return np.arange(self._slots - count, self._slots)

    def sum(
        self, inputs: Slots, weights: Any, bias: Any, terms: int, size: Any = None, noise: Any = 0.0
    ) -> Slots:
        """Append a Sum and return the slots of its outputs, `(P, C)`."""
        weights = np.asarray(weights, np.float64)
        shape = (len(inputs), weights.shape[2])
        bias = np.broadcast_to(np.asarray(bias, np.float64), shape)
        size = np.abs(bias) if size is None else np.broadcast_to(size, shape)
        if not (np.isfinite(weights).all() and np.isfinite(size + noise).all()):
            raise RefusedError("the model has weights that are not finite")
        if max(inputs.size, weights.size) > _MAX_ELEMENTS:
            raise RefusedError("the network is too large for the checker")
        out = self.new(bias.size)
        self._operations.append(Sum(int(out[0]), inputs, weights, bias, size, terms, noise))
        return out.reshape(shape)

    def relu(self, x: Slots, is_hidden: bool = False) -> Slots:
        """Append max(x, 0)."""
        flat = x.reshape(-1)
        if self._maker(flat) is None:
            flat = self.sum(flat[:, None], np.ones((1, 1, 1)), 0.0, 0).reshape(-1)
        out = self.new(flat.size)
        self._operations.append(Relu(int(out[0]), flat, is_hidden))
        return out.reshape(x.shape)

    def scale(self, x: Slots, factor: Any, shift: Any, terms: int, size: Any = None) -> Slots:
        """x * factor + shift, element by element.

        Folded into the rounded sum that makes x, as runtimes may do; not to fold is covered, too.
        """
        size = np.abs(shift) if size is None else size
        given = [np.broadcast_to(one, x.shape).astype(float) for one in (factor, shift, size)]
        one = self._maker(x)
        if one is None or one.terms == 0 or np.unique(x).size < x.size:
            flat = [part.reshape(-1, 1) for part in given]
            out = self.sum(x.reshape(-1, 1), flat[0][:, :, None], flat[1], terms, flat[2])
            return out.reshape(x.shape)
        whole = np.repeat([[1.0], [0.0], [0.0]], one.bias.size, axis=1)
        whole[:, x - one.start] = given
        factors, shifts, sizes = whole.reshape(3, *one.bias.shape)
        if (factors == factors[:1]).all():
            factors = factors[:1]
        bias, size = one.bias * factors + shifts, one.size * np.abs(factors) + sizes
        weights = one.weights * factors[:, None, :]
        noise = one.noise * np.abs(factors)
        out = self.sum(one.inputs, weights, bias, one.terms + terms, size, noise)
        return np.asarray(out.reshape(-1)[x - one.start])

    def add(self, x: Slots, y: Slots, sign: float) -> Slots:
        """x + sign * y."""
        x, y = np.broadcast_arrays(x, y)
        pairs = np.stack([x.reshape(-1), y.reshape(-1)], axis=1)
        return self.sum(pairs, [[[1.0], [sign]]], 0.0, 1).reshape(x.shape)

    def bend(self, x: Slots, below: float, above: float, terms: int) -> Slots:
        """x * below where x is negative, x * above where it is positive."""
        pairs = np.stack([x.reshape(-1), self.relu(x).reshape(-1)], axis=1)
        return self.sum(pairs, [[[below], [above - below]]], 0.0, terms).reshape(x.shape)

    def largest(self, windows: Slots) -> Slots:
        """The largest slot of each row of `(P, k)`, by halving."""
        while windows.shape[1] > 1:
            half = windows.shape[1] // 2
            x, y = windows[:, :half], windows[:, half : 2 * half]
            pairs = np.stack([x.reshape(-1), y.reshape(-1)], axis=1)
            gap = self.relu(self.sum(pairs, [[[-1.0], [1.0]]], 0.0, 0))
            parts = np.stack([pairs[:, 0], gap.reshape(-1)], axis=1)
            best = self.sum(parts, np.ones((1, 2, 1)), 0.0, 0).reshape(x.shape)
            last = self._operations[-1]
            assert isinstance(last, Sum)
            self._operations[-1] = replace(last, hull=pairs)
            windows = np.concatenate([best, windows[:, 2 * half :]], axis=1)
        return windows[:, 0]

    def clip(self, x: Slots, low: Any, high: Any, noise: Any = 0.0) -> Slots:
        """min(max(x, low), high) plus noise; the limits are broadcast, infinite ones do nothing."""
        low, high, noise = (
            np.broadcast_to(one, x.shape).astype(float).reshape(-1, 1) for one in (low, high, noise)
        )
        flat, one, shift = x.reshape(-1, 1), np.ones((1, 1, 1)), np.zeros_like(low)
        if not (low <= high).all():
            raise RefusedError("a Clip has its limits in the wrong order")
        # max(x, low) = low + relu(x - low), then min(y, high) = high - relu(high - y).
        if np.isfinite(low).all():
            flat = self.relu(self.sum(flat, one, -low, 0))
            shift = low
        elif not np.isneginf(low).all():
            raise RefusedError("a Clip has limits for some elements only")
        if np.isposinf(high).all():
            return self.sum(flat, one, shift, 0, noise=noise).reshape(x.shape)
        rest = self.relu(self.sum(flat, -one, high - shift, 0, np.abs(high) + np.abs(shift)))
        return self.sum(rest, -one, high, 0, noise=noise).reshape(x.shape)

    def finish(self, inputs: Slots, outputs: Slots) -> Graph:
        """The graph, without sums that nothing uses, and slots numbered anew."""
        used = np.zeros(self._slots, bool)
        used[0] = used[inputs] = used[outputs] = True
        kept: list[Sum | Relu] = []
        for one in reversed(self._operations):
            if isinstance(one, Relu) or used[one.start : one.stop].any():
                used[one.start : one.stop] = used[one.inputs] = True
                if isinstance(one, Sum) and one.hull is not None:
                    used[one.hull] = True
                kept.append(one)
        place = np.cumsum(used) - 1
        moved: list[Sum | Relu] = []
        for one in reversed(kept):
            start, sources = int(place[one.start]), place[one.inputs]
            if isinstance(one, Sum) and one.hull is not None:
                moved.append(replace(one, start=start, inputs=sources, hull=place[one.hull]))
            else:
                moved.append(replace(one, start=start, inputs=sources))
        return Graph(tuple(moved), int(used.sum()), place[inputs], place[outputs])

    def _maker(self, x: Slots) -> Sum | None:
        for one in reversed(self._operations):
            if isinstance(one, Sum) and one.makes(x):
                return one
        return None
