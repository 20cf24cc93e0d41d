"""QuantizeLinear followed by DequantizeLinear, on values that are not constant."""

import numpy as np

from lrai.verifier.operators.base import Array, Box, Elementwise, Planes
from lrai.verifier.operators.curve import Clip


class FakeQuantize(Elementwise):
    """y = scale * clamp(round(x / scale), first, last): clip(x) + r with |r| <= scale / 2 + slack.

    The slack covers a deployed kernel that divides and requantises in float32, in any fused form
    and with any rule for ties: both neighbours of a tie are bounded.
    """

    adjustable = True
    terms = 2

    def __init__(self, scale: float, first: int, last: int) -> None:
        """Take the scale and the least and the greatest level, relative to the zero point."""
        self.scale, self.first, self.last = scale, first, last
        self._slack = 4 * 2.0**-24 * max(abs(first), abs(last)) + 2.0**-20
        self._clip = Clip(first * scale, last * scale)
        self.noise = scale * (0.5 + self._slack)
        """How far y can be from clip(x)."""

    def evaluate(self, *values: Array) -> Array:
        """See Operator; ties go to the even level."""
        return self._clamp(np.rint(values[0] / self.scale))

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        half = 0.5 + self._slack
        return Box(
            self._clamp(np.ceil(boxes[0].lower / self.scale - half)),
            self._clamp(np.floor(boxes[0].upper / self.scale + half)),
        )

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return self.interval(*boxes).magnitude

    def planes(self, box: Box, slopes: Array | None = None) -> Planes:
        """See Elementwise; one level is a constant, and one point keeps the slope for gradients."""
        lines, levels = self._clip.planes(box, slopes), self.interval(box)
        point = box.lower == box.upper
        constant = point | (levels.lower == levels.upper)
        slope = np.where(point, self._clip.derivative(box.lower), 0.0)
        return Planes(
            np.where(constant, slope, lines.lower_slope),
            np.where(constant, levels.lower - slope * box.lower, lines.lower_constant - self.noise),
            np.where(constant, slope, lines.upper_slope),
            np.where(constant, levels.upper - slope * box.upper, lines.upper_constant + self.noise),
        )

    def _clamp(self, levels: Array) -> Array:
        return self.scale * np.minimum(np.maximum(levels, self.first), self.last)
