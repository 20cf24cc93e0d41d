"""The checker's own reading of certificates; `lrai.verifier.certificate` tells the format.

The file is taken to be hostile: its size is bounded before anything is unpacked, and arrays are
plain numbers of a known kind. A wrong index fails where it is used; a wrong number proves nothing.
"""

import hashlib
import io
import json
import zipfile
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import Graph, RefusedError

_FORMAT: Final = "lrai-certificate-2"
_MAX_BYTES: Final = 1 << 29
_ARRAYS: Final = {
    **dict.fromkeys(("box", "rows", "offset", "at", "weights"), "<f8"),
    **dict.fromkeys(("claim", "choice", "slope", "neurons", "table"), "<u4"),
    **dict.fromkeys(("slopes", "refined", "tables"), "u1"),
    "axis": "<i4",
    "betas": "<f4",
}
Tree = dict[str, Any]
"""The arrays of one tree by name."""


class Archive:
    """An opened certificate: `header`, and the trees one at a time.

    Where the file is wrong the error is a RefusedError, or whatever reading it causes.
    """

    def __init__(self, content: bytes) -> None:
        """Open the bytes of a file."""
        if hashlib.sha256(content[:-64]).hexdigest().encode() != content[-64:]:
            raise RefusedError("the file is no certificate, or it was damaged")
        self._archive = zipfile.ZipFile(io.BytesIO(content))
        if sum(part.file_size for part in self._archive.infolist()) > _MAX_BYTES:
            raise RefusedError(f"the certificate unpacks to more than {_MAX_BYTES} bytes")
        self.header: dict[str, Any] = json.loads(self._archive.read("header.json"))
        count = 1 + len(_ARRAYS) * self.header["trees"]
        if self.header["format"] != _FORMAT or len(self._archive.namelist()) != count:
            raise RefusedError("the certificate has another format, or other parts than it tells")

    def tree(self, index: int, graph: Graph, outputs: int) -> Tree:
        """Read a tree for a graph, and look through it."""
        tree = {
            name: np.frombuffer(self._archive.read(f"{index}/{name}"), kind)
            for name, kind in _ARRAYS.items()
        }
        inputs, count, claims = graph.inputs, tree["offset"].size, int(tree["claim"].max()) + 1
        widths = {"rows": inputs + outputs, "weights": count, "choice": claims, "slope": claims}
        widths |= dict.fromkeys(("slopes", "refined"), len(graph.hidden))
        for name, width in widths.items():
            tree[name] = tree[name].reshape(-1, max(width, 1))
        tree["box"] = tree["box"].reshape(2, inputs)
        refined = tree["neurons"].size
        if refined:
            tree["tables"] = tree["tables"].reshape(-1, 2 * refined, refined)
        if not all(((tree[x] >= 0) & (tree[x] < np.inf)).all() for x in ("weights", "betas")):
            raise RefusedError(f"tree {index} has a number that is not allowed")
        return tree
