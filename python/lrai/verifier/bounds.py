"""Sound linear bounds over a network, for many boxes of inputs at once, in float64.

Boxes hold the values that the deployed network computes. Of `rows @ value` a lower bound
`coefficients @ x + constant` is carried from a node back to the inputs (CROWN, Zhang et al. 2018),
and at every node on the way one error term is subtracted, `|rows| @ e` with

    e = (gamma32(terms) (1 + 2^-20) + gamma64(sizes + nodes + 16)) * magnitude + underflow

Why that is enough. (1) The deployed operator computes op(x) + d, |d| <= gamma32(terms) * magnitude
in any order of summation, plus at most 2^-125 per term where a result underflows, gradually or to
zero; d is bounded afresh at every node. In the arithmetic "real" it is zero. (2) The rows at a node
are what the program stored, so that each step errs by itself: a coefficient is a sum of at most
`size` products and of at most `nodes` contributions, and its error times |x| is at most gamma64 of
that count times |rows| @ magnitude; so are the roundings of the constants, of their running sum
(each is at most |rows| @ magnitude of its node) and of the lines of an elementwise operator, whose
magnitude is |slope| |x| + |constant|. The 16 and the 2^-20 cover the roundings of magnitude and e
themselves. (3) Underflow of the program's own products is below 2^40 operations * 2^-1074 * 2^128,
less than TINY, which is subtracted at the end; magnitudes from 2^126 on turn the bound into nan,
and nan proves nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lrai.verifier.forms import Forms
from lrai.verifier.network import Network, Node
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.base import Array, Box, Elementwise, Linear, Planes
from lrai.verifier.property import Case
from lrai.verifier.regions import UNIT32, UNIT64, Graph, Index, Regions, gamma

Arithmetic = Literal["real", "float32"]
TINY = 2.0**-900
_UNDERFLOW32 = 2.0**-125
_LARGEST = 2.0**126
_ELEMENTS = 2**17
"""Elements of one array of rows: what stays in the cache; a pass holds a few of them."""
_FEW_INPUTS = 16


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


@dataclass(frozen=True)
class Choice:
    """What an optimiser may choose per row of a bound; every choice is valid."""

    slopes: dict[int, Array] = field(default_factory=dict)
    """In [0, 1], `(R, size)` per adjustable node."""
    betas: dict[int, Array] = field(default_factory=dict)
    """`(R, size)` per node in front of a Relu: <= 0 where the split says that the node is >= 0,
    >= 0 where it says <= 0, else 0 (beta-CROWN, Wang et al. 2021)."""


@dataclass
class Trace:
    """What a backward pass saw, for the gradient of its bound."""

    rows: dict[int, Array] = field(default_factory=dict)
    """The rows that arrived at each node, `(R, size)`."""
    coefficients: Array | None = None
    """Of the flat input, `(R, n_in)`."""


class Bounds:
    """Bounds of a network's nodes. Rows belong to regions: row r to region `region[r]`, or to r."""

    def __init__(self, network: Network, arithmetic: Arithmetic = "float32") -> None:
        """Prepare what does not depend on a region."""
        self.network, self.arithmetic = network, arithmetic
        self.graph = Graph(network)

    def regions(self, box: Box) -> Regions:
        """Boxes of all nodes for N boxes of flat inputs: intervals, forms, then backward bounds."""
        regions = Regions([])
        forms = (
            Forms(self.network, self.graph, box) if self.network.input_size <= _FEW_INPUTS else None
        )
        for index, node in enumerate(self.network.nodes):
            if node.operator is None:
                part = self.graph.slices[index]
                regions.boxes.append(Box(box.lower[:, part], box.upper[:, part]))
                self._relax(index, regions)
                if forms is not None:
                    forms.start(index, regions.boxes[index])
                continue
            self._relax(index, regions)
            error = regions.errors[index]
            found = node.operator.interval(*(regions.boxes[source] for source in node.inputs))
            regions.boxes.append(Box(found.lower - error, found.upper + error))
            if forms is not None:
                regions.boxes[index] = forms.intersect(index, regions)
            if self.graph.curved[index] or (forms is None and self.graph.chained(index)):
                self._refine(index, regions)
        return regions

    def relax(self, boxes: list[Box]) -> Regions:
        """Regions with node boxes that are known already, such as those of a split Relu."""
        regions = Regions(boxes)
        for index in range(len(boxes)):
            self._relax(index, regions)
        return regions

    def lower(
        self,
        rows: Array,
        regions: Regions,
        region: Index | None = None,
        choice: Choice | None = None,
        trace: Trace | None = None,
    ) -> Array:
        """`(R,)`: lower bounds of `rows @ outputs`, rows `(R, n_out)`; nan where there is none."""
        start = self._outputs(rows)
        walk = _Walk(start, np.zeros(len(rows)), region, choice or Choice(), trace)
        return self._walk(walk, regions)

    def sensitivity(self, rows: Array, regions: Regions, region: Index | None = None) -> Array:
        """`(R, n_in)`: the slopes of `rows @ outputs` along the upper lines; steers splits only.

        The default lower slopes would hide inputs behind zeros.
        """
        trace = Trace()
        pending = self._outputs(rows)
        self._walk(_Walk(pending, np.zeros(len(rows)), region, trace=trace, chords=True), regions)
        assert trace.coefficients is not None
        return trace.coefficients

    def lines(self, index: int, regions: Regions, choice: Choice) -> Planes:
        """The lines of an elementwise node, one row per region."""
        slopes, planes = choice.slopes.get(index), regions.planes[index]
        if slopes is None and planes is not None:
            return planes
        source = self.network.nodes[index].inputs[0]
        return self._lines(index, regions, regions.boxes[source], slopes)[0]

    # ---- one node, forwards --------------------------------------------------------------------

    def _relax(self, index: int, regions: Regions) -> None:
        """Append the error term and the lines of a node whose inputs have boxes."""
        node = self.network.nodes[index]
        if node.operator is None:
            roundings = 2 * self.network.input_size + len(self.network.nodes) + 16
            magnitude = regions.boxes[index].magnitude
            regions.errors.append(gamma(roundings, UNIT64) * magnitude + TINY)
            regions.planes.append(None)
            return
        inputs = tuple(regions.boxes[source] for source in node.inputs)
        if isinstance(node.operator, Elementwise):
            planes, error = self._lines(index, regions, inputs[0], None)
            regions.errors.append(error)
            regions.planes.append(planes)
        else:
            magnitude = node.operator.magnitude(*inputs)
            regions.errors.append(self._error(index, magnitude, magnitude))
            regions.planes.append(None)

    def _error(self, index: int, deployed: Array, own: Array) -> Array:
        """The error term e of the module's docstring."""
        node = self.network.nodes[index]
        sizes = node.size + sum(self.network.sizes(node.inputs))
        error = gamma(sizes + len(self.network.nodes) + 16, UNIT64) * own
        terms = node.operator.terms if node.operator is not None else 0
        if terms and self.arithmetic == "float32":
            error += (gamma(terms, UNIT32) * (1 + 2.0**-20)) * deployed + terms * _UNDERFLOW32
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
        """Tighten the box of a node by backward bounds, where an operator behind it is bent."""
        box = regions.boxes[index]
        wanted = self.graph.wanted(index, box)
        if wanted is None:
            return
        region, neuron = np.nonzero(wanted)
        lower, upper = box.lower.copy(), box.upper.copy()
        size = max(1, _ELEMENTS // self.graph.widest // 2)
        for start in range(0, len(region), size):
            r, n = region[start : start + size], neuron[start : start + size]
            found = self._walk(self._start(index, r, n, regions), regions)
            lower[r, n] = np.maximum(lower[r, n], found[: len(r)])
            upper[r, n] = np.minimum(upper[r, n], -found[len(r) :])
        regions.boxes[index] = Box(lower, upper)

    def _start(self, index: int, region: Index, neuron: Index, regions: Regions) -> "_Walk":
        """Rows for the lower bounds of neurons, then for the negated upper bounds."""
        node, error = self.network.nodes[index], regions.errors[index][region, neuron]
        both = np.concatenate([region, region])
        units = self.graph.units(index)
        if units is None:
            rows = np.zeros((2 * len(region), node.size))
            rows[np.arange(len(region)), neuron] = 1
            rows[np.arange(len(region), 2 * len(region)), neuron] = -1
            total = -np.concatenate([error, error]) if self.graph.absorbed[index] else None
            return _Walk({index: rows}, total if total is not None else np.zeros(len(both)), both)
        assert isinstance(node.operator, Linear)
        bias = node.operator.bias[neuron]
        pending: dict[int, Array] = {}
        for source, unit in zip(node.inputs, units, strict=True):
            rows = unit.take(neuron, axis=0)
            rows = np.concatenate([rows, -rows])
            pending[source] = pending[source] + rows if source in pending else rows
        return _Walk(pending, np.concatenate([bias - error, -bias - error]), both)

    def _outputs(self, rows: Array) -> dict[int, Array]:
        """Rows of the flat output, node by node."""
        network = self.network
        parts = np.split(rows, np.cumsum(network.sizes(network.outputs))[:-1], axis=1)
        pending: dict[int, Array] = {}
        for index, part in zip(network.outputs, parts, strict=True):
            pending[index] = pending[index] + part if index in pending else part
        return pending

    # ---- backwards -----------------------------------------------------------------------------

    def _walk(self, walk: "_Walk", regions: Regions) -> Array:
        """Carry rows back to the inputs, last node first, and take the minimum over the box."""
        while walk.pending:
            index = max(walk.pending)
            rows = walk.pending.pop(index)
            node = self.network.nodes[index]
            beta = walk.choice.betas.get(index)
            if beta is not None:
                rows = rows + beta
            if walk.trace is not None:
                walk.trace.rows[index] = rows
            if node.operator is None:
                self._finish(index, rows, walk, regions)
            elif isinstance(node.operator, Elementwise):
                walk.send(node.inputs, (self._elementwise(index, rows, walk, regions),))
            else:
                if not self.graph.absorbed[index]:
                    walk.total -= _dot(np.abs(rows), walk.gather(regions.errors[index]))
                elif beta is not None:
                    walk.total -= _dot(np.abs(beta), walk.gather(regions.errors[index]))
                boxes: tuple[Box, ...] = ()
                if not isinstance(node.operator, Linear):
                    boxes = tuple(walk.gather_box(regions.boxes[i]) for i in node.inputs)
                found, constants = node.operator.backward(rows, boxes)
                walk.total += constants
                walk.send(node.inputs, found)
        return walk.total - TINY

    def _elementwise(self, index: int, rows: Array, walk: "_Walk", regions: Regions) -> Array:
        planes = self.lines(index, regions, walk.choice)
        if walk.region is not None:
            planes = planes.take(walk.region)
        if walk.chords:
            return rows * planes.upper_slope
        above = np.maximum(rows, 0)
        below = np.minimum(rows, 0)
        walk.total += _dot(above, planes.lower_constant)
        walk.total += _dot(below, planes.upper_constant)
        above *= planes.lower_slope
        below *= planes.upper_slope
        above += below
        return above

    def _finish(self, index: int, rows: Array, walk: "_Walk", regions: Regions) -> None:
        box, error = regions.boxes[index], regions.errors[index]
        above = np.maximum(rows, 0)
        below = np.minimum(rows, 0)
        walk.total += _dot(above, walk.gather(box.lower - error))
        walk.total += _dot(below, walk.gather(box.upper + error))
        if walk.trace is not None:
            found = walk.trace.coefficients
            if found is None:
                found = np.zeros((len(rows), self.network.input_size))
                walk.trace.coefficients = found
            found[:, self.graph.slices[index]] = rows


@dataclass
class _Walk:
    """A backward pass under way."""

    pending: dict[int, Array]
    """Rows that arrived at nodes, `(R, size)`."""
    total: Array
    """`(R,)`: the constant so far."""
    region: Index | None = None
    choice: Choice = field(default_factory=Choice)
    trace: Trace | None = None
    chords: bool = False
    """Follow the upper lines whatever the sign: no bound, but a sensitivity."""

    def send(self, sources: tuple[int, ...], rows: tuple[Array, ...]) -> None:
        """Add rows to what arrived at the inputs of a node."""
        for source, part in zip(sources, rows, strict=True):
            known = self.pending.get(source)
            self.pending[source] = part if known is None else known + part

    def gather(self, values: Array) -> Array:
        """The rows' own regions of `(N, n)`; one region alone serves all rows."""
        return values if self.region is None or len(values) == 1 else values.take(self.region, 0)

    def gather_box(self, box: Box) -> Box:
        """See gather."""
        return Box(self.gather(box.lower), self.gather(box.upper))


def _dot(rows: Array, values: Array) -> Array:
    """Row by row products, `(R,)`; one row of values serves all."""
    if len(values) == 1:
        product: Array = rows @ values[0]
        return product
    product = np.empty(len(rows))
    np.einsum("rn,rn->r", rows, values, out=product)
    return product
