"""Softmax over groups of neighbouring elements."""

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.operators.base import Array, Box, Operator

# Beyond this sum of exponentials an element is bounded by constants: lines would overflow.
_LARGEST = 1e30
# Differences of two elements that are held at once.
_CHUNK = 1 << 22


class Softmax(Operator):
    """y_i = 1 / s_i with s_i = sum_j exp(x_j - x_i), bounded as 1/s after exp.

    Tangents and chords of both convex functions, as for composed operators (Shi et al. 2020,
    Robustness Verification for Transformers). A kernel that subtracts the maximum, with
    exponentials of 4 ulp and sums in any order, errs by less than 2 count + 16 units of 2^-24:
    y_i |x_i - max| and the mean of |x_j - max| are below count.
    """

    def __init__(self, count: int, groups: int) -> None:
        """Take the number of elements that add up to 1, and of such groups."""
        self._count, self._elements = count, count * groups
        self.terms = 2 * count + 16

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        x = self._groups(values[0])
        powers = np.exp(x - x.max(axis=2, keepdims=True))
        shares: Array = powers / powers.sum(axis=2, keepdims=True)
        return shares.reshape(values[0].shape)

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        parts = self._parts(len(boxes[0].lower))
        if len(parts) > 1:
            found = [self.interval(boxes[0].take(part)) for part in parts]
            lower = np.concatenate([box.lower for box in found])
            return Box(lower, np.concatenate([box.upper for box in found]))
        low, high = self._differences(boxes[0])
        with np.errstate(over="ignore"):
            ends = [1 / np.exp(part).sum(axis=3) for part in (high, low)]
        return Box(*(end.reshape(boxes[0].lower.shape) for end in ends))

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return np.ones_like(boxes[0].lower)

    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """See Operator."""
        del slopes
        parts = self._parts(len(rows))
        if len(parts) > 1:
            found = [self.backward(rows[part], (boxes[0].take(part),)) for part in parts]
            coefficients = np.concatenate([item[0][0] for item in found])
            return (coefficients,), np.concatenate([item[1] for item in found])
        low, high = self._differences(boxes[0])
        with np.errstate(over="ignore"):
            least, most = np.exp(low).sum(axis=3), np.exp(high).sum(axis=3)
        small = most < _LARGEST
        shaped = self._groups(rows)
        positive = shaped >= 0
        touch = np.sqrt(least * np.where(small, most, 1))
        factor = -shaped / np.where(positive, np.square(touch), least * np.where(small, most, 1))
        constant = shaped * np.where(positive, 2 / touch, 1 / least + 1 / np.where(small, most, 1))
        flat = np.where(positive, 1 / most, 1 / least) * shaped
        factor, constant = np.where(small, factor, 0), np.where(small, constant, flat)
        slope, start = self._powers(low, high, small, positive)
        spread = factor[..., None] * slope
        coefficients = spread.sum(axis=2) - spread.sum(axis=3)
        total = constant + factor * start.sum(axis=3)
        return (coefficients.reshape(rows.shape),), total.sum(axis=(1, 2))

    def _powers(
        self, low: Array, high: Array, small: NDArray[np.bool_], positive: NDArray[np.bool_]
    ) -> tuple[Array, Array]:
        """Slopes and constants of the lines of exp: chords for positive rows, else tangents."""
        low, high = np.where(small[..., None], low, 0), np.where(small[..., None], high, 0)
        width = high - low
        middle = low + width / 2
        narrow = width < 1e-6
        power = np.exp(middle)
        rise = np.where(narrow, 1, width)
        chord = np.where(narrow, np.exp(high), (np.exp(high) - np.exp(low)) / rise)
        above = np.where(narrow, np.exp(high) - chord * low, np.exp(low) - chord * low)
        pick = positive[..., None]
        return np.where(pick, chord, power), np.where(pick, above, power * (1 - middle))

    def _parts(self, count: int) -> list[NDArray[np.intp]]:
        """Row numbers in pieces whose differences of elements fit into memory."""
        pieces = 1 + count * self._elements * self._count // _CHUNK
        return np.array_split(np.arange(count), min(pieces, max(count, 1)))

    def _differences(self, box: Box) -> tuple[Array, Array]:
        """The ends of x_j - x_i, `(N, groups, i, j)`; 0 where i = j."""
        lower, upper = self._groups(box.lower), self._groups(box.upper)
        other = 1 - np.eye(self._count)
        low = (lower[:, :, None, :] - upper[:, :, :, None]) * other
        return low, (upper[:, :, None, :] - lower[:, :, :, None]) * other

    def _groups(self, values: Array) -> Array:
        return values.reshape(len(values), self._elements // self._count, self._count)
