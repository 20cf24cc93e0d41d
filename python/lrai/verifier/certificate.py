"""The file that proves a verdict: a tree of splits per region, and what closes each of its leaves.

One zip file whose comment is the SHA-256 of all bytes before it. `header.json` names format,
arithmetic, hashes of models and property, the property's text, the number of trees and, for every
element of all models' inputs, which input of the trees it is (`inputs`). `K/NAME` holds an array of
the K-th tree as plain little-endian numbers, row-major:

=========  ===  ==========================================================================
box        f8   (2, n_in) lower and upper ends of the root box: the checker sees to it that
                the trees cover the property
rows       f8   (M, n_out + n_in) conditions `row @ (y, x) <= offset` of all claims
offset     f8   (M,)
claim      u4   (M,) the claim, 0 to C - 1, that a condition belongs to
axis       i4   nodes in pre-order: a >= 0 splits input a, -2 - k hidden neuron k, -1 is a leaf
at         f8   as long as `axis`: where an input is split; first child below, second above.
                First child of a neuron: its input is <= 0, second: >= 0
weights    f8   (leaves, M) non-negative: for each claim the sum of its weighted conditions is
                shown to be > 0
betas      f4   (leaves, C, D): a multiplier >= 0 for each of the neuron splits from root to
                leaf, at most D of them; no weight and no multiplier at all: Z3 closes the leaf
slopes     u1   (S, max(H, 1)) lower slopes of the hidden neurons, in steps of 1/255. The last row
                stands for the default: 1 where upper > -2 lower, else 0
slope      u4   (leaves, C) row of `slopes` for a claim
tables     u4   (K, max(2 H, 1)) rows of `slopes` for the lower bounds of the H hidden neurons'
                inputs, then for the upper ones
table      u4   (leaves,) row of `tables`
=========  ===  ==========================================================================

Hidden neurons are the elements of all Relu nodes in the models' order of nodes. A claim is a case
of the property; a leaf is closed when it contradicts every claim, or when no input has the signs of
its path: then the weights may all be 0, and multipliers alone have a positive bound. Intermediate
bounds are not stored: the checker computes them in the leaf's box and with the signs of its path
(Zhang et al. 2018). A tree may split inputs and neurons in any order.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.property import Case, Property

Array = NDArray[np.float64]
Levels = NDArray[np.uint8]
"""Slopes in steps of 1/255."""
Arithmetic = Literal["real", "float32"]

FORMAT: Final = "lrai-certificate-3"
_OPEN, _LEAF = -(2**31), -1
_DATE: Final = (1980, 1, 1, 0, 0, 0)


class Tree:
    """Splits of one box and how its leaves were closed; grows in any order, node 0 is the root."""

    def __init__(self, cases: Sequence[Case], hidden: int) -> None:
        """Take cases of one box, refuted together, and the network's number of hidden neurons."""
        self.cases, self.hidden = tuple(cases), hidden
        self._axis: list[int] = [_OPEN]
        self._at: list[float] = [0.0]
        self._first: list[int] = [0]
        """First child; the second follows it. Of a leaf: its place among the leaves."""
        self._weights: list[Array] = []
        self._slopes: list[NDArray[np.uint8] | None] = []
        self._betas: list[Array | None] = []
        self.refined: NDArray[np.uint8] | None = None
        """`(2 * hidden, hidden)` slopes for the bounds of the root box, in steps of 1/255."""
        self.neurons: NDArray[np.intp] = np.zeros(0, np.intp)
        self.tables: list[NDArray[np.uint8]] = []
        """`(2 R, R)` slopes for bounds of the R neurons in parts of the root box."""
        self._table: list[int] = []

    def split(self, node: int, axis: int, at: float = 0.0) -> tuple[int, int]:
        """Split input `axis` at a value, or hidden neuron k with `axis = -2 - k`: below, above."""
        first = len(self._axis)
        self._axis[node], self._at[node], self._first[node] = axis, at, first
        self._axis += [_OPEN, _OPEN]
        self._at += [0.0, 0.0]
        self._first += [0, 0]
        return first, first + 1

    def close(
        self,
        node: int,
        weights: Array | None = None,
        slopes: NDArray[np.uint8] | None = None,
        betas: Array | None = None,
        table: int = 0,
    ) -> None:
        """Close a leaf by a linear bound for each case.

        `weights` `(cases, M)`, M conditions of all cases one after the other; None where every
        case has one condition. `slopes` `(cases, hidden)` in steps of 1/255, None for the default.
        `betas` `(cases, d)` for the d neurons split from the root to this leaf, None for 0. `table`
        k > 0 names the k-th of `tables`.
        """
        if weights is None:
            weights = self._identity()
        self._axis[node], self._first[node] = _LEAF, len(self._weights)
        self._weights.append(np.asarray(weights, np.float64))
        self._slopes.append(slopes)
        self._betas.append(betas)
        self._table.append(table)

    def close_exactly(self, node: int, table: int = 0) -> None:
        """Close a leaf by Z3."""
        count = sum(len(case.offset) for case in self.cases)
        self.close(node, weights=np.zeros((len(self.cases), count)), table=table)

    def graft(self, node: int, other: "Tree") -> None:
        """Put another tree of the same cases in the place of an open node."""
        nodes, leaves = len(self._axis), len(self._weights)
        # The other's root comes to `node`, its other nodes behind ours.
        places = [node, *range(nodes, nodes + len(other._axis) - 1)]
        self._axis += other._axis[1:]
        self._at += other._at[1:]
        self._first += other._first[1:]
        self._axis[node], self._at[node] = other._axis[0], other._at[0]
        for place, axis, first in zip(places, other._axis, other._first, strict=True):
            self._first[place] = first + leaves if axis == _LEAF else first + nodes - 1
        self._weights += other._weights
        self._slopes += other._slopes
        self._betas += other._betas
        self._table += [table + len(self.tables) * (table > 0) for table in other._table]
        self.tables += other.tables

    @property
    def leaves(self) -> int:
        """Number of closed leaves."""
        return len(self._weights)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays of the file, in pre-order; ValueError where a node is open."""
        axis, at, order, depths = self._walk()
        claim = np.repeat(np.arange(len(self.cases)), [len(case.offset) for case in self.cases])
        is_member = claim == np.arange(len(self.cases))[:, None]
        weights = [(self._weights[leaf] * is_member).sum(axis=0) for leaf in order]
        slope, slopes = self._chosen_slopes(order)
        tables, table_slopes = self._chosen_tables(len(slopes))
        width = slopes.shape[1]
        every = len(slopes) + len(table_slopes)
        slope[slope == len(slopes)] = every
        table = [self._table[leaf] for leaf in order]
        betas = np.zeros((len(order), len(self.cases), max(depths, default=0)), np.float32)
        known = [self._betas[leaf] for leaf in order]
        for row, given, depth in zip(betas, known, depths, strict=True):
            row[:, :depth] = 0.0 if given is None else given
        return {
            "box": np.stack([self.cases[0].lower, self.cases[0].upper]),
            "rows": np.concatenate([_rows(case) for case in self.cases]),
            "offset": np.concatenate([case.offset for case in self.cases]),
            "claim": claim.astype(np.uint32),
            "axis": np.array(axis, np.int32),
            "at": np.array(at, np.float64),
            "weights": np.array(weights, np.float64),
            "betas": betas,
            "slopes": np.concatenate(
                [slopes, table_slopes, np.zeros_like(slopes, shape=(1, width))]
            ),
            "slope": slope,
            "tables": tables,
            "table": np.array(table, np.uint32),
        }

    def _chosen_slopes(self, order: list[int]) -> tuple[NDArray[np.uint32], Levels]:
        """Of leaves: for each claim a row among the different slopes, or behind the last one."""
        known = [self._slopes[leaf] for leaf in order]
        given = [np.asarray(table, np.uint8) for table in known if table is not None]
        rows = np.zeros((0, max(self.hidden, 1)), np.uint8)
        index = np.zeros((len(order), len(self.cases)), np.uint32)
        if given:
            rows, index[[table is not None for table in known]] = _unique(given)
        index[[table is None for table in known]] = len(rows)
        return index, rows

    def _chosen_tables(self, first: int) -> tuple[NDArray[np.uint32], Levels]:
        """`(1 + tables, 2 * hidden)` rows of slopes, the first of which has a number.

        Without slopes of the root all of them are the default.
        """
        if self.refined is None:
            none = np.zeros((0, max(self.hidden, 1)), np.uint8)
            return np.full((1, max(2 * self.hidden, 1)), first, np.uint32), none
        both = np.concatenate([self.neurons, self.hidden + self.neurons])
        index = np.tile(first + np.arange(2 * self.hidden), (1 + len(self.tables), 1))
        rows = [self.refined]
        for place, table in enumerate(self.tables):
            index[1 + place, both] = (
                first + 2 * self.hidden + place * both.size + np.arange(both.size)
            )
            changed = self.refined[both]
            changed[:, self.neurons] = table
            rows.append(changed)
        return index.astype(np.uint32), np.concatenate(rows)

    def _walk(self) -> tuple[list[int], list[float], list[int], list[int]]:
        axis, at, order, depths = [], [], [], []
        stack = [(0, 0)]
        while stack:
            node, depth = stack.pop()
            kind = self._axis[node]
            if kind == _OPEN:
                raise ValueError(f"node {node} of the tree is open")
            axis.append(kind)
            at.append(self._at[node])
            if kind == _LEAF:
                order.append(self._first[node])
                depths.append(depth)
            else:
                depth += kind < _LEAF
                stack += [(self._first[node] + 1, depth), (self._first[node], depth)]
        return axis, at, order, depths

    def _identity(self) -> Array:
        if any(len(case.offset) != 1 for case in self.cases):
            raise ValueError("only a case with one condition goes without weights")
        return np.eye(len(self.cases))


@dataclass(frozen=True)
class Certificate:
    """What proves that a property holds of models, under an arithmetic."""

    models: tuple[str, ...]
    """SHA-256 of each model file."""
    subject: Property
    arithmetic: Arithmetic
    trees: tuple[Tree, ...]
    inputs: tuple[int, ...]
    """Which input of the trees each element of all models' inputs is."""

    @property
    def leaves(self) -> int:
        """Number of leaves of all trees."""
        return sum(tree.leaves for tree in self.trees)

    def write(self, path: str | Path) -> None:
        """Write the file; ValueError where a tree has open nodes, OSError from the file system."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            _add(archive, "header.json", json.dumps(self._header(), indent=1).encode())
            for index, tree in enumerate(self.trees):
                for name, array in tree.arrays().items():
                    kind = array.dtype.newbyteorder("<")
                    _add(archive, f"{index}/{name}", array.astype(kind).tobytes())
            archive.comment = b"0" * 64
        body = content.getvalue()[:-64]
        Path(path).write_bytes(body + hashlib.sha256(body).hexdigest().encode())

    def _header(self) -> dict[str, object]:
        from lrai import __version__

        return {
            "format": FORMAT,
            "arithmetic": self.arithmetic,
            "models": list(self.models),
            "property": self.subject.digest,
            "text": self.subject.text,
            "inputs": self.inputs,
            "trees": len(self.trees),
            "versions": {"lrai": __version__, "numpy": np.__version__},
        }


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    # A fixed date: equal proofs are equal files.
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def _rows(case: Case) -> Array:
    inputs = np.zeros((len(case.offset), len(case.lower)))
    if case.input_rows is not None:
        inputs = case.input_rows
    return np.concatenate([case.output_rows, inputs], axis=1)


def _unique(tables: Sequence[Levels]) -> tuple[Levels, NDArray[np.uint32]]:
    """The different rows of `(C, n)` tables, and the index of each, `(tables, C)`."""
    stacked = np.stack(tables)
    rows, index = np.unique(stacked.reshape(-1, stacked.shape[-1]), axis=0, return_inverse=True)
    return rows, index.reshape(stacked.shape[:2]).astype(np.uint32)
