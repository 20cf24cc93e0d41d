"""What every operator can do: the same verbs for all, on rows of flat float64 vectors."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """Intervals, `(N, n)` each; row i belongs to the i-th region or to the i-th row of a bound."""

    lower: Array
    upper: Array

    @property
    def magnitude(self) -> Array:
        """The largest absolute value of each element."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))

    def take(self, rows: NDArray[np.intp]) -> "Box":
        """The intervals of some rows, repeated as often as they are named."""
        return Box(self.lower.take(rows, axis=0), self.upper.take(rows, axis=0))


@dataclass(frozen=True)
class Planes:
    """Two lines per element, `(N, n)` each: one below the operator, one above it."""

    lower_slope: Array
    lower_constant: Array
    upper_slope: Array
    upper_constant: Array

    def take(self, rows: NDArray[np.intp]) -> "Planes":
        """The lines of some rows, repeated as often as they are named."""
        return Planes(
            self.lower_slope.take(rows, axis=0),
            self.lower_constant.take(rows, axis=0),
            self.upper_slope.take(rows, axis=0),
            self.upper_constant.take(rows, axis=0),
        )


class Operator(ABC):
    """One kind of node.

    A deployed operator computes op(x) + d with |d| <= gamma(terms) * magnitude(x), in any order of
    summation; gamma(n) = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1). The engine adds that term, and the same for the verifier's own float64.
    """

    terms: int = 0
    """Roundings in the longest sum of one element when deployed; 0: exact."""

    @abstractmethod
    def evaluate(self, *values: Array) -> Array:
        """The operator itself: `(N, n_i)` for each input to `(N, n)`."""

    @abstractmethod
    def interval(self, *boxes: Box) -> Box:
        """Contains op(x) for all x in the boxes, up to the error term of the class."""

    @abstractmethod
    def magnitude(self, *boxes: Box) -> Array:
        """`(N, n)`: at least the sum of the absolute values of an element's terms."""

    @abstractmethod
    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """Replace op by a linear lower bound of `rows @ op(x)`.

        Takes `rows` `(R, n)` and the boxes of the inputs, `(R, n_i)`, gathered for these rows.
        Returns coefficients `(R, n_i)` for each input and constants `(R,)` such that
        `rows @ op(x) >= sum_i coefficients_i @ x_i + constants` for all x in the boxes (DeepPoly,
        Singh et al. 2019; CROWN, Zhang et al. 2018). `slopes` `(R, n)` in [0, 1] may choose among
        the relaxations of an operator that has several (alpha-CROWN, Xu et al. 2021); it is
        ignored by the others. With boxes of one point the coefficients are a gradient.
        """

    def replay(self, rows: Array, boxes: tuple[Box, ...], values: tuple[Array, ...]) -> Array:
        """`(R, n)`: the linear piece that `backward` chose for these rows, at `values` `(R, n_i)`.

        It is the derivative of the bound in `rows` and steers the search only, so that an operator
        may answer with its own value.
        """
        del rows, boxes
        return self.evaluate(*values)


class Linear(Operator):
    """y = sum_i map_i(x_i) + bias, with constant weights."""

    bias: Array
    """`(n,)`."""

    @abstractmethod
    def map(self, *values: Array) -> Array:
        """The operator without its bias: `(N, n_i)` for each input to `(N, n)`."""

    @abstractmethod
    def spread(self, *radii: Array) -> Array:
        """`map` with the absolute values of the weights."""

    @abstractmethod
    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """The transposed map: `(R, n)` to `(R, n_i)` for each input."""

    def evaluate(self, *values: Array) -> Array:
        """See Operator."""
        return self.map(*values) + self.bias

    def interval(self, *boxes: Box) -> Box:
        """See Operator."""
        centre = self.evaluate(*((box.lower + box.upper) / 2 for box in boxes))
        radius = self.spread(*((box.upper - box.lower) / 2 for box in boxes))
        return Box(centre - radius, centre + radius)

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return self.spread(*(box.magnitude for box in boxes)) + np.abs(self.bias)

    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """See Operator."""
        del boxes, slopes
        return self.transpose(rows), rows @ self.bias


class Elementwise(Operator):
    """A function of one input, element by element, between two lines per element."""

    adjustable: bool = False
    """Whether `slopes` choose the lower line."""

    @abstractmethod
    def planes(self, box: Box, slopes: Array | None = None) -> Planes:
        """The two lines over each interval, up to a few roundings of |slope| |x| + |constant|.

        `slopes` `(N, n)` in [0, 1] is ignored by operators that are not adjustable.
        """

    def bent(self, box: Box) -> NDArray[np.bool_]:
        """`(N, n)`: where the two lines differ, so that tighter intervals help."""
        planes = self.planes(box)
        slopes = planes.lower_slope != planes.upper_slope
        bent: NDArray[np.bool_] = slopes | (planes.lower_constant != planes.upper_constant)
        return bent

    def magnitude(self, *boxes: Box) -> Array:
        """See Operator."""
        return boxes[0].magnitude

    def backward(
        self, rows: Array, boxes: tuple[Box, ...], slopes: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """See Operator."""
        planes = self.planes(boxes[0], slopes)
        above = np.maximum(rows, 0)
        below = rows - above
        coefficients = above * planes.lower_slope + below * planes.upper_slope
        constants = above * planes.lower_constant + below * planes.upper_constant
        return (coefficients,), constants.sum(axis=1)

    def replay(self, rows: Array, boxes: tuple[Box, ...], values: tuple[Array, ...]) -> Array:
        """See Operator; with the default slopes."""
        planes = self.planes(boxes[0])
        return np.where(
            rows >= 0,
            planes.lower_slope * values[0] + planes.lower_constant,
            planes.upper_slope * values[0] + planes.upper_constant,
        )
