"""The open boxes of a branch and bound, in arrays that grow and shrink in place."""

import numpy as np

from lrai.verifier.network import Array
from lrai.verifier.operators.base import Box
from lrai.verifier.regions import Index


class Frontier:
    """Open boxes with the lower bound of their parent and their node in the tree."""

    def __init__(self, lower: Array, upper: Array, limit: int) -> None:
        """Open one box, node 0; from `limit` boxes on the newest come first."""
        self._lower = np.empty((1024, len(lower)))
        self._upper = np.empty((1024, len(lower)))
        self._bound = np.empty(1024)
        self._node = np.empty(1024, np.intp)
        self._size = 0
        self._limit = limit
        self.push(Box(lower[None], upper[None]), np.array([-np.inf]), np.zeros(1, np.intp))

    def __len__(self) -> int:
        """Count open boxes."""
        return self._size

    @property
    def bound(self) -> float:
        """The smallest bound of an open box; infinite where none is open."""
        return float(self._bound[: self._size].min(initial=np.inf))

    @property
    def nodes(self) -> Index:
        """Nodes of all open boxes."""
        return self._node[: self._size]

    def push(self, box: Box, bound: Array, node: Index) -> None:
        """Add boxes `(N, d)` with their bounds `(N,)` and nodes `(N,)`."""
        end = self._size + len(node)
        while end > len(self._node):
            self._lower = np.concatenate([self._lower, np.empty_like(self._lower)])
            self._upper = np.concatenate([self._upper, np.empty_like(self._upper)])
            self._bound = np.concatenate([self._bound, np.empty_like(self._bound)])
            self._node = np.concatenate([self._node, np.empty_like(self._node)])
        new = slice(self._size, end)
        self._lower[new], self._upper[new] = box.lower, box.upper
        self._bound[new], self._node[new] = bound, node
        self._size = end

    def pop(self, count: int) -> tuple[Box, Index]:
        """Take out at most `count` boxes: those with the worst bounds, or the newest."""
        size, first = self._size, max(0, self._size - count)
        if size < self._limit and first > 0:
            order = np.argpartition(self._bound[:size], count)
            taken = np.zeros(size, bool)
            taken[order[:count]] = True
            # What stays at the end fills the gaps in front of it.
            gaps, stay = np.flatnonzero(taken[:first]), first + np.flatnonzero(~taken[first:])
            moved = np.flatnonzero(taken)
            found = Box(self._lower[moved], self._upper[moved]), self._node[moved]
            for values in (self._lower, self._upper, self._bound, self._node):
                values[gaps] = values[stay]
        else:
            end = slice(first, size)
            box = Box(self._lower[end].copy(), self._upper[end].copy())
            found = box, self._node[end].copy()
        self._size = first
        return found
