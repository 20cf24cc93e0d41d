"""Hidden neurons whose sign follows from the splits of a region.

The bounds that every region computes again know a split only as a narrower box. With a multiplier
for each split (beta-CROWN, Wang et al. 2021, here for the inputs of hidden neurons) many more turn
out to have one sign. Such a neuron is split, and the multipliers close its other side: one leaf,
after which all bounds in the region are those of a neuron that is linear.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from lrai.verifier.bounds import Bounds
from lrai.verifier.operators.base import Array, Box
from lrai.verifier.regions import Index
from lrai.verifier.relu_bounds import ReluBox, Signs, until
from lrai.verifier.slope_ascent import Ascended, Levels, Multipliers, Start, Steps, ascend

_FIRST: Final = Steps(4, 0.25, 0.5, 0.95, hasty=False)
_REST: Final = Steps(12, 0.15, 0.4, 0.93, hasty=False)
_REACH: Final = 6.0
"""Rows go on that would be proved by so many times what the first steps gained."""
_LEAST: Final = 1e-5
"""By how much an input must be away from zero: the checker rounds elsewhere than the search."""


@dataclass(frozen=True)
class SignProof:
    """Closes the side of a neuron's split on which the neuron cannot be."""

    neuron: int
    sign: int
    """1 where its input is > 0 all over the region, -1 where it is < 0."""
    slopes: Levels
    """`(H,)`."""
    betas: Multipliers
    """`(H,)`, the neuron's own included."""


class SignProofs:
    """Proofs in the regions of one box."""

    def __init__(self, box: ReluBox) -> None:
        """Prepare the networks that end at the Relus' inputs."""
        self._box = box
        self._bounds = {
            relu: Bounds(until(box.network, source), box.arithmetic)
            for relu, source in box.sources.items()
        }

    def find(
        self, relu: int, boxes: list[Box], signs: Signs, levels: Levels
    ) -> Iterator[SignProof]:
        """Yield proofs for inputs of a Relu, in a region with node boxes from signs and levels."""
        source, part = self._box.sources[relu], self._box.slices[relu]
        known, bounds = boxes[source], self._bounds[relu]
        neurons = np.flatnonzero((known.lower[0] < 0) & (known.upper[0] > 0))
        both, side = np.tile(neurons, 2), np.repeat([1.0, -1.0], len(neurons))
        start = self._start(relu, both, side, (signs, levels))
        if not len(neurons) or not start.betas:
            return
        rows = np.zeros((len(both), known.lower.shape[1]))
        rows[np.arange(len(both)), both] = side
        before = np.where(side > 0, known.lower[0, both], -known.upper[0, both])
        regions = bounds.relax(boxes[: source + 1])
        found = ascend(bounds, regions, rows, start, _FIRST)
        rest = np.flatnonzero(found.bound + _REACH * (found.bound - before) > 0)
        if not len(rest):
            return
        further = Start(
            {other: slopes[rest] for other, slopes in found.slopes.items()},
            {other: betas[rest] for other, betas in found.betas.items()},
            start.signs,
        )
        found = ascend(bounds, regions, rows[rest], further, _REST)
        for row in np.flatnonzero(found.bound > _LEAST):
            place = rest[row]
            yield self._proof(part.start + int(both[place]), int(side[place]), found, int(row))

    def _start(self, relu: int, both: Index, side: Array, given: tuple[Signs, Levels]) -> Start:
        """The levels of the neurons' bounds, and no multiplier for any split."""
        (signs, levels), parts, earlier = given, self._box.slices, self._box.earlier(relu)
        places = parts[relu].start + both + np.where(side > 0, 0, self._box.hidden)
        split = [other for other in earlier if signs[parts[other]].any()]
        return Start(
            {other: levels[places, parts[other]] for other in earlier},
            {other: np.zeros((len(both), _size(parts[other])), np.float32) for other in split},
            {other: signs[parts[other]].astype(np.float64) for other in split},
        )

    def _proof(self, neuron: int, sign: int, found: Ascended, row: int) -> SignProof:
        slopes = np.zeros(self._box.hidden, np.uint8)
        betas: Multipliers = np.zeros(self._box.hidden, np.float32)
        for relu, levels in found.slopes.items():
            slopes[self._box.slices[relu]] = levels[row]
        for relu, values in found.betas.items():
            betas[self._box.slices[relu]] = values[row]
        betas[neuron] = 1.0
        return SignProof(neuron, sign, slopes, betas)


def _size(part: slice) -> int:
    return int(part.stop - part.start)
