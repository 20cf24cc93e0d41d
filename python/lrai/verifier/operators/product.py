"""Operators of several values that are not linear: products, softmax, maximum."""

import math

import numpy as np

from lrai.verifier.operators.base import Array, Box, Operator


class Product(Operator):
    """y[p] = a[p] @ b[p] for matrices a[p] `(M, K)` and b[p] `(K, N)`; M = K = N = 1 is Mul.

    With centres c and radii r, a b lies within r_a r_b of c_a b + a c_b - c_a c_b: the mean of the
    two planes of McCormick (1976) on either side.
    """

    def __init__(self, batch: int, rows: int, inner: int, columns: int) -> None:
        """Take the number of matrix pairs, and M, K and N."""
        self._left, self._right = (batch, rows, inner), (batch, inner, columns)
        self._out = (batch, rows, columns)
        self.terms = inner + 2

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        left, right = self._matrices(values[0], values[1])
        product: Array = np.matmul(left, right)
        return product.reshape(len(left), math.prod(self._out))

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        left, right = boxes
        if self._left[2] == 1:
            ends = [
                self.evaluate(a, b)
                for a in (left.lower, left.upper)
                for b in (right.lower, right.upper)
            ]
            return Box(np.minimum.reduce(ends), np.maximum.reduce(ends))
        centre = self.evaluate(_centre(left), _centre(right))
        radius = self.evaluate(_radius(left), np.abs(_centre(right)) + _radius(right))
        radius = radius + self.evaluate(np.abs(_centre(left)), _radius(right))
        return Box(centre - radius, centre + radius)

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return self.evaluate(boxes[0].magnitude, boxes[1].magnitude)

    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """See Operator."""
        del slopes
        left, right = boxes
        centres = self._matrices(_centre(left), _centre(right))
        shaped = rows.reshape(-1, *self._out)
        first = np.matmul(shaped, np.swapaxes(centres[1], -1, -2)).reshape(left.lower.shape)
        second = np.matmul(np.swapaxes(centres[0], -1, -2), shaped).reshape(right.lower.shape)
        constants = -(rows * np.matmul(*centres).reshape(rows.shape)).sum(axis=1)
        spread = self.evaluate(_radius(left), _radius(right))
        return (first, second), constants - (np.abs(rows) * spread).sum(axis=1)

    def _matrices(self, left: Array, right: Array) -> tuple[Array, Array]:
        return left.reshape(-1, *self._left), right.reshape(-1, *self._right)


class Maximum(Operator):
    """y[p] = max_k x[p, k] (MaxPool, Max)."""

    def __init__(self, count: int) -> None:
        """Take the number of values K of which each element is the largest."""
        self._count = count

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        largest: Array = self._groups(values[0]).max(axis=2)
        return largest

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        return Box(self.evaluate(boxes[0].lower), self.evaluate(boxes[0].upper))

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return self.evaluate(boxes[0].magnitude)

    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """See Operator; below: one value; above: the chord of max(that value, the others' most)."""
        del slopes
        lower, upper = self._groups(boxes[0].lower), self._groups(boxes[0].upper)
        best = (lower + upper).argmax(axis=2)[:, :, None]
        low = np.take_along_axis(lower, best, axis=2)[:, :, 0]
        high = np.take_along_axis(upper, best, axis=2)[:, :, 0]
        others = upper.copy()
        np.put_along_axis(others, best, -np.inf, axis=2)
        rest = others.max(axis=2)
        start, end = np.maximum(low, rest), np.maximum(high, rest)
        width = np.maximum(high - low, np.finfo(np.float64).tiny)
        chord = np.where(rest <= low, 1.0, (end - start) / width)
        factor = np.where(rows >= 0, rows, rows * chord)
        coefficients = np.zeros_like(lower)
        np.put_along_axis(coefficients, best, factor[:, :, None], axis=2)
        constants = np.where(rows >= 0, 0, rows * (start - chord * low)).sum(axis=1)
        return (coefficients.reshape(boxes[0].lower.shape),), constants

    def _groups(self, values: Array) -> Array:
        return values.reshape(len(values), values.shape[1] // self._count, self._count)


def _centre(box: Box) -> Array:
    return (box.lower + box.upper) / 2


def _radius(box: Box) -> Array:
    return (box.upper - box.lower) / 2
