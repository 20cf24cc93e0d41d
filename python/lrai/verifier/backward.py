"""One backward pass: rows at a node become coefficients of the inputs and a constant."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lrai.verifier.network import Node
from lrai.verifier.operators.base import Array, Box, Elementwise, Linear, Planes
from lrai.verifier.regions import Index, Lines, Regions

if TYPE_CHECKING:
    from lrai.verifier.bounds import Bounds

TINY = 2.0**-900
"""More than all that a pass loses by underflow in float64."""


@dataclass(frozen=True)
class Choice:
    """What an optimiser may choose per row of a bound; every choice is valid."""

    slopes: dict[int, Array] = field(default_factory=dict)
    """In [0, 1], `(R, size)` per adjustable node; of a Relu also `(N or 1, P, size)`, for P rows of
    each of N regions."""
    betas: dict[int, Array] = field(default_factory=dict)
    """`(R, size)` per node in front of a Relu: <= 0 where the split says that the node is >= 0,
    >= 0 where it says <= 0, else 0 (beta-CROWN, Wang et al. 2021)."""


@dataclass
class Trace:
    """What a backward pass saw, for the gradient of its bound."""

    rows: dict[int, Array] = field(default_factory=dict)
    """The rows that arrived at each node, `(R, size)`."""
    lines: dict[int, Lines] = field(default_factory=dict)
    """The lines of elementwise nodes that the rows chose from."""
    coefficients: Array | None = None
    """Of the flat input, `(R, n_in)`."""


class Backward:
    """Rows on their way to the inputs, `(N, P, size)`: P for each of N regions."""

    def __init__(
        self,
        pending: dict[int, Array],
        shape: tuple[int, ...],
        region: Index | None = None,
        choice: Choice | None = None,
        trace: Trace | None = None,
    ) -> None:
        """Start with rows at some nodes; `region` `(N,)` names their regions, None: in order."""
        self.pending, self.region, self.trace = pending, region, trace
        self.choice = choice or Choice()
        self.total = np.zeros(shape)
        self.chords = False
        """Follow the upper lines whatever the sign: no bound, but a sensitivity."""
        self.whole: int | None = None
        """A node whose error term is not yet counted, although its consumer's lines carry it."""

    def send(self, sources: Sequence[int], rows: Sequence[Array]) -> None:
        """Add rows to what arrived at the inputs of a node."""
        for source, part in zip(sources, rows, strict=True):
            known = self.pending.get(source)
            self.pending[source] = part if known is None else known + part

    def run(self, bounds: "Bounds", regions: Regions) -> Array:
        """`(N, P)`: visit the last node first, and take the minimum over the input box."""
        while self.pending:
            index = max(self.pending)
            rows = self.pending.pop(index)
            node = bounds.network.nodes[index]
            beta = self.choice.betas.get(index)
            if beta is not None:
                beta = beta.reshape(rows.shape)
                rows = rows + beta
            if self.trace is not None:
                self.trace.rows[index] = rows.reshape(self.total.size, rows.shape[2])
            if node.operator is None:
                self._finish(regions.boxes[index], regions.errors[index], rows)
                if self.trace is not None:
                    self._note(rows, bounds.graph.slices[index], bounds.network.input_size)
                continue
            if isinstance(node.operator, Elementwise):
                found: tuple[Array, ...] = (self._elementwise(index, rows, bounds, regions),)
            else:
                erring = beta if bounds.graph.absorbed[index] and index != self.whole else rows
                if erring is not None:
                    self.total -= _dot(np.abs(erring), self._own(regions.errors[index]))
                found = self._through(node, rows, regions)
            self.send(node.inputs, found)
        return self.total - TINY

    def _elementwise(self, index: int, rows: Array, bounds: "Bounds", regions: Regions) -> Array:
        """Take the lower line where a row is positive and the upper one where it is negative."""
        slopes = self.choice.slopes.get(index)
        if slopes is not None and slopes.ndim == 3:
            return self._sloped(bounds.steepest(index, regions), rows, slopes)
        lines = regions.lines[index]
        if slopes is not None or lines is None:
            lines = Lines.of(bounds.planes(index, regions, self.choice))
        if self.trace is not None:
            self.trace.lines[index] = lines
        slope, half = self._own(lines.slope), self._own(lines.half_slope)
        if self.chords:
            found: Array = rows * (slope - half)[:, None]
            return found
        size = np.abs(rows)
        self.total += _dot(rows, self._own(lines.constant))
        self.total += _dot(size, self._own(lines.half_constant))
        size *= half[:, None]
        found = rows * slope[:, None]
        found += size
        return found

    def _sloped(self, planes: Planes, rows: Array, slopes: Array) -> Array:
        """The lower line through zero that each row has chosen; `planes` have the steepest one.

        What is steepest has the largest error term, so that it serves for all.
        """
        is_bent, above = planes.lower_slope != planes.upper_slope, np.maximum(rows, 0)
        below = rows - above
        self.total += _dot(above, planes.lower_constant) + _dot(below, planes.upper_constant)
        above *= np.where(is_bent[:, None], slopes, planes.upper_slope[:, None])
        below *= planes.upper_slope[:, None]
        above += below
        return above

    def _through(self, node: Node, rows: Array, regions: Regions) -> tuple[Array, ...]:
        operator = node.operator
        assert operator is not None
        count = rows.shape[:2]
        # A case without conditions has no rows, from which -1 could not be told.
        flat = rows.reshape(count[0] * count[1], rows.shape[2])
        boxes: tuple[Box, ...] = ()
        if not isinstance(operator, Linear):
            index = np.repeat(np.arange(count[0]), count[1])
            boxes = tuple(
                Box(self._own(regions.boxes[i].lower), self._own(regions.boxes[i].upper))
                for i in node.inputs
            )
            boxes = tuple(box.take(index % len(box.lower)) for box in boxes)
        found, constants = operator.backward(flat, boxes)
        self.total += constants.reshape(count)
        return tuple(part.reshape(*count, part.shape[1]) for part in found)

    def _finish(self, box: Box, error: Array, rows: Array) -> None:
        """The minimum over a box: its centre, less the reach of its radius."""
        centre, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2 + error
        self.total += _dot(rows, self._own(centre))
        self.total -= _dot(np.abs(rows), self._own(radius))

    def _note(self, rows: Array, part: slice, size: int) -> None:
        assert self.trace is not None
        if self.trace.coefficients is None:
            self.trace.coefficients = np.zeros((self.total.size, size))
        self.trace.coefficients[:, part] = rows.reshape(self.total.size, rows.shape[2])

    def _own(self, values: Array) -> Array:
        """The rows' own regions of `(N, n)`; one region alone serves all rows."""
        return values if self.region is None or len(values) == 1 else values.take(self.region, 0)


def _dot(rows: Array, values: Array) -> Array:
    """Products `(N, P)` of rows `(N, P, n)` with values `(N, n)`, or `(1, n)` for all."""
    if len(values) == 1:
        product: Array = rows @ values[0]
    elif rows.shape[1] == 1:
        product = np.einsum("rn,rn->r", rows[:, 0], values)[:, None]
    else:
        product = np.matmul(rows, values[:, :, None])[:, :, 0]
    return product
