"""The region in which a proof about a model holds, as `lrai verify --guard` writes it."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lrai.errors import RepositoryError

FILE_NAME: Final = "guard.json"
_FORMAT: Final = "lrai-guard-1"
_MOST_BYTES: Final = 1 << 28
_HINT: Final = "write it with `lrai verify --guard`"


@dataclass(frozen=True)
class GuardBox:
    """A box of inputs that the proof covers, all inputs of a row one after the other."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]


def guard_places(model: Path) -> list[Path]:
    """Return where the guard of a model file may lie, the first place first."""
    places = [model.with_suffix(".guard.json")]
    if model.parent.name.isdecimal():
        places += [model.parent / FILE_NAME, model.parent.parent / FILE_NAME]
    return places


def read_guard(model: Path) -> tuple[tuple[GuardBox, ...], str]:
    """Return the boxes of the guard of a model file, and a note.

    It is `NAME.guard.json` beside NAME.onnx, or in a repository `guard.json` beside the file or the
    versions. No boxes where there is none, or where it is about another model file; the note says
    so. Raises RepositoryError for a file that is not a guard.
    """
    path = next(filter(Path.is_file, guard_places(model)), None)
    if path is None or not model.is_file():
        return (), ""
    document = _read(path)
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if document.get("model") != digest:
        return (), f"{path.name} is about another file, so answers are not marked hint: {_HINT}"
    try:
        boxes = tuple(
            GuardBox(_numbers(box["lower"]), _numbers(box["upper"])) for box in document["boxes"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RepositoryError(f"{path} is no guard: {error!r}", hint=_HINT) from error
    if not boxes or len({len(side) for box in boxes for side in (box.lower, box.upper)}) != 1:
        raise RepositoryError(f"{path} is no guard: its boxes differ in size", hint=_HINT)
    return boxes, f"answers outside of the proved region are marked: {document.get('claim', '')}"


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RepositoryError(f"{path} is larger than {_MOST_BYTES >> 20} MiB", hint=_HINT)
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}", hint=_HINT) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise RepositoryError(f"{path} has no format {_FORMAT!r}", hint=_HINT)
    return document


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a side of a box is not finite")
    return numbers
