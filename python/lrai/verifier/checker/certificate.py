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

_FORMAT: Final = "lrai-certificate-3"
_MAX_BYTES: Final = 1 << 29
_ARRAYS: Final = {
    **dict.fromkeys(("box", "rows", "offset", "at", "weights"), "<f8"),
    **dict.fromkeys(("claim", "slope", "tables", "table"), "<u4"),
    "axis": "<i4",
    "betas": "<f4",
    "slopes": "u1",
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
        tree: Tree = {}
        for name, kind in _ARRAYS.items():
            tree[name] = np.frombuffer(self._archive.read(f"{index}/{name}"), kind)
        inputs, leaves = graph.inputs, np.count_nonzero(tree["axis"] == -1)
        conditions, claims = tree["offset"].size, int(tree["claim"].max()) + 1
        tree["claim"] = tree["claim"].reshape(conditions)
        tree["box"] = tree["box"].reshape(2, inputs)
        tree["rows"] = tree["rows"].reshape(conditions, inputs + outputs)
        tree["weights"] = tree["weights"].reshape(leaves, conditions)
        tree["slope"] = tree["slope"].reshape(leaves, claims)
        tree["betas"] = tree["betas"].reshape(leaves, claims, -1)
        tree["slopes"] = _rows(tree["slopes"], len(graph.hidden), 0)
        tree["tables"] = _rows(tree["tables"], 2 * len(graph.hidden), len(tree["slopes"]) - 1)
        is_allowed = [((tree[x] >= 0) & (tree[x] < np.inf)).all() for x in ("weights", "betas")]
        if not all(is_allowed) or tree["slope"].max() >= len(tree["slopes"]):
            raise RefusedError(f"tree {index} has a number that is not allowed")
        return tree


def _rows(array: Any, width: int, last: int) -> Any:
    """An array as rows, and behind them one for what none of them is meant for."""
    rows = array.reshape(-1, max(width, 1))[:, :width]
    return np.append(rows, np.full((1, width), last, array.dtype), axis=0)
