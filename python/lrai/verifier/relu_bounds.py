"""Bounds of one input box whose Relus are split, each region with node boxes of its own.

The signs of the split neurons narrow the boxes of all nodes behind them, which is worth more in a
deep network than anything else: one pass per region computes them again, with lower slopes that
were optimised once at the root (alpha-CROWN, Xu et al. 2021). A certificate then needs no boxes.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.backward import Choice, Trace
from lrai.verifier.bounds import Arithmetic, Bounds, conditions
from lrai.verifier.network import Network, Node
from lrai.verifier.operators.base import Array, Box
from lrai.verifier.operators.relu import Relu
from lrai.verifier.property import Case
from lrai.verifier.regions import Index, Regions
from lrai.verifier.relu_reduction import without_zeros
from lrai.verifier.slope_ascent import Levels, Start, Steps, ascend

Signs = NDArray[np.int8]
"""`(H,)`: 1 where a split says that a hidden neuron's input is >= 0, -1 for <= 0, else 0."""
EMPTY: Final = 1e-6
"""By how much the sign of a split must be missed: the checker rounds elsewhere than the search."""
_ROOT: Final = Steps(count=20)
_ELEMENTS: Final = 2**19
"""Elements of the rows of one pass, for as many regions as go together."""


@dataclass(frozen=True)
class Region:
    """A region's node boxes, and the passes that made them."""

    boxes: list[Box]
    passes: dict[int, tuple[Index, dict[int, Array]]]
    """Per Relu: neurons of its node, and the rows that their bounds (lower, then upper) sent to
    the Relus before it."""


