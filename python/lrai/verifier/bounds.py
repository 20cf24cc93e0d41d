"""Sound linear bounds over a network, for many boxes of inputs at once, in float64.

Boxes hold the values that the deployed network computes. Of `rows @ value` a lower bound
`coefficients @ x + constant` is carried from a node back to the inputs (CROWN, Zhang et al. 2018),
and at every node on the way one error term is subtracted, `|rows| @ e` with

    e = (1.01 gamma32(terms) + gamma64(sizes + nodes + 16)) * magnitude + underflow

Why that is enough. (1) The deployed operator computes op(x) + d, |d| <= gamma32(terms) * magnitude
in any order of summation, plus at most 2^-125 per term where a result underflows, gradually or to
zero; d is bounded afresh at every node. In the arithmetic "real" it is zero. (2) The rows at a node
are what the program stored, so that each step errs by itself: a coefficient is a sum of at most
`size` products and of at most `nodes` contributions, and its error times |x| is at most gamma64 of
that count times |rows| @ magnitude; so are the roundings of the constants, of their running sum
(each is at most |rows| @ magnitude of its node) and of the lines of an elementwise operator, whose
magnitude is |slope| |x| + |constant|. The 16 and the 1.01 cover the roundings of magnitude and e
themselves, and let a checker that rounds elsewhere agree. (3) Underflow of the program's own
products is below 2^40 operations * 2^-1074 * 2^128, less than TINY, which is subtracted at the end;
magnitudes from 2^126 on turn the bound into nan, and nan proves nothing.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lrai.verifier.backward import TINY, Backward, Choice, Trace
from lrai.verifier.forms import Forms
from lrai.verifier.network import Network, Node
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.base import Array, Box, Elementwise, Linear, Planes
from lrai.verifier.property import Case
from lrai.verifier.regions import UNIT32, UNIT64, Graph, Index, Lines, Regions, gamma

Arithmetic = Literal["real", "float32"]
_UNDERFLOW32 = 2.0**-125
_LARGEST = 2.0**126
_ELEMENTS = 2**15
"""Elements of one array of rows that stays in the cache."""
_LARGE = 2**21
"""Elements of the largest array of rows: a backward pass holds a few of them."""
FEW_INPUTS = 16
"""Up to here forms are kept and inputs are split."""


def conditions(network: Network, cases: Sequence[Case]) -> Network:
    """The network with one output per condition of the cases; unsafe are inputs with all <= 0.

    The conditions of one case follow those of the case before it.
    """
    sources, sizes = list(network.outputs), network.sizes(network.outputs)
    weights = np.concatenate([case.output_rows for case in cases])
    if any(case.input_rows is not None for case in cases):
        sources += network.inputs
        sizes += network.sizes(network.inputs)
        none = np.zeros((1, network.input_size))
        parts = [
            np.repeat(none, len(case.offset), axis=0)
            if case.input_rows is None
            else case.input_rows
            for case in cases
        ]
        weights = np.concatenate([weights, np.concatenate(parts)], axis=1)
    offset = np.concatenate([case.offset for case in cases])
    blocks = np.split(weights, np.cumsum(sizes)[:-1], axis=1)
    operator = Affine(tuple(np.ascontiguousarray(block.T) for block in blocks), -offset)
    operator.terms = 0  # the conditions are exact: only the network is deployed
    node = Node("conditions", operator, tuple(sources), offset.shape)
    nodes = (*network.nodes, node)
    return Network(nodes, network.inputs, (len(nodes) - 1,), network.digests)


class Bounds:
    """Bounds of a network's nodes. Row r belongs to region `region[r]`, or to r, or to the one."""

    def __init__(self, network: Network, arithmetic: Arithmetic = "float32") -> None:
        """Prepare what does not depend on a region."""
        self.network, self.arithmetic = network, arithmetic
        self.graph = Graph(network)

    def regions(self, box: Box, known: Sequence[Box] = ()) -> Regions:
        """Boxes of all nodes for N boxes of flat inputs: intervals, forms, then backward bounds.

        `known` are sound boxes of the first nodes, from a network that begins with the same ones.
        """
        regions = Regions([])
        forms = (
            Forms(self.network, self.graph, box) if self.network.input_size <= FEW_INPUTS else None
        )
        for index, node in enumerate(self.network.nodes):
            if node.operator is None:
                part = self.graph.slices[index]
                regions.boxes.append(Box(box.lower[:, part], box.upper[:, part]))
                self.append(index, regions)
                if forms is not None:
                    forms.start(index, regions.boxes[index])
                continue
            self.append(index, regions)
            error = regions.errors[index]
            found = node.operator.interval(*(regions.boxes[source] for source in node.inputs))
            regions.boxes.append(Box(found.lower - error, found.upper + error))
            if forms is not None:
                regions.boxes[index] = forms.intersect(index, regions)
            if index < len(known):
                regions.boxes[index] = known[index]
            elif self.graph.curved[index] or (forms is None and self.graph.chained(index)):
                self._refine(index, regions)
        if forms is not None:
            regions.forms = forms.lines
        return regions

    def relax(self, boxes: list[Box]) -> Regions:
        """Regions with node boxes that are known already, such as those of a split Relu."""
        regions = Regions(boxes)
        for index in range(len(boxes)):
            self.append(index, regions)
        return regions

    def lower(
        self,
        rows: Array,
        regions: Regions,
        region: Index | None = None,
        choice: Choice | None = None,
        trace: Trace | None = None,
    ) -> Array:
        """`(R,)`: lower bounds of `rows @ outputs`, rows `(R, n_out)`; nan where there is none.

        Rows `(N, P, n_out)` are P for each of N regions, and give `(N, P)`.
        """
        shared = region is None and not (choice and choice.slopes) and len(regions.errors[0]) == 1
        stacked = rows if rows.ndim == 3 else rows[None] if shared else rows[:, None]
        start = Backward(self._outputs(stacked), stacked.shape[:2], region, choice, trace)
        return start.run(self, regions).reshape(rows.shape[:-1])

    def sensitivity(self, rows: Array, regions: Regions, region: Index | None = None) -> Array:
        """`(R, n_in)`: the slopes of `rows @ outputs` along the upper lines; steers splits only.

        The default lower slopes would hide inputs behind zeros.
        """
        trace = Trace()
        stacked = rows[:, None]
        start = Backward(self._outputs(stacked), stacked.shape[:2], region, None, trace)
        start.chords = True
        start.run(self, regions)
        assert trace.coefficients is not None
        return trace.coefficients

    def planes(self, index: int, regions: Regions, choice: Choice) -> Planes:
        """The lines of an elementwise node, one row per region."""
        slopes, planes = choice.slopes.get(index), regions.planes[index]
        if slopes is None and planes is not None:
            return planes
        source = self.network.nodes[index].inputs[0]
        return self._lines(index, regions, regions.boxes[source], slopes)[0]

    def steepest(self, index: int, regions: Regions) -> Planes:
        """The lines of an adjustable node with lower slopes of 1, one row per region."""
        box = regions.boxes[self.network.nodes[index].inputs[0]]
        return self._lines(index, regions, box, np.ones_like(box.lower))[0]

    # ---- one node, forwards --------------------------------------------------------------------

    def append(self, index: int, regions: Regions) -> None:
        """Append the error term and the lines of a node whose inputs have boxes."""
        node = self.network.nodes[index]
        if node.operator is None:
            roundings = 2 * self.network.input_size + len(self.network.nodes) + 16
            magnitude = regions.boxes[index].magnitude
            regions.errors.append(gamma(roundings, UNIT64) * magnitude + TINY)
            regions.planes.append(None)
            regions.lines.append(None)
            return
        inputs = tuple(regions.boxes[source] for source in node.inputs)
        if isinstance(node.operator, Elementwise):
            planes, error = self._lines(index, regions, inputs[0], None)
            regions.errors.append(error)
            regions.planes.append(planes)
            regions.lines.append(Lines.of(planes))
        else:
            magnitude = node.operator.magnitude(*inputs)
            regions.errors.append(self._error(index, magnitude, magnitude))
            regions.planes.append(None)
            regions.lines.append(None)

    def _error(self, index: int, deployed: Array, own: Array) -> Array:
        """The error term e of the module's docstring."""
        node = self.network.nodes[index]
        error = self.graph.rounding[index] * own
        terms = node.operator.terms if node.operator is not None else 0
        if terms and self.arithmetic == "float32":
            error += (1.01 * gamma(terms, UNIT32)) * deployed + terms * _UNDERFLOW32
        error += TINY
        if not np.all(own < _LARGEST):
            error[~(own < _LARGEST)] = np.nan
        return error

    def _lines(
        self, index: int, regions: Regions, box: Box, slopes: Array | None
    ) -> tuple[Planes, Array]:
        """An elementwise node's lines, moved apart by all errors, and its own error term."""
        node = self.network.nodes[index]
        assert isinstance(node.operator, Elementwise)
        planes = node.operator.planes(box, slopes)
        steep = np.maximum(np.abs(planes.lower_slope), np.abs(planes.upper_slope))
        own = steep * box.magnitude
        own += np.maximum(np.abs(planes.lower_constant), np.abs(planes.upper_constant))
        error = self._error(index, node.operator.magnitude(box), own)
        moved = error
        if self.graph.absorbed[node.inputs[0]]:
            moved = error + steep * regions.errors[node.inputs[0]]
        return (
            Planes(
                planes.lower_slope,
                planes.lower_constant - moved,
                planes.upper_slope,
                planes.upper_constant + moved,
            ),
            error,
        )

    def _refine(self, index: int, regions: Regions) -> None:
        """Tighten the box of a node by backward bounds, where an operator behind it is bent.

        Regions with similarly many wanted elements go together, each with as many rows as the
        first of them: what belongs to a region is then broadcast over its rows, never repeated.
        """
        box = regions.boxes[index]
        wanted = self.graph.wanted(index, box)
        if wanted is None:
            return
        counts = wanted.sum(axis=1)
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        lower, upper = box.lower.copy(), box.upper.copy()
        start, widest = 0, self.graph.widest
        while start < len(order):
            count = int(counts[order[start]])
            region = order[start : start + max(1, _ELEMENTS // (2 * count * widest))]
            start += len(region)
            neurons = np.argsort(~wanted[region], axis=1, kind="stable")[:, :count]
            for part in range(0, count, max(1, _LARGE // (2 * widest))):
                neuron = neurons[:, part : part + max(1, _LARGE // (2 * widest))]
                found = self.start(index, region, neuron, regions).run(self, regions)
                at, half = (region[:, None], neuron), neuron.shape[1]
                lower[at] = np.maximum(lower[at], found[:, :half])
                upper[at] = np.minimum(upper[at], -found[:, half:])
        regions.boxes[index] = Box(lower, upper)

    def start(self, index: int, region: Index, neuron: Index, regions: Regions) -> Backward:
        """Rows for the lower bounds of neurons `(N, P)`, then for the negated upper bounds."""
        node = self.network.nodes[index]
        shape = neuron.shape[0], 2 * neuron.shape[1]
        units = self.graph.units(index)
        if units is None or not isinstance(node.operator, Linear):
            rows = np.zeros((*shape, node.size))
            half = rows[:, : neuron.shape[1]]
            np.put_along_axis(half, neuron[:, :, None], 1.0, axis=2)
            rows[:, neuron.shape[1] :] = -half
            start = Backward({index: rows}, shape, region)
            start.whole = index
            return start
        start = Backward({}, shape, region)
        bias, error = node.operator.bias[neuron], regions.errors[index][region[:, None], neuron]
        start.total = np.concatenate([bias - error, -bias - error], axis=1)
        start.send(node.inputs, [np.concatenate([u[neuron], -u[neuron]], axis=1) for u in units])
        return start

    def _outputs(self, rows: Array) -> dict[int, Array]:
        """Rows of the flat output, node by node."""
        network = self.network
        parts = np.split(rows, np.cumsum(network.sizes(network.outputs))[:-1], axis=2)
        pending: dict[int, Array] = {}
        for index, part in zip(network.outputs, parts, strict=True):
            pending[index] = pending[index] + part if index in pending else part
        return pending
