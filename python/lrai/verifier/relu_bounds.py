"""Bounds of one input box whose Relus are split, each region with node boxes of its own.

The signs of the split neurons narrow the boxes of all nodes behind them, which is worth more in a
deep network than anything else: one pass per region computes them again, with lower slopes that
were optimised once at the root (alpha-CROWN, Xu et al. 2021). A certificate then needs no boxes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.backward import Choice, Trace
from lrai.verifier.bounds import Arithmetic, Bounds, conditions
from lrai.verifier.network import Network, Node
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.base import Array, Box, Elementwise
from lrai.verifier.operators.relu import Relu
from lrai.verifier.property import Case
from lrai.verifier.regions import Index
from lrai.verifier.slope_ascent import Levels, Start, Steps, ascend

Signs = NDArray[np.int8]
"""`(H,)`: 1 where a split says that a hidden neuron's input is >= 0, -1 for <= 0, else 0."""
EMPTY: Final = 1e-6
"""By how much the sign of a split must be missed: the checker rounds elsewhere than the search."""
_ROOT: Final = Steps(count=20)


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
        self._before = {
            index: Bounds(_until(network, index), arithmetic)
            for index, node in enumerate(network.nodes)
            if node.operator is not None
        }
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
        for index, node in enumerate(self.network.nodes):
            if index not in self.slices:
                region.boxes.append(self._interval(index, region))
                continue
            source, part = self.sources[index], self.slices[index]
            self.levels[:, part] = _default_levels(region.boxes[source])
            # First the default slopes, for whatever the intervals leave open.
            for count in (1, steps.count):
                neurons = _unstable(region.boxes[source])
                found = self._tighten(index, region, neurons, Steps(count, steps.slope_rate))
                self.levels[np.concatenate([neurons, self.hidden + neurons]) + part.start] = found
                yield index
            self.levels[:, part] = _default_levels(region.boxes[source])
            region.boxes.append(_apply(node, region.boxes))

    def region(self, signs: Signs) -> Region | None:
        """The region of some splits; None where it is found to be empty."""
        region = Region([], {})
        for index, node in enumerate(self.network.nodes):
            if index not in self.slices:
                region.boxes.append(self._interval(index, region))
                continue
            source, sign = self.sources[index], signs[self.slices[index]]
            if self.around:
                # To fix a sign may loosen a bound with given slopes: what held at the root holds.
                found, known = region.boxes[source], self.around[source]
                lower = np.maximum(found.lower, known.lower)
                region.boxes[source] = Box(lower, np.minimum(found.upper, known.upper))
            neurons = _unstable(region.boxes[source])
            self._tighten(index, region, neurons[sign[neurons] == 0], Steps(1))
            box = region.boxes[source]
            lower = np.where(sign > 0, np.maximum(box.lower, 0), box.lower)
            upper = np.where(sign < 0, np.minimum(box.upper, 0), box.upper)
            if (lower - upper > EMPTY)[0, sign != 0].any():
                return None
            lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
            region.boxes[source] = Box(lower, upper)
            region.boxes.append(_apply(node, region.boxes))
        return region

    def reduced(self, region: Region) -> tuple["ReluBox", Index]:
        """The same box without neurons that are zero all over it; and which ones were kept.

        The error terms stay those of the whole sums, because the deployed network computes them.
        """
        nodes, kept = list(self.network.nodes), []
        for relu in self.relus:
            part, source = self.slices[relu], self.sources[relu]
            keep = np.flatnonzero(region.boxes[source].upper[0] > 0)
            if not len(keep) or not self._is_chain(relu):
                keep = np.arange(part.stop - part.start)
            kept.append(part.start + keep)
            if len(keep) == part.stop - part.start:
                continue
            consumer = self._consumers(relu)[0]
            shape = (len(keep),)
            nodes[source] = _with(nodes[source], _columns(nodes[source], keep), shape)
            nodes[relu] = _with(nodes[relu], Relu(), shape)
            nodes[consumer] = _with(
                nodes[consumer], _inputs(nodes[consumer], keep), nodes[consumer].shape
            )
        kept_neurons = np.concatenate([np.zeros(0, np.intp), *kept])
        network = Network(
            tuple(nodes), self.network.inputs, self.network.outputs, self.network.digests
        )
        reduced = ReluBox(network, self.box, self.arithmetic)
        both = np.concatenate([kept_neurons, self.hidden + kept_neurons])
        kept_of = dict(zip(self.relus, kept, strict=True))
        reduced.around = list(region.boxes)
        for relu, source in self.sources.items():
            keep = kept_of[relu] - self.slices[relu].start
            for index in (source, relu):
                box = region.boxes[index]
                reduced.around[index] = Box(box.lower[:, keep], box.upper[:, keep])
        reduced.levels = self.levels[np.ix_(both, kept_neurons)]
        return reduced, kept_neurons

    def default_levels(self, region: Region) -> Levels:
        """`(H,)`: the default lower slopes of a region."""
        found = [_default_levels(region.boxes[self.sources[relu]]) for relu in self.relus]
        return np.concatenate([np.zeros(0, np.uint8), *found])

    def _is_chain(self, relu: int) -> bool:
        """Whether an affine map of one value is before the Relu, and another one behind it."""
        source, consumers = self.sources[relu], self._consumers(relu)
        nodes = self.network.nodes
        return (
            len(consumers) == 1
            and self._consumers(source) == [relu]
            and relu not in self.network.outputs
            and source not in self.network.outputs
            and isinstance(nodes[source].operator, Affine)
            and isinstance(nodes[consumers[0]].operator, Affine)
            and len(nodes[source].inputs) == len(nodes[consumers[0]].inputs) == 1
        )

    def _consumers(self, index: int) -> list[int]:
        return self.bounds.graph.consumers[index]

    def _behind(self, index: int) -> set[int]:
        """The nodes that a node depends on; in a product network these are not all before it."""
        found: set[int] = set()
        waiting = [index]
        while waiting:
            fresh = set(self.network.nodes[waiting.pop()].inputs) - found
            found |= fresh
            waiting += fresh
        return found

    def _interval(self, index: int, region: Region) -> Box:
        node = self.network.nodes[index]
        if node.operator is None:
            part = self.bounds.graph.slices[index]
            return Box(self.box.lower[:, part], self.box.upper[:, part])
        found = _apply(node, region.boxes)
        error = self._before[index].relax([*region.boxes, found]).errors[index]
        return Box(found.lower - error, found.upper + error)

    def _tighten(self, relu: int, region: Region, neurons: Index, steps: Steps) -> Levels:
        """Bound a Relu's inputs by passes that start with `levels`; the best levels, `(2 k, H)`."""
        source, part = self.sources[relu], self.slices[relu]
        behind = self._behind(source)
        earlier = [other for other in self.relus if other in behind]
        places = part.start + np.concatenate([neurons, self.hidden + neurons])
        levels: Levels = self.levels[places]
        if not len(neurons) or not earlier:
            return levels
        size, box = len(neurons), region.boxes[source]
        rows = np.zeros((2 * size, box.lower.shape[1]))
        rows[np.arange(size), neurons] = 1
        rows[np.arange(size, 2 * size), neurons] = -1
        bounds = self._before[source]
        regions = bounds.relax(region.boxes)
        start = {other: self.levels[places, self.slices[other]] for other in earlier}
        if steps.count == 1:
            trace = Trace()
            choice = Choice({other: levels / 255.0 for other, levels in start.items()})
            bound = bounds.lower(rows, regions, None, choice, trace)
            region.passes[relu] = neurons, {other: trace.rows[other] for other in earlier}
        else:
            found = ascend(bounds, regions, rows, Start(start), steps)
            bound = found.bound
            for other in earlier:
                levels[:, self.slices[other]] = found.slopes[other]
        lower, upper = box.lower.copy(), box.upper.copy()
        lower[0, neurons] = np.fmax(lower[0, neurons], bound[:size])
        upper[0, neurons] = np.fmin(upper[0, neurons], -bound[size:])
        region.boxes[source] = Box(lower, upper)
        return levels


