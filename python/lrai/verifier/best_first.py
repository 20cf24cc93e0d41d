"""Boxes of inputs in the order of their bounds, for a search that always halves the worst ones."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.operators.base import Array, Box


@dataclass(frozen=True)
class OpenBox:
    """A box whose bound is still too large."""

    lower: Array
    upper: Array
    bounds: Array
    """`(2 n_out,)`."""
    axis: int
    """Where to halve it."""


@dataclass(frozen=True)
class BoundedBoxes:
    """N boxes and what is known of them."""

    box: Box
    bounds: Array
    """`(N, 2 n_out)`."""
    axis: NDArray[np.intp]
    """`(N,)`."""
    points: Array
    """`(M, n_in)`: where the bounds may be attained."""


@dataclass
class BestFirst:
    """Open boxes, the one with the largest bound first; closed ones leave their bounds."""

    closed: Array
    """`(2 n_out,)`."""

    def __post_init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._boxes: dict[int, OpenBox] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def bounds(self) -> Array:
        """`(2 n_out,)`: over open and closed boxes."""
        found = [self.closed, *(box.bounds for box in self._boxes.values())]
        return np.asarray(np.stack(found).max(axis=0))

    def add(self, found: BoundedBoxes, target: float) -> None:
        """Open the boxes whose bounds exceed the target; close the others."""
        box = found.box
        rows = zip(box.lower, box.upper, found.bounds, found.axis, strict=True)
        for lower, upper, bounds, axis in rows:
            largest = float(bounds.max())
            if largest <= target:
                self.closed = np.maximum(self.closed, bounds)
                continue
            self._boxes[self._count] = OpenBox(lower, upper, bounds, int(axis))
            heapq.heappush(self._heap, (-largest, self._count))
            self._count += 1

    def take(self, count: int, target: float) -> list[OpenBox]:
        """The worst boxes, at most `count`; those that the target has overtaken are closed."""
        taken: list[OpenBox] = []
        while self._heap and len(taken) < count:
            box = self._boxes.pop(heapq.heappop(self._heap)[1])
            if box.bounds.max() <= target:
                self.closed = np.maximum(self.closed, box.bounds)
            else:
                taken.append(box)
        return taken


def halve(taken: Sequence[OpenBox]) -> Box | None:
    """Both halves of each box, next to each other; None where float64 has no middle."""
    count = np.arange(len(taken))
    lower = np.repeat(np.stack([box.lower for box in taken]), 2, axis=0)
    upper = np.repeat(np.stack([box.upper for box in taken]), 2, axis=0)
    axis = np.array([box.axis for box in taken])
    low, high = lower[2 * count, axis], upper[2 * count, axis]
    middle = (low + high) / 2
    if not ((low < middle) & (middle < high)).all():
        return None
    upper[2 * count, axis] = middle
    lower[2 * count + 1, axis] = middle
    return Box(lower, upper)
