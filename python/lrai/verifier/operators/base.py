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
        return Box(self.lower[rows], self.upper[rows])


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

        Takes `rows` of shape `(R, n)` and the boxes of the inputs, gathered for these rows, `(R, n_i)`.
        Returns coefficients `(R, n_i)` for each input and constants `(R,)` such that
        `rows @ op(x) >= sum_i coefficients_i @ x_i + constants` for all x in the boxes (DeepPoly,
        Singh et al. 2019; CROWN, Zhang et al. 2018). `slopes` `(R, n)` in [0, 1] may choose among
        the relaxations of an operator that has several (alpha-CROWN, Xu et al. 2021); it is
        ignored by the others.
        """
