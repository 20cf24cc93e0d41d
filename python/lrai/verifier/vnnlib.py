"""Reads properties in VNN-LIB 1.0: SMT-LIB assertions over X_i (inputs) and Y_j (outputs)."""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

from lrai.errors import PropertyError
from lrai.verifier.formula import (
    Formula,
    Linear,
    comparison,
    conjunction,
    disjunction,
    make_cases,
    product,
)
from lrai.verifier.property import Property

_MAX_BYTES: Final = 64 << 20
_MAX_DEPTH: Final = 200
_TOKEN: Final = re.compile(r";[^\n]*|[()]|[^\s();]+")
NUMBER: Final = re.compile(r"[+-]?(\d{1,60}\.?\d{0,400}|\.\d{1,400})([eE][+-]?\d{1,3})?")
_VARIABLE: Final = re.compile(r"([XY])_(\d{1,9})")

Expression = str | list["Expression"]


def read_vnnlib(path: str | Path, input_size: int, output_size: int) -> Property:
    """Read a file (`.gz` too) for a network of that many inputs and outputs, flattened row-major.

    Numbers become exact fractions; boxes and offsets are rounded outward. Raises PropertyError.
    """
    text = read_text(path)
    try:
        return parse_vnnlib(text, input_size, output_size)
    except PropertyError as error:
        raise PropertyError(f"{path}: {error.message}", error.hint) from None


def read_text(path: str | Path) -> str:
    """The text of a property file, decompressed where it is gzip; raises PropertyError."""
    try:
        with Path(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise PropertyError(
                f"{path} holds more than {_MAX_BYTES >> 20} MiB of text.", "split the property"
            )
        return data.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PropertyError(
            f"cannot read the property {path}: {error}.", "give a VNN-LIB file, plain or .gz"
        ) from None


def parse_vnnlib(text: str, input_size: int, output_size: int) -> Property:
    """Read a property from its text; see read_vnnlib."""
    reader = _Reader(input_size, output_size)
    formulas = [found for command in expressions(text) for found in reader.read(command)]
    if not formulas:
        raise PropertyError("the property asserts nothing.", "add (assert ...) commands")
    cases = make_cases(conjunction(formulas), input_size, output_size)
    return Property(tuple(cases), hashlib.sha256(text.encode()).hexdigest(), text)


def expressions(text: str) -> Iterator[list[Expression]]:
    """Commands of an SMT-LIB text as nested lists; raises PropertyError where it nests badly."""
    stack: list[list[Expression]] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token.startswith(";"):
            continue
        if token == "(":
            stack.append([])
            if len(stack) > _MAX_DEPTH:
                raise PropertyError(
                    f"parentheses are nested more than {_MAX_DEPTH} deep.", "flatten the formula"
                )
        elif not stack:
            raise PropertyError(
                f"{token!r} stands outside of any command.", "check the parentheses"
            )
        elif token == ")":
            done = stack.pop()
            if not stack:
                yield done
            else:
                stack[-1].append(done)
        else:
            stack[-1].append(token)
    if stack:
        raise PropertyError("the file ends inside a command.", "check the parentheses")


class _Reader:
    def __init__(self, input_size: int, output_size: int) -> None:
        self._sizes = {"X": input_size, "Y": output_size}
        self._declared: set[str] = set()

    def read(self, command: list[Expression]) -> Iterator[Formula]:
        """Note a declaration, or yield what a command asserts."""
        match command:
            case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), [], "Real"]:
                self._index(name)
                self._declared.add(name)
            case ["assert", formula]:
                yield self._formula(formula)
            case [("set-logic" | "set-info" | "check-sat" | "get-model" | "exit"), *_]:
                pass
            case _:
                raise PropertyError(
                    f"cannot read the command {_show(command)}.",
                    "VNN-LIB 1.0 has declare-const NAME Real, and assert",
                )

    def _formula(self, expression: Expression) -> Formula:
        match expression:
            case ["and", *parts]:
                return conjunction([self._formula(part) for part in parts])
            case ["or", *parts]:
                return disjunction([self._formula(part) for part in parts])
            case [("<=" | ">=" | "<" | ">" | "=") as sign, left, right]:
                return comparison(str(sign), self._linear(left), self._linear(right))
        raise PropertyError(
            f"cannot read the formula {_show(expression)}.",
            "use and, or, <=, >=, <, > or = between linear terms",
        )

    def _linear(self, expression: Expression) -> Linear:
        match expression:
            case str():
                return self._leaf(expression)
            case ["+", *parts] if parts:
                return self._linear(parts[0]).plus([self._linear(part) for part in parts[1:]])
            case ["-", part]:
                return self._linear(part).times(Fraction(-1))
            case ["-", *parts] if parts:
                return self._linear(parts[0]).plus([self._linear(part) for part in parts[1:]], -1)
            case ["*", *parts] if parts:
                return product([self._linear(part) for part in parts])
        raise PropertyError(
            f"cannot read the term {_show(expression)}.", "use numbers, X_i, Y_j, +, - and *"
        )

    def _leaf(self, token: str) -> Linear:
        if NUMBER.fullmatch(token):
            return Linear({}, Fraction(token))
        index = self._index(token)
        if token not in self._declared:
            raise PropertyError(f"{token} is used before it is declared.", "add declare-const")
        return Linear({index: Fraction(1)}, Fraction(0))

    def _index(self, name: str) -> tuple[str, int]:
        match = _VARIABLE.fullmatch(name)
        if match is None:
            raise PropertyError(
                f"{name[:80]!r} is neither a number nor a variable.", "use X_i and Y_j"
            )
        kind, index = match.group(1), int(match.group(2))
        if index >= self._sizes[kind]:
            what = "inputs" if kind == "X" else "outputs"
            raise PropertyError(
                f"{name} does not exist: the model has {self._sizes[kind]} {what}.",
                "check that the property belongs to this model",
            )
        return kind, index


def _show(expression: Expression) -> str:
    parts: list[Expression] = [expression]
    shown = ""
    while parts and len(shown) < 80:
        part = parts.pop()
        if isinstance(part, str):
            shown += part if part == ")" else f" {part}"
        else:
            shown += " ("
            parts += [")", *reversed(part)]
    return repr(shown.strip()[:80])
