"""The checker's own reading of certificates; `lrai.verifier.certificate` tells the format.

The file is taken to be hostile: sizes are bounded before anything is unpacked, arrays are plain
numbers of a known kind, and every index and value is looked at.
"""

import hashlib
import io
import json
import zipfile
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import RefusedError

_FORMAT: Final = "lrai-certificate-1"
_MAX_BYTES: Final = 1 << 29
_MAX_TREES: Final = 100_000
_MAX_NODES: Final = 1 << 24
_MAX_EXACT: Final = 1 << 12
_DIGEST_BYTES: Final = 64
_ARRAYS: Final = {
    **dict.fromkeys(("lower", "upper", "rows", "offset", "at", "weights"), "<f8"),
    **dict.fromkeys(("claim", "axis", "choice", "slope", "neurons", "table"), "<i4"),
    **dict.fromkeys(("exact", "slopes", "refined", "tables"), "u1"),
    "betas": "<f4",
}


class Tree(SimpleNamespace):
    """One tree of a certificate: the arrays of the format by name, of numbers that are allowed."""


class Archive:
    """An opened certificate: `header`, and the trees one at a time.

    Where the file is wrong the error is a RefusedError, or whatever reading it causes.
    """

    def __init__(self, content: bytes) -> None:
        """Open the bytes of a file."""
        if (
            hashlib.sha256(content[:-_DIGEST_BYTES]).hexdigest().encode()
            != content[-_DIGEST_BYTES:]
        ):
            raise RefusedError("the file is no certificate, or it was damaged")
        self._archive, self._left = zipfile.ZipFile(io.BytesIO(content)), _MAX_BYTES
        self.header: dict[str, Any] = json.loads(self._read("header.json"))
        trees, known = self.header["trees"], self.header["arithmetic"] in ("real", "float32")
        if self.header["format"] != _FORMAT or not known or not 0 <= trees <= _MAX_TREES:
            raise RefusedError("the certificate has a format or an arithmetic that is not known")
        names = [f"{tree}/{name}" for tree in range(trees) for name in _ARRAYS]
        if sorted(self._archive.namelist()) != sorted([*names, "header.json"]):
            raise RefusedError("the certificate has other parts than its header tells")

    def _read(self, name: str) -> bytes:
        with self._archive.open(name) as file:
            found = file.read(self._left + 1)
        self._left -= len(found)
        if self._left < 0:
            raise RefusedError(f"the certificate unpacks to more than {_MAX_BYTES} bytes")
        return found

    def tree(self, index: int, inputs: int, outputs: int, hidden: int) -> Tree:
        """Read a tree for a network of these sizes, and look through it."""
        tree = Tree(**{x: np.frombuffer(self._read(f"{index}/{x}"), _ARRAYS[x]) for x in _ARRAYS})
        count, leaves = tree.offset.size, int((tree.axis == -1).sum())
        claims = int(tree.claim.max(initial=-1)) + 1
        shapes = {
            "lower": (inputs,), "upper": (inputs,), "rows": (count, outputs + inputs),
            "claim": (count,), "at": tree.axis.shape, "exact": (leaves,),
            "choice": (leaves, claims), "weights": (-1, count), "slope": (leaves, claims),
            "slopes": (-1, hidden) if hidden else (0, 0),
            "refined": (2 * hidden, hidden) if tree.refined.size else (0,),
            "tables": (-1, 2 * tree.neurons.size, max(tree.neurons.size, 1)),
            "table": (leaves,),
        }  # fmt: skip
        if not tree.tables.size:
            shapes["tables"] = (0,)
        for name, shape in shapes.items():
            setattr(tree, name, getattr(tree, name).reshape(shape))
        reals = (tree.lower, tree.upper, tree.rows, tree.offset, tree.at, tree.weights, tree.betas)
        is_right = (
            all(np.isfinite(part).all() for part in reals)
            and all((part >= 0).all() for part in (tree.weights, tree.betas, tree.choice))
            and claims > 0
            and np.array_equal(np.unique(tree.claim), np.arange(claims))
            and (tree.lower <= tree.upper).all()
            and (tree.exact <= 1).all()
            and tree.exact.sum(dtype=int) <= _MAX_EXACT
            and tree.axis.size <= _MAX_NODES
            and (tree.choice < len(tree.weights)).all()
            and ((tree.slope >= -1) & (tree.slope < len(tree.slopes))).all()
            and ((tree.neurons >= 0) & (tree.neurons < hidden)).all()
            and ((tree.table >= 0) & (tree.table <= len(tree.tables))).all()
            and (tree.refined.size > 0 or not tree.table.any())
        )
        if not is_right:
            raise RefusedError(f"tree {index} has a number that is not allowed")
        return tree
