"""What the checker makes of a network: sums, maxima with zero, and bounded noise; nothing else.

Every scalar has a slot, a number; to move data is to move slots, and slot 0 holds zero.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Slots = NDArray[np.intp]

MAX_ELEMENTS: Final = 1 << 26
ONE: Final = np.ones((1, 1, 1))


class RefusedError(Exception):
    """Why something is not accepted, in a sentence."""


@dataclass(frozen=True)
class Sum:
    """`out[p, c] = sum_k in[p, k] * weights[p, k, c] + bias[p, c]`, up to roundings and noise."""

    out: slice
    """Slots of the outputs, row-major."""
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
    noise: Any = 0.0
    """`(P, C)`: an unknown value of at most this size is added."""


@dataclass(frozen=True)
class Relu:
    """`out[i] = max(in[i], 0)`; the inputs are outputs of one sum."""

    out: slice
    inputs: Slots
    is_hidden: bool
    """Whether it is a Relu of the model, whose neurons are counted."""


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
        self.operations: list[Sum | Relu] = []
        self.slots = 1

    def new(self, count: int) -> Slots:
        """Slots for new values."""
        self.slots += count
        if self.slots > MAX_ELEMENTS:
            raise RefusedError("the network is too large for the checker")
        return np.arange(self.slots - count, self.slots)

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
        out = self.new(bias.size)
        place = slice(int(out[0]), self.slots)
        self.operations.append(Sum(place, inputs, weights, bias, size, terms, noise))
        return out.reshape(shape)

    def relu(self, x: Slots, is_hidden: bool = False) -> Slots:
        """Append max(x, 0)."""
        flat = x.reshape(-1)
        if self._maker(flat) is None:
            flat = self.sum(flat[:, None], ONE, 0.0, 0).reshape(-1)
        out = self.new(flat.size)
        self.operations.append(Relu(slice(int(out[0]), self.slots), flat, is_hidden))
        return out.reshape(x.shape)

    def scale(
        self, x: Slots, line: tuple[Any, Any, Any], terms: int, is_single: bool = False
    ) -> Slots:
        """x * factor + shift, element by element; `line` is factor, shift and the shift's size.

        Where nothing else uses x, the rounded sum that makes it is changed, as runtimes do; not to
        fuse the two is covered as well.
        """
        given = [np.broadcast_to(one, x.shape).astype(float) for one in line]
        place = self._maker(x) if is_single and np.unique(x).size == x.size else None
        one = None if place is None else self.operations[place]
        if place is None or not isinstance(one, Sum) or one.terms == 0:
            factor, shift, size = (part.reshape(-1, 1) for part in given)
            return self.sum(x.reshape(-1, 1), factor[:, :, None], shift, terms, size).reshape(
                x.shape
            )
        whole = np.repeat([[1.0], [0.0], [0.0]], one.bias.size, axis=1)
        whole[:, x - one.out.start] = given
        factor, shift, size = whole.reshape(3, *one.bias.shape)
        factor = factor[:1] if (factor == factor[:1]).all() else factor
        self.operations[place] = replace(
            one,
            weights=one.weights * factor[:, None, :],
            bias=one.bias * factor + shift,
            size=one.size * np.abs(factor) + size,
            terms=one.terms + terms,
        )
        return x

    def pair(self, x: Slots, y: Slots, factors: tuple[float, float], terms: int) -> Slots:
        """factors[0] * x + factors[1] * y."""
        x, y = np.broadcast_arrays(x, y)
        pairs = np.stack([x.reshape(-1), y.reshape(-1)], axis=1)
        return self.sum(pairs, np.reshape(factors, (1, 2, 1)), 0.0, terms).reshape(x.shape)

    def largest(self, windows: Slots) -> Slots:
        """The largest slot of each row of `(P, k)`: x + relu(y - x), by halving."""
        while windows.shape[1] > 1:
            half = windows.shape[1] // 2
            x, y = windows[:, :half], windows[:, half : 2 * half]
            best = self.pair(x, self.relu(self.pair(x, y, (-1.0, 1.0), 0)), (1.0, 1.0), 0)
            windows = np.concatenate([best, windows[:, 2 * half :]], axis=1)
        return windows[:, 0]

    def clip(self, x: Slots, low: Any, high: Any, noise: Any = 0.0) -> Slots:
        """min(max(x, low), high) plus noise; the limits are broadcast, infinite ones do nothing."""
        low, high, noise = (
            np.broadcast_to(one, x.shape).astype(float).reshape(-1, 1) for one in (low, high, noise)
        )
        flat, shift = x.reshape(-1, 1), np.zeros_like(low)
        # max(x, low) = low + relu(x - low), then min(y, high) = high - relu(high - y).
        if not np.isneginf(low).all():
            flat, shift = self.relu(self.sum(flat, ONE, -low, 0)), low
        if np.isposinf(high).all():
            return self.sum(flat, ONE, shift, 0, noise=noise).reshape(x.shape)
        rest = self.relu(self.sum(flat, -ONE, high - shift, 0, np.abs(high) + np.abs(shift)))
        return self.sum(rest, -ONE, high, 0, noise=noise).reshape(x.shape)

    def _maker(self, x: Slots) -> int | None:
        """The sum that makes all these slots."""
        for place, one in reversed(list(enumerate(self.operations))):
            if x.min() >= one.out.start and x.max() < one.out.stop:
                return place if isinstance(one, Sum) else None
        return None
