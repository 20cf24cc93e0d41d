"""Relu, the piecewise-linear operator that the search splits."""

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.operators.base import Array, Box, Elementwise, Planes


class Relu(Elementwise):
    """y = max(x, 0): below by slope * x, above by the chord (the triangle of Ehlers 2017)."""

    adjustable = True

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return np.maximum(values[0], 0)

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        return Box(np.maximum(boxes[0].lower, 0), np.maximum(boxes[0].upper, 0))

    def bent(self, box: Box) -> NDArray[np.bool_]:
        """See Elementwise."""
        bent: NDArray[np.bool_] = (box.lower < 0) & (box.upper > 0)
        return bent

    def planes(self, box: Box, slopes: Array | None = None) -> Planes:
        """See Elementwise; the default slope is 1 where u > 2 |l|, else 0.

        The triangle is smaller with 1 from u > |l| on, but the line y = x also lets go of y >= 0,
        which the next layers feel: with 2 |l| trees have a quarter fewer leaves.
        With a = min(l, 0) and b = max(u, 0) the chord b / (b - a) is 1 or 0 where x has one sign.
        """
        below, above = np.minimum(box.lower, 0), np.maximum(box.upper, 0)
        chord = above / np.maximum(above - below, np.finfo(np.float64).tiny)
        if slopes is None:
            lower = (above > -2 * below).astype(np.float64)
        else:
            lower = np.where((below < 0) & (above > 0), slopes, chord)
        return Planes(lower, np.zeros_like(lower), chord, -chord * below)
