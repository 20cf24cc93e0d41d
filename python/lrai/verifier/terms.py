"""Properties in one line of Python or TOML instead of SMT-LIB; each becomes a VNN-LIB text."""

import tomllib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np

from lrai.errors import PropertyError
from lrai.verifier.input_box import InputBox, box_of_table
from lrai.verifier.network import Network
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.property import Property
from lrai.verifier.replay import Part
from lrai.verifier.vnnlib import parse_vnnlib, read_text
from lrai.verifier.vnnlib2 import parse_vnnlib2

_BOX_KEYS: Final = {"lower", "upper", "centre", "radius", "least", "greatest"}
_HINT: Final = (
    "write holds = {class = 3}, holds = {output = 0, least = -1, greatest = 2} or "
    "holds = {rising_in = 1, output = 0, tolerance = 1e-4}, and the box as lower and upper"
)


def read_toml(path: Path, models: Sequence[Path]) -> tuple[Network, Property, tuple[Part, ...]]:
    """Read a file with a box, as in `input_box`, and one table `holds`; raises PropertyError.

    `holds = {class = c}`: output c is the largest one everywhere in the box.
    `holds = {output = i, least = a, greatest = b}`: a <= output i <= b; one end may be left out.
    `holds = {rising_in = j, output = i, tolerance = t}` or `falling_in`: see `is_monotone`.
    """
    try:
        table = tomllib.loads(read_text(path), parse_float=str)
    except tomllib.TOMLDecodeError as error:
        raise PropertyError(f"{path} is no TOML: {error}.", _HINT) from error
    if len(models) != 1:
        raise PropertyError(f"{path} is about one model, {len(models)} are given.", "give one")
    holds, network = table.pop("holds", None), read_onnx(models[0])
    if not isinstance(holds, dict) or not table.keys() <= _BOX_KEYS:
        raise PropertyError(f"{path} has the keys {', '.join(sorted(table))}.", _HINT)
    box = box_of_table(path, table, network.input_size)
    try:
        text = _text(holds, box, network)
        if "vnnlib-version" in text:
            return parse_vnnlib2(text, [models[0]])
        found = parse_vnnlib(text, network.input_size, network.output_size)
    except (PropertyError, ValueError) as error:
        raise PropertyError(f"{path}: {error}", _HINT) from error
    return network, found, (Part(models[0]),)


def has_class(box: InputBox, label: int, classes: int) -> str:
    """Output `label` of `classes` is larger than all others in the box (robustness of a class)."""
    others = [other for other in range(classes) if other != label]
    unsafe = [f"(>= Y_{other} Y_{label})" for other in others]
    return _declare(box, max(classes, label + 1)) + f"(assert (or {' '.join(unsafe)}))\n"


def is_between(box: InputBox, output: int, least: str | float, greatest: str | float) -> str:
    """`least <= Y_output <= greatest` in the box; an infinite end is no condition."""
    low, high = float(least), float(greatest)
    if not low <= high or (low == -np.inf and high == np.inf):
        raise PropertyError(f"{least} and {greatest} are no range for an output.", _HINT)
    ends = (("<", least), (">", greatest))
    unsafe = [
        f"({sign} Y_{output} {_decimal(end)})" for sign, end in ends if np.isfinite(float(end))
    ]
    return _declare(box, output + 1) + f"(assert (or {' '.join(unsafe)}))\n"


