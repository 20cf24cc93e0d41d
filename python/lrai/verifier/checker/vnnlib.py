"""The checker's own reading of VNN-LIB: text in, a union of boxes with linear conditions out.

Version 1.0, and of 2.0 what speaks of inputs and outputs of one or several networks.
"""

import gzip
import io
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import Array, RefusedError

_MAX_BYTES: Final = 1 << 26
_MAX_CASES: Final = 100_000
_MAX_DEPTH: Final = 200
_TOKENS: Final = re.compile(r";[^\n]*|[()]|[^\s();]+")
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
    conditions: frozenset[tuple[tuple[tuple[int, float], ...], float]]
    """Each as its non-zero coefficients by place in (y, x), and its offset, rounded up."""


def unpack(content: bytes) -> bytes:
    """The text, unpacked where it is gzip; RefusedError beyond a limit."""
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(_MAX_BYTES + 1)
        except (OSError, EOFError) as error:
            raise RefusedError(f"the property cannot be unpacked: {error}") from error
    if len(content) > _MAX_BYTES:
        raise RefusedError("the property is too long")
    return content


def read_property(text: str, inputs: int, outputs: int) -> list[Region]:
    """The unsafe regions of a property over so many inputs and outputs."""
    cases: Cases = [()]
    for command in _parse(text):
        match command:
            case ["declare-const", str(name), "Real"] if _VARIABLE.fullmatch(name):
                pass
            case ["assert", formula]:
                cases = _both(cases, _formula(formula))
            case _:
                raise RefusedError(f"the checker does not know {str(command)[:60]} in a property")
    return [one for case in cases if (one := _region(case, inputs, outputs)) is not None]


def _parse(text: str) -> list[Any]:
    stack: list[list[Any]] = [[]]
    for token in _TOKENS.findall(text):
        if token == "(":
            stack.append([])
        elif token == ")" and len(stack) > 1:
            last = stack.pop()
            stack[-1].append(last)
        elif token == ")" or len(stack) > _MAX_DEPTH:
            raise RefusedError("the property's parentheses do not match or are too deep")
        elif not token.startswith(";"):
            stack[-1].append(token)
    if len(stack) != 1:
        raise RefusedError("the property's parentheses do not match")
    return stack[0]


def _formula(formula: Any) -> Cases:
    match formula:
        case ["and", *parts]:
            cases: Cases = [()]
            for part in parts:
                cases = _both(cases, _formula(part))
            return cases
        case ["or", *parts]:
            return [case for part in parts for case in _formula(part)]
        case ["<=" | "<", left, right]:
            return [(_plus(_linear(left), _linear(right), -1),)]
        case [">=" | ">", left, right]:
            return [(_plus(_linear(right), _linear(left), -1),)]
        case ["=" | "==", left, right]:
            gap = _plus(_linear(left), _linear(right), -1)
            return [(gap, _plus({}, gap, -1))]
    raise RefusedError(f"the checker does not know the condition {str(formula)[:60]}")


def _both(some: Cases, others: Cases) -> Cases:
    if len(some) * len(others) > _MAX_CASES:
        raise RefusedError(f"the property has more than {_MAX_CASES} cases")
    return [(*one, *other) for one in some for other in others]


def _linear(term: Any) -> Linear:
    match term:
        case str():
            if _VARIABLE.fullmatch(term):
                return {term: Fraction(1)}
            if not _NUMBER.fullmatch(term):
                raise RefusedError(f"{term[:60]!r} in the property is neither variable nor number")
            return {"": Fraction(term)}
        case ["+", *parts]:
            total: Linear = {}
            for part in parts:
                total = _plus(total, _linear(part), 1)
            return total
        case ["-", only]:
            return _plus({}, _linear(only), -1)
        case ["-", first, *parts]:
            total = _linear(first)
            for part in parts:
                total = _plus(total, _linear(part), -1)
            return total
        case ["*", left, right]:
            one, other = _linear(left), _linear(right)
            if set(one) <= {""} or set(other) <= {""}:
                number, rest = (one, other) if set(one) <= {""} else (other, one)
                return _plus({}, rest, number.get("", Fraction(0)))
    raise RefusedError(f"the checker does not know the term {str(term)[:60]}")


def _plus(one: Linear, other: Linear, factor: Fraction | int) -> Linear:
    total = dict(one)
    for name, value in other.items():
        total[name] = total.get(name, Fraction(0)) + factor * value
    return total


def _region(case: tuple[Linear, ...], inputs: int, outputs: int) -> Region | None:
    """None where no point fulfils the case: an empty box, or a wrong condition on numbers."""
    lower, upper = np.full(inputs, -np.inf), np.full(inputs, np.inf)
    conditions = set()
    for linear in case:
        constant = linear.get("", Fraction(0))
        found = {_place(name, inputs, outputs): value for name, value in linear.items() if name}
        found = {place: value for place, value in found.items() if value}
        if not found and constant > 0:
            return None
        if len(found) == 1 and max(found) >= outputs:
            ((place, value),) = found.items()
            limit, axis = -constant / value, place - outputs
            if value > 0:
                upper[axis] = min(upper[axis], _round(limit, np.inf))
            else:
                lower[axis] = max(lower[axis], _round(limit, -np.inf))
        elif found:
            row = tuple(sorted((place, float(value)) for place, value in found.items()))
            conditions.add((row, _round(-constant, np.inf)))
    return Region(lower, upper, frozenset(conditions)) if (lower <= upper).all() else None


def _place(name: str, inputs: int, outputs: int) -> int:
    kind, index = name.split("_")
    if int(index) >= {"X": inputs, "Y": outputs}[kind]:
        raise RefusedError(f"the property speaks of {name}, which the model does not have")
    return int(index) + {"X": outputs, "Y": 0}[kind]


def _round(value: Fraction, direction: float) -> float:
    """The nearest float64 in a direction."""
    found = float(value)
    is_right = found >= value if direction > 0 else found <= value
    return found if is_right else float(np.nextafter(found, direction))
