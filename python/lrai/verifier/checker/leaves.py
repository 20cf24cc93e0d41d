"""What a certificate says, where the splits of its trees lead, and whether bounds close the leaves.

`lrai.verifier.certificate` tells the format. The file is taken to be hostile: its size is bounded
before anything is unpacked, and arrays are plain numbers of a known kind. A wrong index fails where
it is used; a wrong number proves nothing.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.bounds import ROW_ELEMENTS, Bounds, State
from lrai.verifier.checker.exact import ask
from lrai.verifier.checker.graph import Array, Graph, RefusedError

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
_MAX_HALVES: Final = 4
"""Halves for each leaf of a tree, beyond a thousand."""


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
        tree["slopes"] = tree["slopes"].reshape(-1, max(len(graph.hidden), 1))
        tree["tables"] = tree["tables"].reshape(-1, max(2 * len(graph.hidden), 1))
        is_allowed = [((tree[x] >= 0) & (tree[x] < np.inf)).all() for x in ("weights", "betas")]
        if not all(is_allowed) or tree["slope"].max() >= len(tree["slopes"]):
            raise RefusedError(f"tree {index} has a number that is not allowed")
        return tree


@dataclass(frozen=True)
class Leaf:
    """A leaf of a tree, or a part of one."""

    box: Array
    """`(2, n_in)`: lower, upper."""
    signs: dict[int, int] = field(default_factory=dict)
    """Of neurons, from the root: 1 where the input of one is >= 0, -1 where it is <= 0."""
    origin: int = 0
    """Its place in the tree."""

    def cut(self, axis: int, at: float) -> "list[Leaf]":
        """Its parts above and below a value of an input."""
        parts = [self.box.copy(), self.box.copy()]
        parts[0][0, axis] = parts[1][1, axis] = at
        return [replace(self, box=box) for box in parts]


class Leaves:
    """The leaves of one tree."""

    def __init__(self, tree: Tree, bounds: Bounds) -> None:
        """Follow the splits; RefusedError where they are no tree or leave their box."""
        self._tree, self._bounds, self._root = tree, bounds, None
        root = Leaf(tree["box"])
        self.all, stack = list[Leaf](), [root]
        for axis, at in zip(tree["axis"].tolist(), tree["at"].tolist(), strict=True):
            leaf, neuron = stack.pop(), -2 - axis
            if axis == -1:
                self.all.append(replace(leaf, origin=len(self.all)))
            elif 0 <= axis < len(leaf.box[0]) and leaf.box[0, axis] <= at <= leaf.box[1, axis]:
                stack += leaf.cut(axis, at)
            elif 0 <= neuron < len(bounds.graph.hidden) and neuron not in leaf.signs:
                stack += [replace(leaf, signs=leaf.signs | {neuron: sign}) for sign in (1, -1)]
            else:
                raise RefusedError("a tree has a split outside of its box or of the network")
        if stack:
            raise RefusedError("a tree has too few nodes")
        # To fix a sign may loosen a bound with given slopes: what holds at the root holds.
        self._root = self._look([root])

    def prove(self, wanted: int) -> int:
        """Close every leaf, and so many by Z3 as well; how many Z3 closed of these.

        RefusedError where one stays open.
        """
        # Nothing follows from no weight and no multiplier at all: such leaves are left to Z3.
        is_weighed = self._tree["weights"].any(axis=1) | self._tree["betas"].any(axis=(1, 2))
        exact, rest = ([x for x in self.all if is_weighed[x.origin] == y] for y in (False, True))
        chosen = [rest[x] for x in np.random.default_rng().permutation(len(rest))[:wanted]]
        answers = [self._ask(leaf) for leaf in (*exact, *chosen)]
        if "sat" in answers or any(answer != "unsat" for answer in answers[: len(exact)]):
            raise RefusedError("Z3 does not close a leaf of a tree")
        step = max(ROW_ELEMENTS // self._bounds.graph.slots // self._tree["slope"].shape[1], 1)
        count = 1000 + _MAX_HALVES * len(rest)
        while rest and count > 0:
            parts = [rest[start : start + step] for start in range(0, len(rest), step)]
            rest = [half for part in parts for half in self._close(part)]
            count -= len(rest)
        if rest:
            raise RefusedError(f"the bound does not close leaf {rest[0].origin} of a tree")
        return answers[len(exact) :].count("unsat")

    def _look(self, leaves: list[Leaf]) -> State:
        """What is known of the regions of leaves."""
        signs = np.zeros((len(leaves), len(self._bounds.graph.hidden)), np.int8)
        for row, leaf in zip(signs, leaves, strict=True):
            row[list(leaf.signs)] = list(leaf.signs.values())
        box = np.stack([leaf.box for leaf in leaves], axis=1)
        tables = self._tree["tables"][self._tree["table"][[leaf.origin for leaf in leaves]]]
        return self._bounds.regions(box, signs, tables, self._root)

    def _close(self, leaves: list[Leaf]) -> list[Leaf]:
        """Bound leaves; the halves of those that stay open."""
        tree, bounds, state = self._tree, self._bounds, self._look(leaves)
        claims, origin = tree["slope"].shape[1], [leaf.origin for leaf in leaves]
        rows, charge = np.zeros((len(leaves), claims, bounds.graph.slots)), []
        is_member = tree["claim"] == np.arange(claims)[:, None]
        rows[:, :, -tree["offset"].size :] = tree["weights"][origin, None] * is_member
        for row, leaf in zip(rows, leaves, strict=True):
            # To subtract what is >= 0 keeps a lower bound, and so does to add what is <= 0.
            betas = tree["betas"][leaf.origin][:, : len(leaf.signs)]
            sources = [bounds.graph.hidden[neuron] for neuron in leaf.signs]
            np.subtract.at(row.T, sources, (betas * list(leaf.signs.values())).T)
            charge.append(betas @ state.error[sources])
        rows, regions = rows.reshape(-1, rows.shape[2]), np.repeat(np.arange(len(leaves)), claims)
        bound = bounds.lower(rows, state, regions, tree["slope"][origin].ravel())
        # No input has the fixed signs where what is known contradicts itself.
        is_empty = (state.lower > state.upper).any(axis=1)
        is_closed = (bound.reshape(-1, claims) - charge > 0).all(axis=1) | is_empty
        influence = np.abs(rows[:, bounds.inputs]).reshape(len(leaves), claims, -1).sum(axis=1)
        halves = list[Leaf]()
        for place in np.flatnonzero(~is_closed).tolist():
            low, high = leaves[place].box
            axis = int((influence[place] * (high - low)).argmax())
            halves += leaves[place].cut(axis, (low[axis] + high[axis]) / 2)
        return halves

    def _ask(self, leaf: Leaf) -> str:
        """What Z3 says of a leaf; see `exact.ask`."""
        conditions = np.arange(self._bounds.graph.slots)[-self._tree["offset"].size :]
        claims = [conditions[self._tree["claim"] == x] for x in np.unique(self._tree["claim"])]
        signs = {self._bounds.graph.hidden[x]: sign for x, sign in leaf.signs.items()}
        return ask(self._bounds, self._look([leaf]), signs, claims)
