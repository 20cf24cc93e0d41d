"""The checker's own reading of VNN-LIB: text in, boxes with linear conditions out.

Version 1.0, and 2.0 for inputs and outputs of one or several networks: their elements get the flat
names of 1.0, X_0 and Y_0 onwards, and inputs that must be equal get one name.
"""

import gzip
import io
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import Array, RefusedError

_MAX_BYTES: Final = 1 << 26
_MAX_CASES: Final = 100_000
_MAX_DEPTH: Final = 200
_TOKENS: Final = re.compile(r";[^\n]*|[()]|[^\s();\[\]]*\[[^\]]*\]|[^\s();]+")
_VARIABLE: Final = re.compile(r"[XY]_\d{1,9}")
_NUMBER: Final = re.compile(r"[-+]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})([eE][-+]?\d{1,3})?")

Linear = dict[str, Fraction]
"""Coefficients of variables; that of "" is the constant."""
Cases = list[tuple[Linear, ...]]
"""A disjunction of conjunctions of conditions `linear <= 0`."""


@dataclass(frozen=True)
class Region:
    """Unsafe: x in the box and `rows @ (y, x) <= offset`."""

    lower: Array
    upper: Array
    conditions: dict[tuple[tuple[int, float], ...], float]
    """Offsets, rounded up, by the row's non-zero coefficients and their places in (y, x)."""


