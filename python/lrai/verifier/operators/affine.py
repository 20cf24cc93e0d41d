"""Affine maps of one or more inputs, with constant weights."""

import numpy as np

from lrai.verifier.operators.base import Array, Linear


class Affine(Linear):
    """y = sum_i x_i @ weights_i + bias (Gemm, MatMul; Add, Sub and Mul by dense constants)."""

    def __init__(self, weights: tuple[Array, ...], bias: Array) -> None:
        """Take weights of shape `(n_i, n)` and a bias of shape `(n,)`."""
        self.weights, self.bias = weights, bias
        self._sizes = tuple(np.abs(weight) for weight in weights)
        self.terms = sum(weight.shape[0] for weight in weights) + 1

    def map(self, *values: Array) -> Array:
        """See Linear."""
        total = values[0] @ self.weights[0]
        for value, weight in zip(values[1:], self.weights[1:], strict=True):
            total += value @ weight
        return total

    def spread(self, *radii: Array) -> Array:
        """See Linear."""
        total = radii[0] @ self._sizes[0]
        for radius, size in zip(radii[1:], self._sizes[1:], strict=True):
            total += radius @ size
        return total

    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """See Linear."""
        return tuple(rows @ weight.T for weight in self.weights)