def is_monotone(
    box: InputBox, network: Network, places: tuple[int, int], tolerance: str | float
) -> str:
    """Output `places[1]` falls by at most `tolerance` where only input `places[0]` grows.

    For "grows by at most" negate the input: places[0] = -1 - input. The tolerance must be positive,
    because two equal inputs give equal outputs, and two float32 answers differ by their rounding.
    """
    place, output = places
    if float(tolerance) <= 0:
        raise PropertyError(f"the tolerance {tolerance} is not positive.", "allow some, as 1e-4")
    moved = place if place >= 0 else -1 - place
    first, second = _elements(network, "X", "Y"), _elements(network, "V", "W")
    if not (moved < len(first[0]) and 0 <= output < len(first[1])):
        raise PropertyError(f"there is no input {moved} or no output {output}.", _HINT)
    lines = ["(vnnlib-version <2.0>)", _network(network, "f", "X", "Y")]
    lines.append(_network(network, "g", "V", "W").replace(" g ", " g (equal-to f) ", 1))
    for index, (x, v) in enumerate(zip(first[0], second[0], strict=True)):
        low, high = _decimal(box.lower[index]), _decimal(box.upper[index])
        names = (x, v) if index == moved else (x,)
        lines += [f"(assert (and (>= {name} {low}) (<= {name} {high})))" for name in names]
        lines.append(f"(assert ({'<=' if index == moved else '=='} {x} {v}))")
    before, after = first[1][output], second[1][output]
    if place < 0:
        before, after = after, before
    return "\n".join([*lines, f"(assert (>= (- {before} {after}) {_decimal(tolerance)}))\n"])


def is_close(box: InputBox, f: Network, g: Network, limit: str | float) -> str:
    """|f(x) - g(x)| < limit for every output, in the box; two models in VNN-LIB 2.0."""
    lines = ["(vnnlib-version <2.0>)", _network(f, "f", "X", "Y"), _network(g, "g", "V", "W")]
    first, second = _elements(f, "X", "Y"), _elements(g, "V", "W")
    for index, (x, v) in enumerate(zip(first[0], second[0], strict=True)):
        low, high = _decimal(box.lower[index]), _decimal(box.upper[index])
        lines.append(f"(assert (and (>= {x} {low}) (<= {x} {high}) (== {x} {v})))")
    apart = [
        f"(>= (- {left} {right}) {_decimal(limit)})"
        for y, w in zip(first[1], second[1], strict=True)
        for left, right in ((y, w), (w, y))
    ]
    return "\n".join([*lines, f"(assert (or {' '.join(apart)}))\n"])


def _text(holds: dict[str, Any], box: InputBox, network: Network) -> str:
    match holds:
        case {"class": int(label)} if len(holds) == 1:
            return has_class(box, label, network.output_size)
        case {"output": int(output)} if holds.keys() <= {"output", "least", "greatest"}:
            return is_between(box, output, holds.get("least", "-inf"), holds.get("greatest", "inf"))
        case {"rising_in": int(place), "output": int(output), "tolerance": tolerance}:
            return is_monotone(box, network, (place, output), tolerance)
        case {"falling_in": int(place), "output": int(output), "tolerance": tolerance}:
            return is_monotone(box, network, (-1 - place, output), tolerance)
    raise PropertyError(f"holds = {holds} is none of the known claims.", _HINT)


def _declare(box: InputBox, outputs: int) -> str:
    lines = [f"(declare-const X_{index} Real)" for index in range(len(box.lower))]
    lines += [f"(declare-const Y_{index} Real)" for index in range(outputs)]
    for index, (low, high) in enumerate(zip(box.lower, box.upper, strict=True)):
        lines.append(f"(assert (>= X_{index} {_decimal(low)}))")
        lines.append(f"(assert (<= X_{index} {_decimal(high)}))")
    return "\n".join([*lines, ""])


def _network(network: Network, name: str, inputs: str, outputs: str) -> str:
    parts = [
        f"(declare-{kind} {letter}{place} float32 [{size}])"
        for kind, letter, nodes in (
            ("input", inputs, network.inputs),
            ("output", outputs, network.outputs),
        )
        for place, size in enumerate(network.sizes(nodes))
    ]
    return f"(declare-network {name} {' '.join(parts)})"


def _elements(network: Network, inputs: str, outputs: str) -> tuple[list[str], list[str]]:
    """The name of each element of the flat inputs and outputs in `_network`."""
    first, second = (
        [
            f"{letter}{place}[{index}]"
            for place, size in enumerate(network.sizes(nodes))
            for index in range(size)
        ]
        for letter, nodes in ((inputs, network.inputs), (outputs, network.outputs))
    )
    return first, second


def _decimal(value: str | float) -> str:
    """The number as a decimal with a point: every float64 exactly, a text as it stands."""
    digits = format(Decimal(value), "f")
    return digits if "." in digits else f"{digits}.0"
