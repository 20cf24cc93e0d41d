"""A property: the unsafe set as a union of cases, each a box and a few linear conditions."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """Unsafe are the x in the box with `output_rows @ y + input_rows @ x <= offset` in all rows."""

    lower: Array
    """`(n_in,)`, never above what the file says."""
    upper: Array
    """`(n_in,)`, never below what the file says."""
    output_rows: Array
    """`(m, n_out)`; m = 0 means that every output is unsafe."""
    offset: Array
    """`(m,)`, never below what the file says."""
    input_rows: Array | None = None
    """`(m, n_in)`; None stands for zeros."""
    strict: tuple[int, ...] = ()
    """Rows stated with `<`: proofs exclude equality too, and a witness must not have it."""

    def contains(self, x: Array, y: Array) -> bool:
        """Whether the input `x` `(n_in,)` with the output `y` `(n_out,)` is unsafe, exactly."""
        if not (np.all(self.lower <= x) and np.all(x <= self.upper)):
            return False
        if not np.all(np.isfinite(y)):
            return False
        rows = (
            [self.output_rows] if self.input_rows is None else [self.output_rows, self.input_rows]
        )
        point = [Fraction(float(value)) for value in (*y, *x)]
        for index, row in enumerate(np.concatenate(rows, axis=1)):
            total = sum(Fraction(float(row[i])) * point[i] for i in np.flatnonzero(row))
            limit = Fraction(float(self.offset[index]))
            if total > limit or (total == limit and index in self.strict):
                return False
        return True


@dataclass(frozen=True)
class Property:
    """Holds when no case contains an input: `unsat` in the words of VNN-LIB."""

    cases: tuple[Case, ...]
    digest: str
    """SHA-256 of the property's text (after decompression), in hexadecimal."""
    text: str
    """The text itself; a certificate carries it."""
