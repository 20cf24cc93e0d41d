"""The checker's own reading of VNN-LIB 1.0 and 2.0: text in, cases of exact linear conditions out.

One grammar serves both: `X_3` is an element of all inputs, and so is `X[0,3]` of a declared tensor;
the inputs of several networks follow each other. Inputs that are stated to be equal are one.
"""

import gzip
import io
import math
import re
from ast import literal_eval
from fractions import Fraction
from functools import reduce
from itertools import chain, product
from operator import mul
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import RefusedError

_MAX_BYTES: Final = 1 << 26
_MAX_CASES: Final = 100_000
_WORDS: Final = re.compile(r";[^\n]*|[()]|[^\s();\[\]]*\[[^\]]*\]|[^\s();]+")
_FLAT: Final = re.compile(r"([XY])_(\d{1,9})")
_NUMBER: Final = re.compile(r"[-+]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})([eE][-+]?\d{1,3})?")

Linear = dict[int | None, Fraction]
"""Coefficients of X_i at i and of Y_j at -1 - j; that of None is the constant."""
Terms = tuple[tuple[int | None, Any], ...]
"""A sum of which the first term has the coefficient 1 or -1."""
Case = dict[Terms, Fraction]
"""Upper bounds of sums, all together."""
_UNIT: Final = Fraction(1)


def unpack(content: bytes) -> bytes:
    """The text, unpacked where it is gzip; RefusedError beyond a limit."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise RefusedError("the property is too long")
    return content


def condition(linear: Linear) -> tuple[Terms, Fraction]:
    """A sum and its upper bound, for `linear <= 0`."""
    terms = sorted((place, x) for place, x in linear.items() if x and place is not None)
    scale = abs(terms[0][1]) if terms else _UNIT
    # Whole numbers, which most coefficients are, compare much faster than fractions.
    scaled = ((place, value / scale) for place, value in terms)
    key = tuple((place, int(value) if value.denominator == 1 else value) for place, value in scaled)
    return key, -linear.get(None, Fraction(0)) / scale


def case_of(conditions: list[tuple[Terms, Fraction]]) -> Case | None:
    """All conditions together; None where two of them exclude each other."""
    case: Case = {}
    for key, bound in conditions:
        case[key] = min(bound, case.get(key, bound))
        opposite = tuple((place, -value) for place, value in key)
        if opposite in case and case[opposite] + case[key] < 0:
            return None
    return case


class Query:
    """A property: the cases that it calls unsafe, and the networks that it is about."""

    def __init__(self, text: str) -> None:
        """Read it; RefusedError, or whatever reading causes, where the checker does not know it."""
        self._tensors: dict[str, tuple[str, int, list[int]]] = {}
        self._sizes, self._models, formula = {"X": 0, "Y": 0}, dict[str, int](), list[Any](["and"])
        for head, *parts in _parse(text):
            if head == "assert":
                formula += parts
            elif head == "declare-network":
                self._declare(*parts)
            elif head not in ("declare-const", "vnnlib-version"):
                raise RefusedError(f"the checker does not know {head!r} in a property")
        self.models = list(self._models.values()) or [0]
        """The model of each network."""
        self.shared = np.arange(self._sizes["X"])
        """The number here of each input of the networks; empty: as they are."""
        self._share(formula)
        self.shared = np.unique(self.shared, return_inverse=True)[1]
        cases = map(case_of, self._cases(formula))
        self.cases = [case for case in cases if case is not None]

    def _declare(self, name: str, *parts: Any) -> None:
        self._models[name] = len(set(self._models.values()))
        for kind, first, *rest in parts:
            if kind == "equal-to":
                self._models[name] = self._models[first]
            elif kind != "isomorphic-to":
                side = {"declare-input": "X", "declare-output": "Y"}[kind]
                sizes = [int(size) for size in rest[1].strip("[]").split(",")]
                self._tensors[first] = (side, self._sizes[side], sizes)
                self._sizes[side] += math.prod(sizes)

    def _share(self, formula: list[Any]) -> None:
        """Give one number to inputs that are equal in every case."""
        kind, *parts = formula
        if kind == "and":
            for part in parts:
                self._share(part)
        elif kind == "==" and all(isinstance(part, str) and "[" in part for part in parts):
            low, high = sorted(map(self._place, parts))
            if low >= 0:
                self.shared[self.shared == high] = low

    def _place(self, name: str) -> int:
        flat = None if self._tensors else _FLAT.fullmatch(name)
        if flat:
            return int(flat[2]) if flat[1] == "X" else -1 - int(flat[2])
        tensor, _, places = name.partition("[")
        side, first, sizes = self._tensors[tensor]
        index = [int(place) for place in places.rstrip("]").split(",")]
        element = first + int(np.ravel_multi_index(index, sizes))
        return int(self.shared[element]) if side == "X" else -1 - element

    def _cases(self, formula: list[Any]) -> list[list[tuple[Terms, Fraction]]]:
        """The formula's disjunctive normal form."""
        kind, *parts = formula
        if kind == "or":
            return list(chain.from_iterable(map(self._cases, parts)))
        if kind == "and":
            cases = [self._cases(part) for part in parts]
            if math.prod(map(len, cases)) > _MAX_CASES:
                raise RefusedError(f"the property has more than {_MAX_CASES} cases")
            return [list(chain.from_iterable(choice)) for choice in product(*cases)]
        left, right = map(self._linear, parts)
        below, above = (condition(_plus(x, y, -_UNIT)) for x, y in ((left, right), (right, left)))
        known = {"<": [[below]], ">": [[above]], "=": [[below, above]], "!": [[below], [above]]}
        return known[kind if kind in known else kind.removesuffix("=")]

    def _linear(self, term: Any) -> Linear:
        if isinstance(term, str):
            is_number = _NUMBER.fullmatch(term)
            return {None: Fraction(term)} if is_number else {self._place(term): _UNIT}
        parts = [self._linear(part) for part in term[1:]]
        if term[0] == "*":
            numbers = [part.get(None, _UNIT - 1) for part in parts if set(part) <= {None}]
            (rest,) = [part for part in parts if not set(part) <= {None}] or [{None: _UNIT}]
            return _plus({}, rest, reduce(mul, numbers, _UNIT))
        sign = {"+": _UNIT, "-": -_UNIT}[term[0]]
        first = parts.pop(0) if len(parts) > 1 else {}
        return reduce(lambda total, part: _plus(total, part, sign), parts, first)


def _plus(one: Linear, other: Linear, factor: Fraction) -> Linear:
    return one | {place: one.get(place, 0) + factor * other[place] for place in other}


def _parse(text: str) -> list[Any]:
    """Commands as nested lists of words."""
    words = (word for word in _WORDS.findall(text) if word[0] != ";")
    found = ({"(": "[", ")": "],"}.get(word, f"{word!r},") for word in words)
    return list(literal_eval(f"[{''.join(found)}]"))
