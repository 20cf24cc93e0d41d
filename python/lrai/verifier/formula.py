"""Linear formulas in disjunctive normal form, with exact fractions, and the cases they describe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from lrai.errors import PropertyError
from lrai.verifier.property import Case

_MAX_CASES: Final = 10_000
_MAX_ELEMENTS: Final = 50_000_000
Variable = tuple[str, int]


@dataclass(frozen=True)
class Linear:
    """`sum_v terms[v] * v + constant`; ("X", i) is an input, ("Y", j) an output."""

    terms: Mapping[Variable, Fraction]
    constant: Fraction

    def plus(self, others: Sequence["Linear"], factor: int = 1) -> "Linear":
        """`self + factor * sum(others)`."""
        terms, constant = dict(self.terms), self.constant
        for other in others:
            for variable, coefficient in other.terms.items():
                terms[variable] = terms.get(variable, Fraction(0)) + factor * coefficient
            constant += factor * other.constant
        kept = {variable: coefficient for variable, coefficient in terms.items() if coefficient}
        return Linear(kept, constant)

    def times(self, factor: Fraction) -> "Linear":
        """`factor * self`."""
        kept = {variable: factor * value for variable, value in self.terms.items() if factor}
        return Linear(kept, factor * self.constant)


@dataclass(frozen=True)
class Atom:
    """The condition `term <= 0`, or `term < 0` where it is strict."""

    term: Linear
    strict: bool = False


Formula = tuple[tuple[Atom, ...], ...]
"""A disjunction of conjunctions."""


def disjunction(parts: Sequence[Formula]) -> Formula:
    """Any of the parts."""
    return _limited(tuple(clause for part in parts for clause in part))


def conjunction(parts: Sequence[Formula]) -> Formula:
    """All of the parts; raises PropertyError where their product has too many clauses."""
    common = tuple(atom for part in parts if len(part) == 1 for atom in part[0])
    clauses: Formula = ((),)
    for part in (part for part in parts if len(part) != 1):
        if len(clauses) * len(part) > _MAX_CASES:
            _limited((), len(clauses) * len(part))
        clauses = tuple(clause + other for clause in clauses for other in part)
    if len(clauses) * len(common) > _MAX_ELEMENTS:
        raise PropertyError(
            f"{len(clauses)} cases share {len(common)} conditions, which is too many.",
            "split the property into several files",
        )
    return tuple(common + clause for clause in clauses)


def comparison(sign: str, left: Linear, right: Linear) -> Formula:
    """`left sign right` for one of <=, >=, <, >, =, == and !=."""
    difference, flipped = left.plus([right], -1), right.plus([left], -1)
    if sign == "!=":
        return ((Atom(difference, strict=True),), (Atom(flipped, strict=True),))
    if sign in ("=", "=="):
        return ((Atom(difference), Atom(flipped)),)
    return ((Atom(difference if sign[0] == "<" else flipped, strict=len(sign) == 1),),)


def product(parts: Sequence[Linear]) -> Linear:
    """The product of terms of which at most one is not constant; else raises PropertyError."""
    total = parts[0]
    for part in parts[1:]:
        if total.terms and part.terms:
            raise PropertyError(
                "a term multiplies two variables.", "only linear properties can be decided"
            )
        constant, other = (part, total) if total.terms else (total, part)
        total = other.times(constant.constant)
    return total


def make_cases(formula: Formula, input_size: int, output_size: int) -> list[Case]:
    """The unsafe set of a formula; clauses that no input can satisfy are left out.

    Raises PropertyError where an input has no lower or upper bound, or where a coefficient has
    too many digits for float64.
    """
    if len(formula) * input_size > _MAX_ELEMENTS:
        raise PropertyError(
            f"{len(formula)} cases over {input_size} inputs are too many.",
            "split the property into several files",
        )
    found = (_case(clause, input_size, output_size) for clause in formula)
    return [case for case in found if case is not None]


def _limited(clauses: Formula, count: int = 0) -> Formula:
    if max(count, len(clauses)) > _MAX_CASES:
        raise PropertyError(
            f"the property has {max(count, len(clauses))} cases after its ORs are multiplied out; "
            f"{_MAX_CASES} are allowed.",
            "split it into several files",
        )
    return clauses


def _case(clause: tuple[Atom, ...], input_size: int, output_size: int) -> Case | None:
    lower: list[Fraction | None] = [None] * input_size
    upper: list[Fraction | None] = [None] * input_size
    rows: list[Atom] = []
    for atom in clause:
        terms = atom.term.terms
        if not terms:
            if atom.term.constant > 0 or (atom.strict and atom.term.constant == 0):
                return None
            continue
        (kind, index), coefficient = next(iter(terms.items()))
        if len(terms) > 1 or kind == "Y":
            rows.append(atom)
            continue
        limit = -atom.term.constant / coefficient
        if coefficient > 0:
            held = upper[index]
            upper[index] = limit if held is None else min(held, limit)
        else:
            held = lower[index]
            lower[index] = limit if held is None else max(held, limit)
        if atom.strict:
            rows.append(atom)
    return _rounded(lower, upper, rows, output_size)


def _rounded(
    lower: list[Fraction | None], upper: list[Fraction | None], rows: list[Atom], output_size: int
) -> Case | None:
    below, above = np.empty(len(lower)), np.empty(len(upper))
    for index, (low, high) in enumerate(zip(lower, upper, strict=True)):
        if low is None or high is None:
            side = "lower" if low is None else "upper"
            raise PropertyError(
                f"X_{index} has no {side} bound in one of the cases.", "bound every input"
            )
        if low > high:
            return None
        below[index], above[index] = -_ceil(-low), _ceil(high)
    output_rows = np.zeros((len(rows), output_size))
    input_rows = np.zeros((len(rows), len(lower)))
    offset = np.empty(len(rows))
    for index, atom in enumerate(rows):
        scale = _exact_scale(list(atom.term.terms.values()))
        for (kind, column), coefficient in atom.term.terms.items():
            (output_rows if kind == "Y" else input_rows)[index, column] = float(coefficient * scale)
        offset[index] = _ceil(-atom.term.constant * scale)
    strict = tuple(index for index, atom in enumerate(rows) if atom.strict)
    inputs = input_rows if input_rows.any() else None
    return Case(below, above, output_rows, offset, inputs, strict)


def _exact_scale(coefficients: list[Fraction]) -> Fraction:
    """A positive factor that makes every coefficient a float64, the largest one in (0.5, 1]."""
    scale = Fraction(math.lcm(*(value.denominator for value in coefficients)))
    integers = [value.numerator * (scale.numerator // value.denominator) for value in coefficients]
    common = math.gcd(*integers)
    largest = max(abs(value) for value in integers) // common
    if largest.bit_length() > 53:
        raise PropertyError(
            "the coefficients of a condition have no common scale in float64.",
            "write them with fewer digits",
        )
    return scale / common / (1 << (largest - 1).bit_length())


def _ceil(value: Fraction) -> float:
    """The smallest float64 that is not below the value."""
    try:
        found = float(value)
    except OverflowError:
        raise PropertyError("a number is too large for float64.", "use smaller numbers") from None
    return found if Fraction(found) >= value else float(np.nextafter(found, np.inf))
