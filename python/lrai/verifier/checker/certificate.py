"""The checker's own reading of certificates; the format is told in `lrai.verifier.certificate`.

The file is taken to be hostile: sizes are bounded before anything is unpacked, all arrays are
plain numbers of a known kind, and every index and value is looked at.
"""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.checker.graph import Array, RefusedError

_FORMAT: Final = "lrai-certificate-1"
_MAX_BYTES: Final = 1 << 29
_MAX_TREES: Final = 100_000
_DIGEST_BYTES: Final = 64
_ARRAYS: Final = {
    **dict.fromkeys(("lower", "upper", "rows", "offset", "at", "weights"), "<f8"),
    **dict.fromkeys(("claim", "axis", "choice", "slope"), "<i4"),
    **dict.fromkeys(("exact", "slopes", "refined"), "u1"),
    "betas": "<f4",
}


@dataclass(frozen=True)
class Tree:
    """One tree of a certificate, with arrays as the format tells."""

    lower: Array
    upper: Array
    rows: Array
    offset: Array
    claim: NDArray[np.int32]
    axis: NDArray[np.int32]
    at: Array
    exact: NDArray[np.uint8]
    choice: NDArray[np.int32]
    weights: Array
    slope: NDArray[np.int32]
    slopes: NDArray[np.uint8]
    betas: NDArray[np.float32]
    refined: NDArray[np.uint8]


class Archive:
    """An opened certificate: its header, and its trees one at a time."""

    def __init__(self, content: bytes) -> None:
        """Open the bytes of a file; RefusedError where they are no certificate."""
        body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise RefusedError("the file is no certificate, or it was damaged")
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
            entries = self._archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise RefusedError(f"the file is no certificate: {error}") from error
        self._left = _MAX_BYTES
        self._names = {entry.filename for entry in entries}
        header = self._read_header()
        self.arithmetic: str = header["arithmetic"]
        self.models: list[str] = header["models"]
        self.property: str = header["property"]
        self.trees: int = header["trees"]
        wanted = {f"{tree}/{name}" for tree in range(self.trees) for name in _ARRAYS}
        if len(entries) != len(self._names) or self._names != wanted | {"header.json"}:
            raise RefusedError("the certificate has other parts than its header tells")

    def _read_header(self) -> dict[str, Any]:
        try:
            header = json.loads(self._read("header.json"))
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"the certificate's header is no JSON: {error}") from error
        kinds = {"format": str, "arithmetic": str, "models": list, "property": str, "trees": int}
        if not isinstance(header, dict) or any(
            type(header.get(name)) is not kind for name, kind in kinds.items()
        ):
            raise RefusedError("the certificate's header lacks something")
        if header["format"] != _FORMAT or header["arithmetic"] not in ("real", "float32"):
            raise RefusedError("the certificate has a format or an arithmetic that is not known")
        if not 0 <= header["trees"] <= _MAX_TREES:
            raise RefusedError(f"the certificate has more than {_MAX_TREES} trees")
        return header

    def _read(self, name: str) -> bytes:
        try:
            with self._archive.open(name) as file:
                found = file.read(self._left + 1)
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
            raise RefusedError(f"{name} of the certificate cannot be read: {error}") from error
        except (OSError, RuntimeError, ValueError) as error:
            raise RefusedError(f"{name} of the certificate cannot be read: {error}") from error
        self._left -= len(found)
        if self._left < 0:
            raise RefusedError(f"the certificate unpacks to more than {_MAX_BYTES} bytes")
        return found

    def tree(self, index: int, inputs: int, outputs: int, hidden: int) -> Tree:
        """Read and look through one tree for a network of these sizes."""
        found: dict[str, Any] = {}
        for name, kind in _ARRAYS.items():
            content = self._read(f"{index}/{name}")
            if len(content) % np.dtype(kind).itemsize:
                raise RefusedError(f"{name} of tree {index} has a length that cannot be")
            found[name] = np.frombuffer(content, kind)
        count, leaves = len(found["offset"]), int((found["axis"] == -1).sum())
        claims = int(found["claim"].max(initial=-1)) + 1
        shapes = {
            "lower": (inputs,), "upper": (inputs,), "rows": (count, outputs + inputs),
            "claim": (count,), "at": found["axis"].shape, "exact": (leaves,),
            "choice": (leaves, claims), "weights": (-1, count), "slope": (leaves, claims),
            "slopes": (-1, hidden) if hidden else (0, 0),
        }  # fmt: skip
        if found["refined"].size:
            shapes["refined"] = (2 * hidden, hidden)
        try:
            for name, shape in shapes.items():
                found[name] = found[name].reshape(shape)
        except ValueError as error:
            raise RefusedError(f"an array of tree {index} has a wrong length") from error
        tree = Tree(**found)
        _look_through(tree, index, claims)
        return tree


def _look_through(tree: Tree, index: int, claims: int) -> None:
    reals = (tree.lower, tree.upper, tree.rows, tree.offset, tree.at, tree.weights, tree.betas)
    is_right = (
        all(np.isfinite(part).all() for part in reals)
        and claims > 0
        and (tree.lower <= tree.upper).all()
        and np.array_equal(np.unique(tree.claim), np.arange(claims))
        and (tree.weights >= 0).all()
        and (tree.betas >= 0).all()
        and (tree.exact <= 1).all()
        and _is_within(tree.choice, 0, len(tree.weights))
        and _is_within(tree.slope, -1, len(tree.slopes))
    )
    if not is_right:
        raise RefusedError(f"tree {index} has a number that is not allowed")


def _is_within(indices: NDArray[np.int32], low: int, high: int) -> bool:
    return bool((indices >= low).all() and (indices < high).all())
