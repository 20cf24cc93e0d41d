"""Relu, the piecewise-linear operator that the search splits."""

import numpy as np

from lrai.verifier.operators.base import Array, Box, Operator


class Relu(Operator):
    """y = max(x, 0): below by slope * x, above by the chord (the triangle of Ehlers 2017)."""

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return np.maximum(values[0], 0)

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        return Box(np.maximum(boxes[0].lower, 0), np.maximum(boxes[0].upper, 0))

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return boxes[0].magnitude

    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """See Operator; the default slope is 1 where that triangle is smaller, else 0."""
        lower, upper = boxes[0].lower, boxes[0].upper
        active, unstable = lower >= 0, (lower < 0) & (upper > 0)
        chord = np.where(unstable, upper / np.where(unstable, upper - lower, 1), active)
        if slopes is None:
            slopes = (upper > -lower).astype(np.float64)
        below = np.where(unstable, slopes, active)
        coefficients = rows * np.where(rows >= 0, below, chord)
        constants = np.where(unstable & (rows < 0), -rows * chord * lower, 0).sum(axis=1)
        return (coefficients,), constants