class ReluBox:
    """A box of inputs of a network whose outputs are the conditions of all cases."""

    def __init__(self, network: Network, box: Box, arithmetic: Arithmetic) -> None:
        """Take one box, `(1, n_in)`; `root` makes the first."""
        self.network, self.box, self.arithmetic = network, box, arithmetic
        self.relus = tuple(
            index for index, node in enumerate(network.nodes) if isinstance(node.operator, Relu)
        )
        sizes = network.sizes(self.relus)
        ends = np.cumsum(sizes, dtype=np.int64)
        self.hidden = int(sum(sizes))
        self.slices = {
            relu: slice(int(end) - size, int(end))
            for relu, size, end in zip(self.relus, sizes, ends, strict=True)
        }
        self.sources = {relu: network.nodes[relu].inputs[0] for relu in self.relus}
        self.bounds = Bounds(network, arithmetic)
        self.around: list[Box] = []
        """The root's node boxes, once `reduced` knows them."""
        self.levels: Levels = np.zeros((2 * self.hidden, self.hidden), np.uint8)
        """Lower slopes for the lower, then the upper bounds of hidden neurons' inputs."""

    @staticmethod
    def root(network: Network, cases: Sequence[Case], arithmetic: Arithmetic) -> "ReluBox":
        """The box of some cases that share it."""
        box = Box(cases[0].lower[None], cases[0].upper[None])
        return ReluBox(conditions(network, cases), box, arithmetic)

    def optimise(self, steps: Steps = _ROOT) -> Region:
        """Set `levels`: each neuron's bound at the root gets its own."""
        region = Region([], {})
        for _ in self.optimising(region, steps):
            pass
        return region

    def optimising(self, region: Region, steps: Steps = _ROOT) -> Iterator[int]:
        """The same into an empty region, in turns: one for each Relu's node and kind of slopes."""
        regions = Regions(region.boxes)
        for index in range(len(self.network.nodes)):
            if index in self.slices:
                source, part = self.sources[index], self.slices[index]
                self.levels[:, part] = _default_levels(region.boxes[source])
                # First the default slopes, for whatever the intervals leave open.
                for some in (replace(steps, count=1), steps):
                    self._optimise(index, regions, some)
                    yield index
                self.levels[:, part] = _default_levels(region.boxes[source])
            self._grow(index, regions)

    def region(self, signs: Signs) -> Region | None:
        """The region of some splits; None where it is found to be empty."""
        boxes, is_empty = self.regions(signs[None], self.levels)
        return None if is_empty[0] else Region(boxes, {})

    def adapted(self, signs: Signs, levels: Levels, steps: Steps) -> Levels:
        """Levels for the bounds of one region, signs `(H,)`, that begin with given ones."""
        box = copy(self)
        box.levels = levels.copy()
        regions = Regions([])
        for index in range(len(self.network.nodes)):
            if index in self.slices:
                self._surround(index, regions)
                box._optimise(index, regions, steps)
                self._sign(index, regions, signs[None, self.slices[index]])
            self._grow(index, regions)
        return box.levels

    def regions(self, signs: Signs, levels: Levels) -> tuple[list[Box], NDArray[np.bool_]]:
        """The node boxes of N regions, signs `(N, H)`, and which of them are found to be empty.

        A box that no split narrows, such as that of the inputs, is one for all of them.
        """
        cuts = self._cuts(len(signs))
        parts = [self._regions(some, levels) for some in np.split(signs, cuts)]
        if len(parts) == 1:
            return parts[0]
        counts = [len(is_empty) for _, is_empty in parts]
        boxes = []
        for index, node in enumerate(self.network.nodes):
            some = [known[index] for known, _ in parts]
            boxes.append(some[0] if node.operator is None else _stacked(some, counts))
        return boxes, np.concatenate([is_empty for _, is_empty in parts])

    def _cuts(self, count: int) -> list[int]:
        """Where to cut a number of regions so that the rows of a pass stay in the cache."""
        wide = max(node.size for node in self.network.nodes)
        known = [_unstable(self.around[source]) for source in self.sources.values() if self.around]
        rows = 2 * max((len(some) for some in known), default=wide)
        return list(range(0, count, max(1, _ELEMENTS // max(1, rows * wide))))[1:]

    def _regions(self, signs: Signs, levels: Levels) -> tuple[list[Box], NDArray[np.bool_]]:
        regions, is_empty = Regions([]), np.zeros(len(signs), bool)
        for index in range(len(self.network.nodes)):
            if index in self.slices:
                self._surround(index, regions)
                self._tighten(index, regions, levels)
                is_empty |= self._sign(index, regions, signs[:, self.slices[index]])
            self._grow(index, regions)
        return regions.boxes, is_empty

    def _surround(self, relu: int, regions: Regions) -> None:
        """To fix a sign may loosen a bound with given slopes: what held at the root holds."""
        source = self.sources[relu]
        if self.around:
            regions.boxes[source] = _intersection(regions.boxes[source], self.around[source])

    def _tighten(self, relu: int, regions: Regions, levels: Levels) -> None:
        """Narrow the inputs of a Relu by passes."""
        box = regions.boxes[self.sources[relu]]
        neurons = _unstable(box)
        found = self._passed(relu, regions, neurons, levels)
        if found is None:
            return
        lower, upper, half = box.lower.copy(), box.upper.copy(), len(neurons)
        lower[:, neurons] = np.fmax(lower[:, neurons], found[:, :half])
        upper[:, neurons] = np.fmin(upper[:, neurons], -found[:, half:])
        regions.boxes[self.sources[relu]] = Box(lower, upper)

    def _sign(self, relu: int, regions: Regions, sign: Signs) -> NDArray[np.bool_]:
        """Cut the inputs of a Relu by signs; which regions that empties."""
        box = regions.boxes[self.sources[relu]]
        lower = np.where(sign > 0, np.maximum(box.lower, 0), box.lower)
        upper = np.where(sign < 0, np.minimum(box.upper, 0), box.upper)
        is_empty: NDArray[np.bool_] = ((lower - upper > EMPTY) & (sign != 0)).any(axis=1)
        known = Box(np.minimum(lower, upper), np.maximum(lower, upper))
        regions.boxes[self.sources[relu]] = known
        return is_empty

    def _passed(
        self,
        relu: int,
        regions: Regions,
        neurons: Index,
        levels: Levels,
        trace: Trace | None = None,
    ) -> Array | None:
        """`(N, 2 k)`: bounds of k inputs of a Relu, then of their negatives; None if none."""
        source = self.sources[relu]
        earlier = self.earlier(relu)
        if not len(neurons) or not earlier:
            return None
        count = max(len(box.lower) for box in regions.boxes)
        every = np.arange(count)
        start = self.bounds.start(source, every, np.tile(neurons, (count, 1)), regions)
        places = self.slices[relu].start + np.concatenate([neurons, self.hidden + neurons])
        slopes = {other: levels[places, self.slices[other]][None] / 255.0 for other in earlier}
        start.choice, start.trace, start.region = Choice(slopes), trace, None
        return start.run(self.bounds, regions)

    def _grow(self, index: int, regions: Regions) -> None:
        """Append the next node by its interval."""
        node = self.network.nodes[index]
        if node.operator is None:
            part = self.bounds.graph.slices[index]
            regions.boxes.append(Box(self.box.lower[:, part], self.box.upper[:, part]))
            self.bounds.append(index, regions)
            return
        self.bounds.append(index, regions)
        found, error = _apply(node, regions.boxes), regions.errors[index]
        if index in self.slices:
            error = np.zeros(1)
        regions.boxes.append(Box(found.lower - error, found.upper + error))

    def trace(self, region: Region, levels: Levels) -> None:
        """Set what the passes of one region sent to earlier Relus."""
        regions = self.bounds.relax(region.boxes)
        for relu, source in self.sources.items():
            neurons, trace = _unstable(region.boxes[source]), Trace()
            if self._passed(relu, regions, neurons, levels, trace) is not None:
                sent = {other: trace.rows[other] for other in self.earlier(relu)}
                region.passes[relu] = neurons, sent

    def reduced(self, region: Region) -> tuple["ReluBox", Index]:
        """The same box without neurons that are zero all over it; and which ones were kept."""
        network, kept = without_zeros(self.network, self.bounds.graph, region.boxes)
        starts = [self.slices[relu].start + kept[relu] for relu in self.relus]
        neurons = np.concatenate([np.zeros(0, np.intp), *starts])
        reduced = ReluBox(network, self.box, self.arithmetic)
        reduced.around = list(region.boxes)
        for relu, source in self.sources.items():
            for index in (source, relu):
                box, keep = region.boxes[index], kept[relu]
                reduced.around[index] = Box(box.lower[:, keep], box.upper[:, keep])
        both = np.concatenate([neurons, self.hidden + neurons])
        reduced.levels = self.levels[np.ix_(both, neurons)]
        return reduced, neurons

    def default_levels(self, region: Region) -> Levels:
        """`(H,)`: the default lower slopes of a region."""
        found = [_default_levels(region.boxes[self.sources[relu]]) for relu in self.relus]
        return np.concatenate([np.zeros(0, np.uint8), *found])

    def _behind(self, index: int) -> set[int]:
        """The nodes that a node depends on; in a product network these are not all before it."""
        found: set[int] = set()
        waiting = [index]
        while waiting:
            fresh = set(self.network.nodes[waiting.pop()].inputs) - found
            found |= fresh
            waiting += fresh
        return found

    def earlier(self, relu: int) -> list[int]:
        """The Relus that the inputs of a Relu depend on."""
        behind = self._behind(self.sources[relu])
        return [other for other in self.relus if other in behind]

    def _optimise(self, relu: int, regions: Regions, steps: Steps) -> None:
        """Bound the inputs of a Relu of one region with slopes that improve; sets `levels`."""
        source, part = self.sources[relu], self.slices[relu]
        neurons, earlier = _unstable(regions.boxes[source]), self.earlier(relu)
        if not len(neurons) or not earlier:
            return
        size, box = len(neurons), regions.boxes[source]
        rows = np.zeros((2 * size, box.lower.shape[1]))
        rows[np.arange(size), neurons] = 1
        rows[np.arange(size, 2 * size), neurons] = -1
        places = part.start + np.concatenate([neurons, self.hidden + neurons])
        start = {other: self.levels[places, self.slices[other]] for other in earlier}
        bounds = Bounds(until(self.network, source), self.arithmetic)
        found = ascend(bounds, bounds.relax(regions.boxes[: source + 1]), rows, Start(start), steps)
        for other in earlier:
            self.levels[places, self.slices[other]] = found.slopes[other]
        lower, upper = box.lower.copy(), box.upper.copy()
        lower[0, neurons] = np.fmax(lower[0, neurons], found.bound[:size])
        upper[0, neurons] = np.fmin(upper[0, neurons], -found.bound[size:])
        regions.boxes[source] = Box(lower, upper)


def until(network: Network, index: int) -> Network:
    """The part of a network that ends at a node."""
    return Network(network.nodes[: index + 1], network.inputs, (index,), network.digests)


def _apply(node: Node, boxes: list[Box]) -> Box:
    assert node.operator is not None
    return node.operator.interval(*(boxes[source] for source in node.inputs))


def _unstable(box: Box) -> Index:
    """The elements whose sign is open in any of the regions."""
    return np.flatnonzero(((box.lower < 0) & (box.upper > 0)).any(axis=0))


def _intersection(one: Box, other: Box) -> Box:
    return Box(np.maximum(one.lower, other.lower), np.minimum(one.upper, other.upper))


def _stacked(boxes: Sequence[Box], counts: Sequence[int]) -> Box:
    """One after the other, each for so many regions."""
    lower, upper = (
        np.concatenate(
            [
                np.broadcast_to(side, (n, side.shape[1]))
                for side, n in zip(some, counts, strict=True)
            ]
        )
        for some in ([box.lower for box in boxes], [box.upper for box in boxes])
    )
    return Box(lower, upper)


def _default_levels(box: Box) -> Levels:
    found: Levels = np.where(box.upper[0] > -np.minimum(box.lower[0], 0), 255, 0).astype(np.uint8)
    return found
