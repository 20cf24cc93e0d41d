"""The triangle relaxation of one region as a linear program, which HiGHS solves.

While the boxes of the nodes stay, its optimum is the best bound that lower slopes and split
multipliers can give (Salman et al. 2019, Wang et al. 2021), and its dual solution holds them. Where
no point meets all constraints, a dual ray (Farkas 1902) is made of multipliers that show the region
to be empty. Both are proposals, rounded to what a certificate holds: only the bound that is
computed again from them counts, so that nothing here has to be exact.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.operators.base import Array, Box, Linear
from lrai.verifier.operators.relu import Relu
from lrai.verifier.regions import Graph, Index
from lrai.verifier.relu_bounds import ReluBox, Signs
from lrai.verifier.slope_ascent import Levels, Multipliers

_MAX_ELEMENTS: Final = 2_000_000
"""Of all matrices of a network."""
_MAX_ITERATIONS: Final = 20_000
_LEAST: Final = 1e-12
"""Dual values below it are rounding."""


@dataclass(frozen=True)
class Proposal:
    """What the dual of a program says, per Relu `(size,)`, and the point of its optimum."""

    is_empty: bool
    """The multipliers are a ray: they alone have a positive bound."""
    slopes: dict[int, Levels]
    betas: dict[int, Multipliers]
    x: Array
    """`(n_in,)`; of no use where the region is empty."""


@dataclass(frozen=True)
class _Side:
    """How the inputs of one Relu may lie, `(size,)` each."""

    low: Array
    high: Array
    sign: Signs

    @property
    def is_open(self) -> NDArray[np.bool_]:
        """Whether both signs are possible."""
        found: NDArray[np.bool_] = (self.low < 0) & (self.high > 0)
        return found

    @property
    def chord(self) -> Array:
        """Slope of the upper line of an open neuron, else 0."""
        width = np.where(self.is_open, self.high - self.low, 1.0)
        return np.where(self.is_open, self.high / width, 0.0)

    def rows(self) -> tuple[Array, Array]:
        """Lower and upper ends `(2 * size,)` of y - x, then of chord * x - y.

        Where the sign is known y is x, or 0 by its own column.
        """
        is_line, free = (self.high > 0) & ~self.is_open, np.full(len(self.low), np.inf)
        above = np.where(self.high > 0, 0, -np.inf), np.where(is_line, 0, np.inf)
        below = np.where(self.is_open, self.chord * self.low, -np.inf), free
        lower, upper = (np.concatenate(some) for some in zip(above, below, strict=True))
        return lower, upper


class LinearProgram:
    """The program of one region of a box, begun at the basis where the last region's ended.

    A column for every element of every node. Rows: one per element of a linear map, and two blocks
    per Relu, `y - x >= 0` and `chord * x - y >= chord * low`.
    """

    def __init__(self, box: ReluBox) -> None:
        """Prepare what all regions share; ValueError where a network is not `is_supported`."""
        if not is_supported(box.bounds.graph):
            raise ValueError("a node is neither a Relu nor a small linear map")
        self._box, nodes = box, box.network.nodes
        self._starts = np.cumsum([0, *(node.size for node in nodes)])
        counts = [node.size * _rows_of(node.operator) for node in nodes]
        self._rows = np.cumsum([0, *counts])
        self._sides: dict[int, _Side] = {}
        parts = [self._elements(index) for index in range(len(nodes))]
        row, column, value = (np.concatenate(some) for some in zip(*parts, strict=True))
        order = np.argsort(row, kind="stable")
        self._matrix = row[order], column[order], value[order]
        self._solver = self._load()

    def describe(self, boxes: list[Box], signs: Signs) -> None:
        """Take the boxes of a region `(1, size)` and the signs of its splits `(H,)`."""
        lower = np.full(self._starts[-1], -np.inf)
        columns, rows = (lower, -lower), (np.zeros(self._rows[-1]), np.zeros(self._rows[-1]))
        for index, node in enumerate(self._box.network.nodes):
            own, part = self._columns(index), slice(self._rows[index], self._rows[index + 1])
            if node.operator is None:
                columns[0][own], columns[1][own] = boxes[index].lower[0], boxes[index].upper[0]
            elif isinstance(node.operator, Linear):
                rows[0][part] = rows[1][part] = -node.operator.bias
            else:
                source = node.inputs[0]
                sign = signs[self._box.slices[index]]
                side = _Side(boxes[source].lower[0], boxes[source].upper[0], sign)
                self._bend(index, side)
                before = self._columns(source)
                columns[0][before][sign > 0] = columns[1][before][sign < 0] = 0
                columns[0][own][side.is_open | (side.high <= 0)] = 0
                columns[1][own][side.high <= 0] = 0
                rows[0][part], rows[1][part] = side.rows()
        for change, (low, high) in (
            (self._solver.changeColsBounds, columns),
            (self._solver.changeRowsBounds, rows),
        ):
            change(len(low), np.arange(len(low), dtype=np.int32), low, high)

    def propose(self, weights: Array) -> Proposal | None:
        """The dual of the least `weights @ outputs`; None where HiGHS gives up."""
        import highspy

        cost, solver = np.zeros(self._starts[-1]), self._solver
        cost[self._columns(self._box.network.outputs[0])] = weights
        solver.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)
        solver.run()
        status = solver.getModelStatus()
        if status == highspy.HighsModelStatus.kOptimal:
            solution = solver.getSolution()
            return self._read(cost, np.array(solution.row_dual), np.array(solution.col_value))
        _, is_known, ray = solver.getDualRay()
        largest = np.abs(ray).max(initial=0.0)
        if status == highspy.HighsModelStatus.kInfeasible and is_known and largest > 0:
            return self._read(np.zeros(len(cost)), ray / largest)
        # Another region's basis may be a bad place to start from.
        solver.clearSolver()
        return None

    # ---- the solver ----------------------------------------------------------------------------

    def _load(self) -> Any:
        import highspy

        solver = highspy.Highs()
        for name, value in {
            "output_flag": False,
            "threads": 1,
            "presolve": "off",  # it would lose the basis and the ray
            "simplex_iteration_limit": _MAX_ITERATIONS,
        }.items():
            solver.setOptionValue(name, value)
        none, row, column, value = np.zeros(0), *self._matrix
        size, rows = int(self._starts[-1]), int(self._rows[-1])
        zero, empty = np.zeros(size), np.zeros(0, np.int32)
        solver.addCols(size, zero, zero, zero, 0, empty, empty, none)
        starts = np.searchsorted(row, np.arange(rows)).astype(np.int32)
        zero = np.zeros(rows)
        solver.addRows(rows, zero, zero, len(row), starts, column.astype(np.int32), value)
        return solver

    def _elements(self, index: int) -> tuple[Index, Index, Array]:
        """Row, column and value of what a node adds to the matrix."""
        node, own = self._box.network.nodes[index], self._starts[index]
        first, each = self._rows[index], np.arange(node.size)
        if node.operator is None:
            return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
        if isinstance(node.operator, Linear):
            rows, columns, values = [first + each], [own + each], [np.full(node.size, -1.0)]
            units = self._box.bounds.graph.units(index)
            for source, unit in zip(node.inputs, units or (), strict=True):
                row, column = np.nonzero(unit)
                rows.append(first + row)
                columns.append(self._starts[source] + column)
                values.append(unit[row, column])
            return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
        before, ones = self._starts[node.inputs[0]] + each, np.ones(node.size)
        row = np.concatenate([first + each, first + each, first + node.size + each])
        column = np.concatenate([own + each, before, own + each])
        return row, column, np.concatenate([ones, -ones, -ones])

    def _bend(self, relu: int, side: _Side) -> None:
        """Set the chords of a Relu where they differ from what the solver has."""
        known = self._sides.get(relu)
        old = np.zeros(len(side.low)) if known is None else known.chord
        first = int(self._rows[relu]) + len(old)
        before = int(self._starts[self._box.sources[relu]])
        for place in np.flatnonzero(side.chord != old).tolist():
            self._solver.changeCoeff(first + place, before + place, float(side.chord[place]))
        self._sides[relu] = side

    def _columns(self, index: int) -> slice:
        return slice(self._starts[index], self._starts[index + 1])

    # ---- its dual ------------------------------------------------------------------------------

    def _read(self, cost: Array, dual: Array, x: Array | None = None) -> Proposal:
        """Slopes and multipliers of a dual solution, or of a ray where there is no point.

        What arrives at an open neuron is `a + r - c` for the multipliers `a` of y >= x, `r` of
        y >= 0 and `c` of the chord, and of it a share a / (a + r) takes the line y >= x.
        """
        row, column, value = self._matrix
        reduced = cost - np.bincount(column, value * dual[row], len(cost))
        slopes, betas = {}, {}
        for relu, side in self._sides.items():
            steep, chord = np.split(dual[self._rows[relu] : self._rows[relu + 1]], 2)
            flat = np.maximum(reduced[self._columns(relu)], 0)
            total = np.maximum(steep, 0) + flat
            is_sloped = side.is_open & (total > _LEAST)
            share = np.where(is_sloped, 1 - flat / np.where(is_sloped, total, 1), 0)
            slopes[relu] = np.rint(255 * share).astype(np.uint8)
            # `_matrix` is without the chords, which differ from region to region.
            sent = reduced[self._columns(self._box.sources[relu])] - chord * side.chord
            betas[relu] = np.maximum(sent * side.sign, 0).astype(np.float32)
        inputs = [np.arange(self._starts[i], self._starts[i + 1]) for i in self._box.network.inputs]
        some = np.zeros(len(reduced)) if x is None else x
        return Proposal(x is None, slopes, betas, some[np.concatenate(inputs)])


def is_supported(graph: Graph) -> bool:
    """Whether a network has only Relus and linear maps of a moderate size, and one output node."""
    elements = 0
    for index, node in enumerate(graph.nodes):
        if isinstance(node.operator, Linear):
            units = graph.units(index)
            if units is None:
                return False
            elements += sum(unit.size for unit in units)
        elif not isinstance(node.operator, Relu | None):
            return False
    return elements <= _MAX_ELEMENTS


def _rows_of(operator: object) -> int:
    return 0 if operator is None else 1 if isinstance(operator, Linear) else 2
