"""Functions of one value that are bounded by lines of any slope, shifted until they touch."""

from abc import abstractmethod

import numpy as np

from lrai.verifier.operators.base import Array, Box, Elementwise, Planes

# More than the float64 roundings of one function value and one line, relative to their sizes.
_MARGIN = 64 * np.finfo(np.float64).eps


class Curve(Elementwise):
    """A function f whose tangents of a given slope are known.

    A line of slope a lies below f on an interval when its constant is the least value of
    f(x) - a x, which is taken at an end of the interval or where f' = a.
    """

    @abstractmethod
    def derivative(self, x: Array) -> Array:
        """The slope of f, element by element."""

    @abstractmethod
    def touching(self, slope: Array, box: Box) -> list[Array]:
        """All points inside an interval where f' = slope or f has a kink; others do no harm."""

    @abstractmethod
    def choose(self, box: Box, chord: Array, slopes: Array | None) -> tuple[Array, Array]:
        """Slopes of the lower and of the upper line; only tightness depends on them."""

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        flat = np.zeros_like(boxes[0].lower)
        return Box(*self._extremes(flat, boxes[0]))

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return self.interval(*boxes).magnitude

    def planes(self, box: Box, slopes: Array | None = None) -> Planes:
        """See Elementwise."""
        with np.errstate(all="ignore"):  # what is not finite is replaced, or ends as nan
            width = box.upper - box.lower
            middle = box.lower + width / 2
            narrow = width <= 1e-9 * (1 + np.abs(middle))
            rise = self.evaluate(box.upper) - self.evaluate(box.lower)
            chord = np.where(narrow, self.derivative(middle), rise / np.where(narrow, 1, width))
            below, above = self.choose(box, chord, slopes)
            below, above = (
                np.where(narrow, chord, np.nan_to_num(slope, posinf=0, neginf=0))
                for slope in (below, above)
            )
        return Planes(below, self._extremes(below, box)[0], above, self._extremes(above, box)[1])

    def _extremes(self, slope: Array, box: Box) -> tuple[Array, Array]:
        """The least and the greatest value of f(x) - slope * x, rounded outward."""
        low, high = np.full_like(slope, np.inf), np.full_like(slope, -np.inf)
        size = np.zeros_like(slope)
        with np.errstate(all="ignore"):
            points = [box.lower, box.upper]
            if not np.array_equal(box.lower, box.upper):  # equal where a gradient is asked for
                points += self.touching(slope, box)
            for point in points:
                inside = np.where(np.isnan(point), box.lower, point)
                inside = np.clip(inside, box.lower, box.upper)
                value, line = self.evaluate(inside), slope * inside
                low, high = np.minimum(low, value - line), np.maximum(high, value - line)
                size = np.maximum(size, np.abs(value) + np.abs(line))
            return low - _MARGIN * size, high + _MARGIN * size


class LeakyRelu(Curve):
    """y = x for x > 0, else alpha x (PRelu too, and Abs with alpha = -1)."""

    adjustable = True
    terms = 1

    def __init__(self, alpha: Array | float) -> None:
        """Take a slope, or one of shape `(n,)`, for negative values."""
        self.alpha = alpha

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return np.where(values[0] > 0, values[0], self.alpha * values[0])

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return np.where(x > 0, 1.0, self.alpha)

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        del box
        return [np.zeros_like(slope)]

    def choose(self, box: Box, chord: Array, slopes: Array | None) -> tuple[Array, Array]:
        """See Curve; the side of the kink that bends away may have any slope between the two."""
        if slopes is None:
            slopes = (box.upper > -box.lower).astype(np.float64)
        free = self.alpha + slopes * (1 - self.alpha)
        free = np.where((box.lower < 0) & (box.upper > 0), free, chord)
        convex = np.asarray(self.alpha) <= 1
        return np.where(convex, free, chord), np.where(convex, chord, free)


class Clip(Curve):
    """y = min(max(x, low), high); Relu6, HardTanh."""

    adjustable = True

    def __init__(self, low: float, high: float) -> None:
        """Take the ends, which may be infinite; raises nothing where they are swapped: y = high."""
        self.low, self.high = min(low, high), high

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return np.minimum(np.maximum(values[0], self.low), self.high)

    def derivative(self, x: Array) -> Array:
        """See Curve."""
        return ((x > self.low) & (x < self.high)).astype(np.float64)

    def touching(self, slope: Array, box: Box) -> list[Array]:
        """See Curve."""
        del box
        return [np.full_like(slope, end) for end in (self.low, self.high) if np.isfinite(end)]

    def choose(self, box: Box, chord: Array, slopes: Array | None) -> tuple[Array, Array]:
        """See Curve; the lines touch the near kink and the far end, or are flat."""
        left, right = np.maximum(self.low - box.lower, 0), np.maximum(box.upper - self.high, 0)
        reached, started = self.evaluate(box.upper), self.evaluate(box.lower)
        below = np.where(left > 0, (reached - self.low) / (box.upper - self.low), chord)
        above = np.where(right > 0, (self.high - started) / (self.high - box.lower), chord)
        if slopes is None:
            slopes = (box.upper - self.low > left).astype(np.float64)
        rising = (self.high - box.lower > right).astype(np.float64)
        below = np.where(left > 0, np.clip(below, 0, 1) * slopes, below)
        return below, np.where(right > 0, np.clip(above, 0, 1) * rising, above)