def unpack(content: bytes) -> bytes:
    """The text, unpacked where it is gzip; RefusedError beyond a limit."""
    if content[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise RefusedError("the property is too long")
    return content


@dataclass(frozen=True)
class Query:
    """A property before it meets its networks."""

    assertions: list[Any]
    """Formulas over X_i and Y_j, as nested lists."""
    models: list[int]
    """The model of each network."""
    shared: list[int] | None
    """For each input of the networks, one after the other, its number here; None: as they are."""

    def regions(self, inputs: int, outputs: int) -> list[Region]:
        """The unsafe regions, for so many inputs and outputs."""
        cases: Cases = [()]
        for formula in self.assertions:
            cases = _both(cases, _formula(formula))
        found = (_region(case, inputs, outputs) for case in cases)
        return [region for region in found if region is not None]


def read_query(text: str) -> Query:
    """Read a property; RefusedError names what the checker does not know."""
    found: dict[str, list[Any]] = {}
    for command in _parse(text):
        found.setdefault(command[0], []).append(command[1:])
    formulas = [only for (only,) in found.pop("assert", [])]
    networks = found.pop("declare-network", [])
    if set(found) - {"vnnlib-version" if networks else "declare-const"}:
        raise RefusedError(f"the checker does not know {sorted(found)} in a property")
    if not networks:
        return Query(formulas, [0], None)
    tensors, models, counts = _declare(networks)
    parents = list(range(counts["X"]))
    for left, right in _equalities(formulas):
        pair = [_flat(side, tensors) for side in (left, right)]
        if {name[0] for name in pair} == {"X"}:
            low, high = sorted(_root(parents, int(name[2:])) for name in pair)
            parents[high] = low
    shared = np.unique([_root(parents, x) for x in range(len(parents))], return_inverse=True)[1]

    def rename(item: Any) -> Any:
        if isinstance(item, list):
            return [rename(part) for part in item]
        name = _flat(item, tensors)
        return f"X_{shared[int(name[2:])]}" if name != item and name[0] == "X" else name

    return Query([rename(formula) for formula in formulas], models, shared.tolist())


def _declare(
    networks: list[Any],
) -> tuple[dict[str, tuple[str, int, list[int]]], list[int], dict[str, int]]:
    """Kind, first element and shape of every tensor, the model of each network, the elements."""
    tensors: dict[str, tuple[str, int, list[int]]] = {}
    owners: dict[str, int] = {}
    counts, own = {"X": 0, "Y": 0}, 0
    for network, *parts in networks:
        owners[network], own = own, own + 1
        for part in parts:
            if part[0] == "equal-to":
                owners[network], own = owners[part[1]], own - 1
            elif part[0] != "isomorphic-to":
                kind = {"declare-input": "X", "declare-output": "Y"}[part[0]]
                tensor, _, shape = part[1:]
                sizes = [int(size) for size in shape.strip("[]").split(",")]
                tensors[tensor] = (kind, counts[kind], sizes)
                counts[kind] += math.prod(sizes)
    if counts["X"] + counts["Y"] > _MAX_CASES or len(owners) != len(networks):
        raise RefusedError("the property has too many elements, or networks of one name")
    return tensors, list(owners.values()), counts


def _equalities(formulas: list[Any]) -> list[tuple[Any, Any]]:
    """Pairs of names that are equal in every case."""
    found: list[tuple[Any, Any]] = []
    for kind, *parts in formulas:
        if kind == "and":
            found += _equalities(parts)
        elif kind == "==" and all(isinstance(part, str) and "[" in part for part in parts):
            found.append((parts[0], parts[1]))
    return found


def _flat(item: str, tensors: dict[str, tuple[str, int, list[int]]]) -> str:
    """The flat name of an element; what is none stays as it is."""
    name, bracket, places = item.partition("[")
    if _VARIABLE.fullmatch(item):
        raise RefusedError(f"{item} is no element of a tensor")
    if not bracket:
        return item
    kind, first, sizes = tensors[name]
    index = [int(place) for place in places.rstrip("]").split(",")]
    return f"{kind}_{first + int(np.ravel_multi_index(index, sizes))}"


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        index = parents[index]
    return index


def _parse(text: str) -> list[Any]:
    stack: list[list[Any]] = [[]]
    for token in _TOKENS.findall(text):
        if token == "(":
            stack.append([])
        elif token == ")":
            last = stack.pop()
            stack[-1].append(last)
        elif not token.startswith(";"):
            stack[-1].append(token)
        if len(stack) > _MAX_DEPTH:
            raise RefusedError("the property's parentheses are too deep")
    if len(stack) != 1:
        raise RefusedError("the property's parentheses do not match")
    return stack[0]


def _formula(formula: list[Any]) -> Cases:
    kind, *parts = formula
    if kind == "and":
        return reduce(_both, map(_formula, parts), [()])
    if kind == "or":
        return [case for part in parts for case in _formula(part)]
    if kind not in ("<=", "<", ">=", ">", "=", "==") or len(parts) != 2:
        raise RefusedError(f"the checker does not know the condition {str(formula)[:60]}")
    gap = _plus(_linear(parts[0]), _linear(parts[1]), -1)
    back = _plus({}, gap, -1)
    return [{"<": (gap,), ">": (back,), "=": (gap, back)}[kind[0]]]


def _both(some: Cases, others: Cases) -> Cases:
    if len(some) * len(others) > _MAX_CASES:
        raise RefusedError(f"the property has more than {_MAX_CASES} cases")
    return [(*one, *other) for one in some for other in others]


def _linear(term: Any) -> Linear:
    if isinstance(term, str) and _VARIABLE.fullmatch(term):
        return {term: Fraction(1)}
    if isinstance(term, str) and _NUMBER.fullmatch(term):
        return {"": Fraction(term)}
    kind, parts = term[0], [] if isinstance(term, str) else [_linear(part) for part in term[1:]]
    if kind == "-" and len(parts) == 1:
        return _plus({}, parts[0], -1)
    if kind in ("+", "-") and parts:
        return reduce(lambda one, other: _plus(one, other, 1 if kind == "+" else -1), parts)
    numbers = [part for part in parts if set(part) <= {""}]
    if kind == "*" and len(parts) == 2 and numbers:
        other = parts[1] if parts[0] is numbers[0] else parts[0]
        return _plus({}, other, numbers[0].get("", Fraction(0)))
    raise RefusedError(f"the checker does not know the term {str(term)[:60]}")


def _plus(one: Linear, other: Linear, factor: Fraction | int) -> Linear:
    total = dict(one)
    for name, value in other.items():
        total[name] = total.get(name, Fraction(0)) + factor * value
    return total


def _region(case: tuple[Linear, ...], inputs: int, outputs: int) -> Region | None:
    """None where no point fulfils the case: an empty box, or a wrong condition on numbers."""
    region = Region(np.full(inputs, -np.inf), np.full(inputs, np.inf), {})
    for linear in case:
        constant = linear.get("", Fraction(0))
        row = {_place(x, inputs, outputs): value for x, value in linear.items() if x and value}
        if not row and constant > 0:
            return None
        place, value = min(row.items(), default=(0, Fraction(0)))
        axis = place - outputs
        if len(row) == 1 and axis >= 0 and value > 0:
            region.upper[axis] = min(region.upper[axis], _round(-constant / value, np.inf))
        elif len(row) == 1 and axis >= 0:
            region.lower[axis] = max(region.lower[axis], _round(-constant / value, -np.inf))
        elif row:
            key = tuple((place, float(row[place])) for place in sorted(row))
            offset = _round(-constant, np.inf)
            region.conditions[key] = min(offset, region.conditions.get(key, offset))
    return region if (region.lower <= region.upper).all() else None


def _place(name: str, inputs: int, outputs: int) -> int:
    index, count = int(name[2:]), {"X": inputs, "Y": outputs}[name[0]]
    if index >= count:
        raise RefusedError(f"the property speaks of {name}, which the model does not have")
    return index + {"X": outputs, "Y": 0}[name[0]]


def _round(value: Fraction, direction: float) -> float:
    """The nearest float64 in a direction."""
    found = float(value)
    is_right = found >= value if direction > 0 else found <= value
    return found if is_right else float(np.nextafter(found, direction))