def _until(network: Network, index: int) -> Network:
    """The part of a network that ends at a node."""
    return Network(network.nodes[: index + 1], network.inputs, (index,), network.digests)


def _apply(node: Node, boxes: list[Box]) -> Box:
    assert node.operator is not None
    return node.operator.interval(*(boxes[source] for source in node.inputs))


def _unstable(box: Box) -> Index:
    return np.flatnonzero((box.lower[0] < 0) & (box.upper[0] > 0))


def _default_levels(box: Box) -> Levels:
    found: Levels = np.where(box.upper[0] > -np.minimum(box.lower[0], 0), 255, 0).astype(np.uint8)
    return found


def _with(node: Node, operator: Affine | Elementwise, shape: tuple[int, ...]) -> Node:
    return Node(node.name, operator, node.inputs, shape)


def _columns(node: Node, keep: Index) -> Affine:
    assert isinstance(node.operator, Affine)
    found = Affine(
        (np.ascontiguousarray(node.operator.weights[0][:, keep]),), node.operator.bias[keep]
    )
    found.terms = node.operator.terms
    return found


def _inputs(node: Node, keep: Index) -> Affine:
    assert isinstance(node.operator, Affine)
    found = Affine((np.ascontiguousarray(node.operator.weights[0][keep]),), node.operator.bias)
    found.terms = node.operator.terms
    return found
