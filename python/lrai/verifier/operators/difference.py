"""Operators on the difference of two values: what an original computes minus what its variant does.

They bound the difference itself, which is small, instead of two large values (ReluDiff, Paulsen et
al. 2020; NeuroDiff, Paulsen et al. 2020). Between z of the original, y of the variant and
d = z - y, relu(z) - relu(y) = t d with t in [0, 1].
"""

from dataclasses import dataclass

import numpy as np

from lrai.verifier.operators.base import Array, Box, Linear, Operator
from lrai.verifier.operators.quantize import FakeQuantize
from lrai.verifier.operators.relu import Relu


class LinearDifference(Linear):
    """f(y + d) - q(y) = F d + (F - Q) y + f_bias - q_bias, of inputs d and y.

    The deployed operators round F (y + d) and Q y, which `magnitude` and `spread` cover.
    """

    def __init__(self, f: Linear, q: Linear) -> None:
        """Take two linear operators of one input and of equal sizes."""
        self._f, self._q = f, q
        self.bias = f.bias - q.bias
        self.terms = max(f.terms, q.terms)

    def map(self, *values: Array) -> Array:
        """See Linear."""
        d, y = values
        return self._f.map(d) + (self._f.map(y) - self._q.map(y))

    def spread(self, *radii: Array) -> Array:
        """See Linear; without the cancellation of F and Q, because each product is rounded."""
        d, y = radii
        return self._f.spread(d + y) + self._q.spread(y)

    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """See Linear."""
        (on_d,) = self._f.transpose(rows)
        (on_q,) = self._q.transpose(rows)
        return on_d, on_d - on_q

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        sizes = self.spread(*(box.magnitude for box in boxes))
        return sizes + np.abs(self._f.bias) + np.abs(self._q.bias)


class ElementDifference(Operator):
    """f(z) - q(y) of inputs z, y and d = z - y; f is Relu or the identity (None).

    q is Relu, the identity, or a pair of QuantizeLinear and DequantizeLinear, which may have
    swallowed the Relu. f(z) - q(y) is f(z) - f(y), bounded by d, plus f(y) - q(y), an interval.
    """

    def __init__(self, f: Relu | None, q: Relu | FakeQuantize | None) -> None:
        """Take both operators; a Relu against the identity is refused with ValueError."""
        if not isinstance(q, FakeQuantize) and type(f) is not type(q):
            raise ValueError("a Relu has no counterpart")
        self._f, self._q = f, q
        self.terms = 0 if q is None else q.terms

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        z, y, _ = values
        wanted = z if self._f is None else self._f.evaluate(z)
        return wanted - (y if self._q is None else self._q.evaluate(y))

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        z, y, d = boxes
        rest = self._rest(y)
        if self._f is None:
            return Box(d.lower + rest.lower, d.upper + rest.upper)
        upper = np.minimum(np.maximum(d.upper, 0), _relu(z.upper) - _relu(y.lower))
        lower = np.maximum(np.minimum(d.lower, 0), _relu(z.lower) - _relu(y.upper))
        return Box(lower + rest.lower, upper + rest.upper)

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        z, y, d = boxes
        own = 2 * (z.magnitude + y.magnitude + d.magnitude) + self._rest(y).magnitude
        return own if self._q is None else own + self._q.magnitude(y)

    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """See Operator."""
        del slopes
        z, y, d = boxes
        rest = self._rest(y)
        over, under = np.maximum(rows, 0), np.minimum(rows, 0)
        constants = over * rest.lower + under * rest.upper
        if self._f is None:
            zeros = np.zeros_like(rows)
            return (zeros, zeros, rows), constants.sum(axis=1)
        above = _above(z, y, d)
        # relu(z) - relu(y) = -(relu(y) - relu(z)): the roles change, and d its sign.
        below = _above(y, z, Box(-d.upper, -d.lower))
        constants += under * above.constant - over * below.constant
        return (
            under * above.first - over * below.second,
            under * above.second - over * below.first,
            under * above.gap + over * below.gap,
        ), constants.sum(axis=1)

    def _rest(self, y: Box) -> Box:
        """f(y) - q(y) over the interval of y."""
        if not isinstance(self._q, FakeQuantize):
            return Box(np.zeros_like(y.lower), np.zeros_like(y.lower))
        noise = self._q.noise
        low, high = self._clipped(y.lower), self._clipped(y.upper)
        if self._f is None:  # y - clip(y) does not fall
            return Box(low - noise, high + noise)
        # relu(y) - clip(y) falls until 0 and does not fall behind it.
        least = self._clipped(np.clip(0.0, y.lower, y.upper))
        return Box(least - noise, np.maximum(low, high) + noise)

    def _clipped(self, y: Array) -> Array:
        """What the range of q's levels takes away from f(y)."""
        assert isinstance(self._q, FakeQuantize)  # others take nothing away
        first, last = self._q.first * self._q.scale, self._q.last * self._q.scale
        return (y if self._f is None else _relu(y)) - np.clip(y, first, last)


@dataclass(frozen=True)
class _Plane:
    """first * z + second * y + gap * d + constant, `(N, n)` each."""

    first: Array
    second: Array
    gap: Array
    constant: Array


def _above(z: Box, y: Box, d: Box) -> _Plane:
    """A plane above relu(z) - relu(y): of the sound ones the lowest in the middle of the boxes."""
    rising = d.upper > 0
    both = rising & (d.lower < 0)
    slope = np.where(both, d.upper / np.where(both, d.upper - d.lower, 1), rising)
    shift = np.where(both, -slope * d.lower, 0)
    # relu(z) = z: z - relu(y) <= d. relu(z) = 0: -relu(y) <= 0.
    slope = np.where(z.lower >= 0, 1.0, np.where(z.upper <= 0, 0.0, slope))
    shift = np.where((z.lower >= 0) | (z.upper <= 0), 0.0, shift)
    bent = (z.lower < 0) & (z.upper > 0)
    chord = np.where(bent, z.upper / np.where(bent, z.upper - z.lower, 1), z.lower >= 0)
    start = np.where(bent, -chord * z.lower, 0)
    under = np.where(y.upper > -y.lower, 1.0, 0.0)
    under = np.where(y.lower >= 0, 1.0, np.where(y.upper <= 0, 0.0, under))
    middle = [(box.lower + box.upper) / 2 for box in (z, y, d)]
    apart = chord * middle[0] + start - under * middle[1] < slope * middle[2] + shift
    return _Plane(
        np.where(apart, chord, 0),
        np.where(apart, -under, 0),
        np.where(apart, 0, slope),
        np.where(apart, start, shift),
    )


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)
