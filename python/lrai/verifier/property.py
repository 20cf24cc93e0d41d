"""A property: the unsafe set, as a union of cases, each a box of inputs and a few linear conditions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """Unsafe are the inputs x in the box with `output_rows @ y + input_rows @ x <= offset`, all rows."""

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


@dataclass(frozen=True)
class Property:
    """Holds when no case contains an input: `unsat` in the words of VNN-LIB."""

    cases: tuple[Case, ...]
    digest: str
    """SHA-256 of the property's text (after decompression), in hexadecimal."""
    text: str
    """The text itself; a certificate carries it."""
