"""Linear maps that are cheaper than a dense matrix."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.operators.base import Array, Box, Linear


class Scale(Linear):
    """y = x * scale + bias, element by element (Add, Sub, Mul and Div by constants, BatchNorm)."""

    def __init__(self, scale: Array, bias: Array, terms: int = 2) -> None:
        """Take a scale and a bias of shape `(n,)`."""
        self.scale, self.bias, self.terms = scale, bias, terms
        self._size = np.abs(scale)

    def map(self, *values: Array) -> Array:
        """See Linear."""
        return values[0] * self.scale

    def spread(self, *radii: Array) -> Array:
        """See Linear."""
        return radii[0] * self._size

    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """See Linear."""
        return (rows * self.scale,)


class Sum(Linear):
    """y = sum_i sign_i * x_i, inputs of one shape (Add, Sub, Sum)."""

    def __init__(self, signs: tuple[float, ...], size: int) -> None:
        """Take a sign of 1.0 or -1.0 for each input, and the number of elements."""
        self.signs, self.bias = signs, np.zeros(size)
        self.terms = len(signs)

    def map(self, *values: Array) -> Array:
        """See Linear."""
        return _total([sign * value for sign, value in zip(self.signs, values, strict=True)])

    def spread(self, *radii: Array) -> Array:
        """See Linear."""
        return _total(list(radii))

    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """See Linear."""
        return tuple(sign * rows for sign in self.signs)


class Contract(Linear):
    """y[p, m, q] = sum_k x[p, k, q] * weights[k, m] (MatMul on one axis, ReduceSum, ReduceMean)."""

    def __init__(self, weights: Array, outer: int, inner: int) -> None:
        """Take weights of shape `(K, M)` and the sizes P and Q of the axes around."""
        self.weights, self._outer, self._inner = weights, outer, inner
        self._size = np.abs(weights)
        self.bias = np.zeros(outer * weights.shape[1] * inner)
        self.terms = weights.shape[0] + 1

    def map(self, *values: Array) -> Array:
        """See Linear."""
        return self._apply(self.weights, values[0])

    def spread(self, *radii: Array) -> Array:
        """See Linear."""
        return self._apply(self._size, radii[0])

    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """See Linear."""
        return (self._apply(self.weights.T, rows),)

    def _apply(self, weights: Array, values: Array) -> Array:
        shaped = values.reshape(len(values), self._outer, weights.shape[0], self._inner)
        result: Array = np.matmul(weights.T, shaped)
        return result.reshape(len(values), self._outer * weights.shape[1] * self._inner)


class Variance(Contract):
    """The mean of each group of squares; the second input is what the groups were before centring.

    It only adds to the error: runtimes may compute the variance as mean(x^2) - mean(x)^2.
    """

    def __init__(self, outer: int, count: int) -> None:
        """Take the number of groups and of elements in a group."""
        super().__init__(np.full((count, 1), 1 / count), outer, 1)
        self.terms = count + 8

    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """See Linear."""
        (squares,) = super().transpose(rows)
        return squares, np.zeros_like(squares)

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        squares = boxes[0].magnitude + 2 * np.square(boxes[1].magnitude)
        return self.spread(squares) + np.abs(self.bias)


class Normalise(Scale):
    """BatchNormalization: y = (x - mean) * factor + offset, also where a runtime precomputes it."""

    def __init__(self, factor: Array, mean: Array, offset: Array) -> None:
        """Take three arrays of shape `(n,)`."""
        super().__init__(factor, offset - mean * factor, terms=8)
        self._cancelled = np.abs(offset) + np.abs(mean * factor)

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        reach: Array = self.spread(boxes[0].magnitude) + self._cancelled
        return reach


class Select(Linear):
    """y = concat(x_1, ..., x_k, constants)[indices] (Slice, Gather, Concat, Pad, ...)."""

    def __init__(self, indices: NDArray[np.intp], sizes: tuple[int, ...], constants: Array) -> None:
        """Take indices `(n,)`, the elements of each input, and the constants `(c,)` behind them."""
        self.indices = indices
        self._ends: Final = np.cumsum(sizes)
        total = int(self._ends[-1])
        self._moved = indices < total
        self._sources = np.where(self._moved, indices, 0)
        self.bias = np.zeros(len(indices))
        self.bias[~self._moved] = constants[indices[~self._moved] - total]
        order = np.argsort(self._sources[self._moved], kind="stable")
        self._order = np.flatnonzero(self._moved)[order]
        self._targets, self._starts = np.unique(
            self._sources[self._moved][order], return_index=True
        )

    def map(self, *values: Array) -> Array:
        """See Linear."""
        joined = values[0] if len(values) == 1 else np.concatenate(values, axis=1)
        moved: Array = joined.take(self._sources, axis=1) * self._moved
        return moved

    def spread(self, *radii: Array) -> Array:
        """See Linear."""
        return self.map(*radii)

    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """See Linear; rows of an element that is read several times are summed."""
        result = np.zeros((len(rows), int(self._ends[-1])))
        if len(self._targets):
            result[:, self._targets] = np.add.reduceat(rows[:, self._order], self._starts, axis=1)
        return tuple(np.split(result, self._ends[:-1], axis=1))


def _total(values: list[Array]) -> Array:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
