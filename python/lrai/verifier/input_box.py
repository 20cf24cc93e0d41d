"""The box of inputs that a comparison or a guard is about, and the files that name one."""

import csv
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lrai.errors import PropertyError

Array = NDArray[np.float64]

_NUMBER: Final = re.compile(r"[+-]?(\d{1,60}\.?\d{0,400}|\.\d{1,400})([eE][+-]?\d{1,3})?")
_MOST: Final = 2**127
_HINT: Final = "give .vnnlib, a .csv with columns lower and upper, or a .toml with lower and upper"


@dataclass(frozen=True)
class InputBox:
    """All x with lower <= x <= upper, flat and row-major as the network's inputs."""

    lower: Array
    """`(n_in,)`, never above what the file says."""
    upper: Array
    """`(n_in,)`, never below what the file says."""


def read_box(path: Path, input_size: int, output_size: int) -> InputBox:
    """Read a region's file; raises PropertyError.

    `.vnnlib` and `.vnnlib.gz`: the box of the inputs, conditions on outputs are ignored.
    `.csv`: a header with `lower` and `upper`, then a line per element.
    `.toml`: `lower` and `upper`, or `centre` and `radius` (of an L-infinity ball) with optional
    `least` and `greatest` that the ball is cut to; a number stands for as many equal ones.
    """
    kinds = [suffix.lower() for suffix in path.suffixes]
    if ".vnnlib" in kinds:
        return _from_vnnlib(path, input_size, output_size)
    if kinds[-1:] == [".csv"]:
        rows = _csv_rows(path)
        lower, upper = ([row.get(name, "") for row in rows] for name in ("lower", "upper"))
        return _make(path, _exact(path, lower), _exact(path, upper), input_size)
    if kinds[-1:] == [".toml"]:
        return _from_toml(path, input_size)
    raise PropertyError(f"{path} is no region", _HINT)


def ball(centre: Array, radius: float, least: float, greatest: float) -> InputBox:
    """All x within `radius` of the centre `(n_in,)` in every element, and in [least, greatest]."""
    down, up = np.nextafter(centre - radius, -np.inf), np.nextafter(centre + radius, np.inf)
    return InputBox(np.clip(down, least, greatest), np.clip(up, least, greatest))


def _from_vnnlib(path: Path, input_size: int, output_size: int) -> InputBox:
    from lrai.verifier.vnnlib import read_vnnlib

    cases = read_vnnlib(path, input_size, output_size).cases
    boxes = {(case.lower.tobytes(), case.upper.tobytes()) for case in cases}
    if len(boxes) != 1:
        raise PropertyError(
            f"{path} describes {len(boxes)} boxes of inputs", "compare over one box at a time"
        )
    return InputBox(cases[0].lower, cases[0].upper)


def _from_toml(path: Path, input_size: int) -> InputBox:
    try:
        table = tomllib.loads(_read(path), parse_float=str)
    except tomllib.TOMLDecodeError as error:
        raise PropertyError(f"{path} is no TOML: {error}", _HINT) from error
    return box_of_table(path, table, input_size)


def box_of_table(path: Path, table: dict[str, Any], input_size: int) -> InputBox:
    """The box that a TOML table with numbers as text states; see read_box."""
    if {"lower", "upper"} == table.keys():
        low, high = (_spread(path, table[name], input_size) for name in ("lower", "upper"))
        return _make(path, low, high, input_size)
    if not {"centre", "radius"} <= table.keys() <= {"centre", "radius", "least", "greatest"}:
        raise PropertyError(f"{path} has the keys {', '.join(sorted(table)) or '(none)'}", _HINT)
    centre = _spread(path, table["centre"], input_size)
    (radius,) = _spread(path, table["radius"], 1)
    lower, upper = [value - radius for value in centre], [value + radius for value in centre]
    if "least" in table:
        least = _spread(path, table["least"], input_size)
        lower = [max(pair) for pair in zip(lower, least, strict=True)]
    if "greatest" in table:
        greatest = _spread(path, table["greatest"], input_size)
        upper = [min(pair) for pair in zip(upper, greatest, strict=True)]
    return _make(path, lower, upper, input_size)


def _spread(path: Path, value: Any, count: int) -> list[Fraction]:
    values = _exact(path, value if isinstance(value, list) else [value])
    return values * count if len(values) == 1 and not isinstance(value, list) else values


def _exact(path: Path, values: Sequence[Any]) -> list[Fraction]:
    """The numbers as they are written; a limit on exponents keeps the fractions small."""
    found = []
    for value in values:
        if not _NUMBER.fullmatch(str(value).strip()) or abs(number := Fraction(str(value))) > _MOST:
            raise PropertyError(f"{path} holds {value!r}, which is no float32 number", _HINT)
        found.append(number)
    return found


def _make(
    path: Path, lower: Sequence[Fraction], upper: Sequence[Fraction], input_size: int
) -> InputBox:
    if not len(lower) == len(upper) == input_size:
        raise PropertyError(
            f"{path} has {len(lower)} lower and {len(upper)} upper values",
            f"the model takes {input_size} elements",
        )
    for index, (low, high) in enumerate(zip(lower, upper, strict=True)):
        if low > high:
            raise PropertyError(
                f"{path}: element {index} has lower {float(low):g} above upper {float(high):g}",
                "swap the two",
            )
    down = np.array([_outward(value, -1) for value in lower])
    return InputBox(down, np.array([_outward(value, 1) for value in upper]))


def _outward(value: Fraction, sign: int) -> float:
    """The nearest double that is not inside."""
    near = float(value)
    return (
        near if sign * (Fraction(near) - value) >= 0 else float(np.nextafter(near, sign * np.inf))
    )


def _csv_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_read(path).splitlines(), skipinitialspace=True))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PropertyError(f"{path} cannot be read: {error}", _HINT) from error
