"""Affine maps of one or more inputs, with constant weights."""

import numpy as np

from lrai.verifier.operators.base import Array, Box, Operator


class Affine(Operator):
    """y = sum_i x_i @ weights_i + bias (Gemm, MatMul, Add, Sub, Mul by constants, BatchNormalization)."""

    def __init__(self, weights: tuple[Array, ...], bias: Array) -> None:
        """Take weights of shape `(n_i, n)` and a bias of shape `(n,)`."""
        self.weights, self.bias = weights, bias
        self._sizes = tuple(np.abs(weight) for weight in weights)
        self.terms = sum(weight.shape[0] for weight in weights) + 1

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        total = self.bias
        for value, weight in zip(values, self.weights, strict=True):
            total = total + value @ weight
        return total

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        centre = self.evaluate(*((box.lower + box.upper) / 2 for box in boxes))
        radius = sum(
            (box.upper - box.lower) / 2 @ size for box, size in zip(boxes, self._sizes, strict=True)
        )
        return Box(centre - radius, centre + radius)

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        total = np.abs(self.bias)
        for box, size in zip(boxes, self._sizes, strict=True):
            total = total + box.magnitude @ size
        return total

    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """See Operator."""
        del boxes, slopes
        return tuple(rows @ weight.T for weight in self.weights), rows @ self.bias
