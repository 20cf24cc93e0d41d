"""Smooth functions of one value.

`terms` states the accuracy that a deployed float32 kernel must have: 8 units of 2^-24 (4 ulp) of
`magnitude`, which is at least 1 where kernels clamp their argument and so err absolutely.
"""

import math
from functools import cache
from typing import Final

import numpy as np

from lrai.verifier.operators.base import Array, Box
from lrai.verifier.operators.curve import Curve

_STEP: Final = 2.0**-9
_END: Final = 6.0


def erf(x: Array) -> Array:
    """The error function to 4e-16: Taylor's series of five terms at the nearest of many points."""
    size = np.minimum(np.abs(x), _END)
    place = np.rint(np.where(np.isnan(size), 0, size) / _STEP)
    near = place * _STEP
    d, square = size - near, near * near
    series = 1 / 3 * (2 * square - 1) + d * (near * (3 - 2 * square) / 6)
    series += d * d * ((4 * square - 12) * square + 3) / 30
    slope = 2 / math.sqrt(math.pi) * np.exp(-square)
    value = _erf_table()[place.astype(np.intp)] + slope * d * (1 + d * (d * series - near))
    return np.copysign(value, x)


@cache
def _erf_table() -> Array:
    count = round(_END / _STEP) + 1
    return np.array([math.erf(place * _STEP) for place in range(count)])


class Convex(Curve):
    """Convex on every interval inside its domain; the lower line is a tangent."""

    adjustable = True

    def choose(self, box: Box, chord: Array, slopes: Array | None) -> tuple[Array, Array]:
        """See Curve."""
        share = 0.5 if slopes is None else slopes
        return self.derivative(box.lower + share * (box.upper - box.lower)), chord


class Exp(Convex):
    """y = exp(x)."""

    terms = 8

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        with np.errstate(over="ignore"):
            return np.exp(values[0])

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return self.evaluate(x)

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        del box
        return [np.log(slope)]


class Square(Convex):
    """y = x^2."""

    terms = 4

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return np.square(values[0])

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return 2 * x

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        del box
        return [slope / 2]


class Reciprocal(Curve):
    """y = 1 / x; an interval that holds 0 has no bounds (nan)."""

    adjustable = True
    terms = 2

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        with np.errstate(divide="ignore"):
            return 1 / values[0]

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return -1 / np.square(x)

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        root = np.sqrt(-1 / slope)
        return [np.where(box.lower > 0, root, -root)]

    def choose(self, box: Box, chord: Array, slopes: Array | None) -> tuple[Array, Array]:
        """See Curve; convex for x > 0, concave for x < 0."""
        share = 0.5 if slopes is None else slopes
        # The geometric mean balances the two ends of a wide interval.
        ratio = np.power(box.upper / box.lower, share)
        tangent = self.derivative(box.lower * ratio)
        convex = box.lower > 0
        return np.where(convex, tangent, chord), np.where(convex, chord, tangent)

    def _extremes(self, slope: Array, box: Box) -> tuple[Array, Array]:
        pole = (box.lower <= 0) & (box.upper >= 0)
        low, high = super()._extremes(slope, box)
        return np.where(pole, np.nan, low), np.where(pole, np.nan, high)


class Sqrt(Curve):
    """y = sqrt(x); an interval that reaches below 0 has no bounds (nan)."""

    terms = 2

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(values[0])

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return 0.5 / np.sqrt(x)

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        del box
        return [0.25 / np.square(slope)]

    def choose(self, box: Box, chord: Array, slopes: Array | None) -> tuple[Array, Array]:
        """See Curve."""
        del slopes
        return chord, self.derivative(box.lower + (box.upper - box.lower) / 2)


class Sigmoidal(Curve):
    """Rising, convex below 0, concave above 0, and its derivative is even."""

    adjustable = True
    terms = 8

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return np.ones_like(boxes[0].lower)

    def choose(self, box: Box, chord: Array, slopes: Array | None) -> tuple[Array, Array]:
        """See Curve; the upper line is the lower line of the mirrored interval."""
        return (
            self._below(box, chord, slopes),
            self._below(Box(-box.upper, -box.lower), chord, None),
        )

    def _below(self, box: Box, chord: Array, slopes: Array | None) -> Array:
        """The slope of a tangent at a convex point, at most the one through the upper end."""
        low, high = box.lower, np.minimum(box.upper, 0)
        end = self.evaluate(box.upper)
        low_end, high_end = low, high
        for _ in range(12):
            middle = (low_end + high_end) / 2
            tangent = self.evaluate(middle) + self.derivative(middle) * (box.upper - middle)
            low_end = np.where(tangent <= end, middle, low_end)
            high_end = np.where(tangent <= end, high_end, middle)
        default = np.where(box.upper <= 0, 0.5, 1.0)
        share = default if slopes is None else slopes
        point = low + share * (low_end - low)
        concave = (box.lower >= 0) | (low_end <= low)
        return np.where(concave, chord, self.derivative(point))


class Sigmoid(Sigmoidal):
    """y = 1 / (1 + exp(-x))."""

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return 0.5 + 0.5 * np.tanh(0.5 * values[0])

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return 0.25 * (1 - np.square(np.tanh(0.5 * x)))

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        del box
        point = 2 * np.arctanh(np.sqrt(1 - 4 * slope))
        return [point, -point]


class Tanh(Sigmoidal):
    """y = tanh(x)."""

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return np.tanh(values[0])

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return 1 - np.square(np.tanh(x))

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        del box
        point = np.arctanh(np.sqrt(1 - slope))
        return [point, -point]


class Erf(Sigmoidal):
    """y = erf(x)."""

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return erf(values[0])

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return 2 / math.sqrt(math.pi) * np.exp(-np.square(x))

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        del box
        point = np.sqrt(-np.log(slope * math.sqrt(math.pi) / 2))
        return [point, -point]


class Gelu(Curve):
    """y = x Phi(x), exact or with Phi's approximation by tanh (Hendrycks and Gimpel 2016)."""

    terms = 16
    _POINTS = 33
    # |f''| <= 2 / sqrt(2 pi) for the exact form; the other one stays below this too.
    _BEND = 0.81

    def __init__(self, approximate: bool) -> None:
        """Take whether Phi is approximated."""
        self._approximate = approximate

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        x = values[0]
        return x * self._phi(x)

    def derivative(self, x: Array) -> Array:
        """See Curve; the exact form's."""
        return self._phi(x) + x * np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve; between these points `_extremes` adds what f can bend."""
        del slope
        shares = np.linspace(0, 1, self._POINTS)[1:-1]
        return [box.lower + share * (box.upper - box.lower) for share in shares]

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator; kernels compute x times a factor that errs absolutely."""
        return boxes[0].magnitude

    def choose(self, box: Box, chord: Array, slopes: Array | None) -> tuple[Array, Array]:
        """See Curve."""
        del box, slopes
        return chord, chord

    def _extremes(self, slope: Array, box: Box) -> tuple[Array, Array]:
        low, high = super()._extremes(slope, box)
        bend = self._BEND / 8 * np.square((box.upper - box.lower) / (self._POINTS - 1))
        return low - bend, high + bend

    def _phi(self, x: Array) -> Array:
        if self._approximate:
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
            return 0.5 + 0.5 * np.tanh(inner)
        return 0.5 + 0.5 * erf(x / math.sqrt(2))
