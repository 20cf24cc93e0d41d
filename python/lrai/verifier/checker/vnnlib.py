"""The checker's own reading of VNN-LIB 1.0 and 2.0: text in, the same assertions in SMT-LIB out.

One grammar serves both: `X_3` is an element of all inputs, and `X[0,3]` of a declared tensor
becomes one; inputs and outputs of several networks follow each other.
"""

import gzip
import io
import math
import re
from ast import literal_eval
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.exact import linear, number, satisfiable
from lrai.verifier.checker.graph import RefusedError, Slots

_MAX_BYTES: Final = 1 << 26
_MAX_ELEMENTS: Final = 1 << 22
_EFFORT: Final = 100
"""Steps that Z3 may take, in those for a leaf: thousands of cases in boxes of their own."""
_WORDS: Final = re.compile(r";[^\n]*|[()]|[^\s();\[\]]*\[[^\]]*\]|[^\s();]+")
_NUMBER: Final = re.compile(r"[-+]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})([eE][-+]?\d{1,3})?")
_SIGNS: Final = {"==": "=", "!=": "distinct"}
_SILENT: Final = {
    *("check-sat", "declare-const", "declare-fun", "get-model", "set-info", "set-logic"),
    "vnnlib-version",
}
"""Commands without a meaning here: all variables are reals."""


def unpack(content: bytes) -> bytes:
    """The text, unpacked where it is gzip; RefusedError beyond a limit."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise RefusedError("the property is too long")
    return content


class Query:
    """A property: what it calls unsafe, and the networks that it is about."""

    def __init__(self, text: str) -> None:
        """Read it; RefusedError, or whatever reading causes, where the checker does not know it."""
        self._elements = dict[str, str]()
        self._counts, models = {"X": 0, "Y": 0}, dict[str, int]()
        self._assertions = list[str]()
        for head, *parts in _parse(text):
            if head == "assert":
                (formula,) = parts
                self._assertions.append(self._translated(formula))
            elif head == "declare-network":
                self._declare(models, *parts)
            elif head == "exit":
                break
            elif head not in _SILENT:
                raise RefusedError(f"the checker does not know {head!r} in a property")
        self.models = list(models.values()) or [0]
        """The model of each network."""

    def left_out(self, shared: Slots, outputs: int, trees: Sequence[Any]) -> bool:
        """Whether an unsafe point may be in no tree's claims.

        `shared` numbers the inputs of all networks as the trees do.
        """
        x, y = [f"X_{i}" for i in range(shared.size)], [f"Y_{i}" for i in range(outputs)]
        first = np.unique(shared, return_index=True)[1]
        same = [f"(= {x[i]} {x[first[k]]})" for i, k in enumerate(shared)]
        regions = [_region(tree, [*y, *(x[i] for i in first)]) for tree in trees]
        missed = f"(not (and {' '.join(same)} (or false {' '.join(regions)})))"
        return satisfiable([*x, *y], [*self._assertions, missed], _EFFORT) != "unsat"

    def _declare(self, models: dict[str, int], name: str, *parts: Any) -> None:
        models[name] = len(set(models.values()))
        for kind, first, *rest in parts:
            if kind == "equal-to":
                models[name] = models[first]
            elif kind != "isomorphic-to":
                side, (_, sizes) = {"declare-input": "X", "declare-output": "Y"}[kind], rest
                shape = literal_eval(sizes)
                if not shape or math.prod(shape) > _MAX_ELEMENTS:
                    raise RefusedError("the property has a tensor without dimensions, or too large")
                for place in np.ndindex(*shape):
                    key = f"{first}[{','.join(map(str, place))}]"
                    self._elements[key] = f"{side}_{self._counts[side]}"
                    self._counts[side] += 1

    def _translated(self, term: Any) -> str:
        if isinstance(term, list):
            return f"({' '.join(map(self._translated, term))})"
        if _NUMBER.fullmatch(term):
            return number(Fraction(term))
        if "[" in term:
            return self._elements[term.replace(" ", "")]
        return _SIGNS.get(term, str(term))


def _region(tree: Any, names: list[str]) -> str:
    """The box of a tree, and any of its claims."""
    low, high = (list(map(number, side)) for side in tree["box"])
    ends = [f"(<= {a} {x} {b})" for a, x, b in zip(low, names[-len(low) :], high, strict=True)]
    bounds = zip(tree["rows"], tree["offset"], strict=True)
    conditions = [f"(<= {linear(row, names)} {number(offset)})" for row, offset in bounds]
    claims = [
        f"(and {' '.join(conditions[i] for i in np.flatnonzero(tree['claim'] == claim))})"
        for claim in np.unique(tree["claim"])
    ]
    return f"(and {' '.join(ends)} (or {' '.join(claims)}))"


def _parse(text: str) -> list[Any]:
    """Commands as nested lists of words."""
    if set('|"') & set(text):
        raise RefusedError("the property has quoted words")
    words = (word for word in _WORDS.findall(text) if word[0] != ";")
    found = ({"(": "[", ")": "],"}.get(word, f"{word!r},") for word in words)
    return list(literal_eval(f"[{''.join(found)}]"))
