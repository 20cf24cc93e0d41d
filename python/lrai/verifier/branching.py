"""Which Relu to split: the one whose looseness costs the bound most, with all layers behind it."""

from typing import Final

import numpy as np

from lrai.verifier.operators.base import Array
from lrai.verifier.regions import Index
from lrai.verifier.relu_bounds import Region, ReluBox

_LATER: Final = 0.33
"""What a score counts with each layer further back: the split of an early neuron narrows the boxes
of all layers behind it."""


def candidates(box: ReluBox, region: Region, rows: dict[int, Array], count: int) -> Index:
    """The `count` hidden neurons most worth a split, best first; none where all are stable.

    `rows` `(R, size)` per Relu are what the bounds to be improved sent there.
    """
    scores = score(box, region, rows)
    scores[_unstable(box, region)] += np.finfo(np.float64).tiny
    for depth, relu in enumerate(box.relus):
        scores[box.slices[relu]] *= _LATER**depth
    order = np.argsort(-scores, kind="stable")[:count]
    return order[scores[order] > 0]


def score(box: ReluBox, region: Region, rows: dict[int, Array]) -> Array:
    """`(H,)`: to first order, how much all bounds together lose at each unstable neuron.

    What a row loses at a neuron is the intercept of its upper line, or half of the gap below its
    lower line. A bound of a neuron counts as much as the chord of that neuron, and through it the
    bounds behind, depends on it: the chain rule, from the last layer to the first.
    """
    losses = _Losses(box, region)
    losses.add(rows, np.ones(len(next(iter(rows.values()), np.zeros((0, 0))))))
    for relu in reversed(box.relus):
        if relu in region.passes:
            neurons, sent = region.passes[relu]
            losses.add(sent, losses.weights(relu, neurons))
    return losses.scores


class _Losses:
    def __init__(self, box: ReluBox, region: Region) -> None:
        self._slices = box.slices
        self.scores = np.zeros(box.hidden)
        self._of_lower, self._of_upper = np.zeros(box.hidden), np.zeros(box.hidden)
        self._sides = {
            relu: (region.boxes[source].lower[0], region.boxes[source].upper[0])
            for relu, source in box.sources.items()
        }

    def weights(self, relu: int, neurons: Index) -> Array:
        """How much the lower, then the upper bounds of a Relu's inputs count."""
        places = self._slices[relu].start + neurons
        return np.concatenate([self._of_lower[places], self._of_upper[places]])

    def add(self, rows: dict[int, Array], weight: Array) -> None:
        """Count what some rows lose at all Relus that they passed."""
        for relu, sent in rows.items():
            part, (lower, upper) = self._slices[relu], self._sides[relu]
            is_open = (lower < 0) & (upper > 0)
            width = np.where(is_open, upper - lower, 1)
            above = weight @ np.maximum(-sent, 0) * is_open
            below = weight @ np.maximum(sent, 0) * is_open
            loss = above * (-upper * lower / width) + below * np.minimum(upper, -lower) / 2
            self.scores[part] += loss
            self._of_upper[part] += above * (lower / width) ** 2
            self._of_lower[part] += above * (upper / width) ** 2


def _unstable(box: ReluBox, region: Region) -> Array:
    found = [region.boxes[box.sources[relu]] for relu in box.relus]
    sides = [(one.lower[0] < 0) & (one.upper[0] > 0) for one in found]
    return np.concatenate([np.zeros(0, bool), *sides])
