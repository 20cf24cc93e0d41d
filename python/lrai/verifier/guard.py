"""The inputs that a proof covers, as a file with which a server marks answers outside of it.

`guard.json` lies next to the model's `lrai.toml`. It is one JSON object with exactly these keys:

===========  =====================================================================================
format       "lrai-guard-1"
model        SHA-256 of the model file that the proof is about, in hexadecimal; a server enforces
             the guard for that file only
certificate  SHA-256 of the certificate's file, in hexadecimal
claim        a sentence for people: what is proved of the inputs inside
inputs       [{"name": ..., "elements": n_i}, ...], the model's inputs in its order; a row is their
             float32 values, flattened row-major and joined
boxes        [{"lower": [n numbers], "upper": [n numbers]}, ...], n the sum of the n_i
===========  =====================================================================================

A row is covered if in one of the boxes lower <= value <= upper for every element, compared in
float64; a value that is not a number is in no box.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lrai.errors import InvalidInputError, VerifierError
from lrai.verifier.input_box import InputBox
from lrai.verifier.network import Network

FORMAT: Final = "lrai-guard-1"
_KEYS: Final = {"format", "model", "certificate", "claim", "inputs", "boxes"}
_MOST_BYTES: Final = 1 << 28
_HINT: Final = "write it with lrai.verifier.guard"


@dataclass(frozen=True)
class GuardedInput:
    """One input of the model."""

    name: str
    elements: int
    """Values of one row."""


@dataclass(frozen=True)
class Guard:
    """What `guard.json` says."""

    model: str
    certificate: str
    claim: str
    inputs: tuple[GuardedInput, ...]
    boxes: tuple[InputBox, ...]

    def __post_init__(self) -> None:
        """Refuse boxes that do not fit the inputs, with InvalidInputError."""
        size = sum(value.elements for value in self.inputs)
        fits = all(box.lower.shape == box.upper.shape == (size,) for box in self.boxes)
        if not self.boxes or not fits:
            raise InvalidInputError(
                f"a guard of {len(self.boxes)} boxes does not fit a row of {size} elements",
                "give at least one box, and a side for every element",
            )
        if not all((box.lower <= box.upper).all() for box in self.boxes):
            raise InvalidInputError("a box of the guard is empty", "lower <= upper everywhere")

    def covers(self, x: NDArray[np.float32]) -> NDArray[np.bool_]:
        """`(N,)`: which rows of `x` `(N, n)` lie in a box."""
        inside = np.zeros(len(x), dtype=bool)
        values = x.astype(np.float64)
        for box in self.boxes:
            inside |= ((values >= box.lower) & (values <= box.upper)).all(axis=1)
        return inside

    def write(self, path: Path) -> None:
        """Write `guard.json`; OSError from the file system."""
        document = {
            "format": FORMAT,
            "model": self.model,
            "certificate": self.certificate,
            "claim": self.claim,
            "inputs": [asdict(value) for value in self.inputs],
            "boxes": [
                {"lower": box.lower.tolist(), "upper": box.upper.tolist()} for box in self.boxes
            ],
        }
        path.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def make_guard(network: Network, boxes: Sequence[InputBox], certificate: Path, claim: str) -> Guard:
    """The guard of a network that was read from one file, for boxes that a certificate covers."""
    nodes = [network.nodes[index] for index in network.inputs]
    return Guard(
        model=network.digests[-1],
        certificate=hashlib.sha256(certificate.read_bytes()).hexdigest(),
        claim=claim,
        inputs=tuple(GuardedInput(node.name, node.size) for node in nodes),
        boxes=tuple(boxes),
    )


def guard_of_certificate(network: Network, certificate: Path, claim: str) -> Guard:
    """The guard of the root boxes of a certificate that `lrai check` has accepted before.

    Raises VerifierError where the file is none, or is about another model than the network's last
    one (a served variant comes after its original).
    """
    try:
        with zipfile.ZipFile(certificate) as archive:
            header = json.loads(archive.read("header.json"))
            models, trees = list(header["models"]), range(int(header["trees"]))
            sides = (np.frombuffer(archive.read(f"{tree}/box"), "<f8") for tree in trees)
            boxes = [InputBox(*both.reshape(2, -1).astype(np.float64)) for both in sides]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise VerifierError(
            f"{certificate} is no certificate: {error}", "write one with lrai verify --certificate"
        ) from error
    if models[-1:] != [network.digests[-1]]:
        raise VerifierError(
            f"{certificate} is about another model", "give the model that was verified"
        )
    return make_guard(network, boxes, certificate, claim)


def read_guard(path: Path) -> Guard:
    """Read `guard.json`; raises InvalidInputError where it is not as this module describes."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInputError(f"{path} is larger than {_MOST_BYTES >> 20} MiB", _HINT)
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.keys() != _KEYS:
            raise InvalidInputError(f"{path} does not have the keys of a guard", _HINT)
        if document["format"] != FORMAT:
            raise InvalidInputError(f"{path} has the format {document['format']!r}", _HINT)
        return Guard(
            model=str(document["model"]),
            certificate=str(document["certificate"]),
            claim=str(document["claim"]),
            inputs=tuple(
                GuardedInput(str(v["name"]), int(v["elements"])) for v in document["inputs"]
            ),
            boxes=tuple(
                InputBox(_numbers(box["lower"]), _numbers(box["upper"]))
                for box in document["boxes"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{path} is no guard: {error}", _HINT) from error


def _numbers(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
