"""Edges of length buckets, learnt from the lengths that occur."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from lrai.core.model import first_edges

# Lengths are merged into at most so many candidates, so that learning takes about a millisecond.
_MOST_CANDIDATES: Final = 40
_MOST_EDGES: Final = 8
# More buckets than this needs would only make batches smaller.
_WASTE: Final = 1.1
# Rows between two lessons, and how much of the past each one keeps.
_LESSON_ROWS: Final = 1000
_MEMORY: Final = 0.5
# Other edges cost what is known of the service times, so they must be better by this.
_GAIN: Final = 0.05


def learn_edges(histogram: Sequence[tuple[int, float]], most: int = _MOST_EDGES) -> tuple[int, ...]:
    """Return the fewest upper edges with little padding; at most `most`, empty for no lengths.

    `histogram` holds lengths, ascending, with their weights. The last edge is the largest length;
    among sets of equal number the returned one pads to the fewest positions (dynamic programming,
    as in optimal one-dimensional quantisation: X. Wu, J. Algorithms 12, 1991).
    """
    lengths, weights = _merge(histogram)
    if not lengths:
        return ()
    before = (0.0, *accumulate(weights))
    useful = sum(length * weight for length, weight in histogram)
    # Positions for the first so many lengths with one edge, and the edges that lead there.
    costs = [length * before[end] for end, length in enumerate(lengths, 1)]
    paths: list[tuple[int, ...]] = [(length,) for length in lengths]
    for _ in range(1, min(most, len(lengths))):
        if costs[-1] <= _WASTE * useful:
            break
        splits = [
            min((costs[at] + length * (before[end + 1] - before[at + 1]), at) for at in range(end))
            if end
            else (costs[0], -1)
            for end, length in enumerate(lengths)
        ]
        paths = [
            (*paths[at], lengths[end]) if at >= 0 else paths[end]
            for end, (_, at) in enumerate(splits)
        ]
        costs = [cost for cost, _ in splits]
    return paths[-1]


def padded_positions(histogram: Sequence[tuple[int, float]], edges: Sequence[int]) -> float:
    """Return how many positions the lengths take when each is padded to its edge."""
    total, at = 0.0, 0
    for length, weight in histogram:
        while at < len(edges) and edges[at] < length:
            at += 1
        total += weight * (edges[at] if at < len(edges) else length)
    return total


def _merge(histogram: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Merge neighbours if there are many: groups of about equal positions into their longest."""
    share = sum(length * weight for length, weight in histogram) / _MOST_CANDIDATES
    if len(histogram) <= _MOST_CANDIDATES:
        share = 0.0
    lengths, weights, held, positions = [], [], 0.0, 0.0
    for length, weight in histogram:
        held += weight
        positions += length * weight
        if positions >= share or length == histogram[-1][0]:
            lengths.append(length)
            weights.append(held)
            held = positions = 0.0
    return lengths, weights


class LengthModel:
    """The lengths of one model's requests, old ones forgotten, and the edges that suit them."""

    def __init__(self, longest: int) -> None:
        """Know nothing; no request is padded beyond `longest`."""
        self.edges: tuple[int, ...] = ()
        """Upper edges of the buckets, ascending; empty until enough is known."""
        self._longest = longest
        self._weights: dict[int, float] = {}
        self._rows = 0

    def update(self, lengths: Sequence[tuple[int, int]]) -> bool:
        """Learn from lengths with their rows; return whether the edges have changed."""
        for length, rows in lengths:
            self._weights[length] = self._weights.get(length, 0.0) + rows
            self._rows += rows
        if self._rows < _LESSON_ROWS:
            return False
        self._rows = 0
        histogram = sorted(pair for pair in self._weights.items() if pair[0] <= self._longest)
        self._weights = {length: weight * _MEMORY for length, weight in histogram if weight > 1}
        learnt = learn_edges(histogram)
        if not learnt:
            return False
        # Longer ones may come: they find the edges that they had at first.
        beyond = (edge for edge in first_edges(self._longest) if edge > learnt[-1])
        edges = (*learnt, *beyond)
        now = padded_positions(histogram, self.edges or first_edges(self._longest))
        if padded_positions(histogram, edges) > (1 - _GAIN) * now:
            return False
        self.edges = edges
        return True
