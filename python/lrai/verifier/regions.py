"""What the bounds know of a network's graph, and of N boxes of inputs."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.network import Network
from lrai.verifier.operators.base import Array, Box, Elementwise, Linear, Planes

Index = NDArray[np.intp]
UNIT32, UNIT64 = 2.0**-24, 2.0**-53
_CACHED_UNITS = 1024


def gamma(roundings: int, unit: float) -> float:
    """n u / (1 - n u), the relative error of n roundings (Higham, section 3.1)."""
    return roundings * unit / (1 - roundings * unit)


@dataclass(frozen=True)
class Lines:
    """Two lines per element as middle and half of their difference, `(N, n)` each.

    `row * slope + |row| * half_slope` takes the lower line for positive rows, else the upper one.
    """

    slope: Array
    half_slope: Array
    constant: Array
    half_constant: Array

    @staticmethod
    def of(planes: Planes) -> "Lines":
        """Convert; exact up to a rounding of each."""
        return Lines(
            (planes.lower_slope + planes.upper_slope) / 2,
            (planes.lower_slope - planes.upper_slope) / 2,
            (planes.lower_constant + planes.upper_constant) / 2,
            (planes.lower_constant - planes.upper_constant) / 2,
        )

    def take(self, rows: Index) -> "Lines":
        """The lines of some rows, repeated as often as they are named."""
        return Lines(
            self.slope.take(rows, axis=0),
            self.half_slope.take(rows, axis=0),
            self.constant.take(rows, axis=0),
            self.half_constant.take(rows, axis=0),
        )


@dataclass
class Regions:
    """N boxes of inputs, and what holds at every node in them."""

    boxes: list[Box]
    """Deployed values, `(N, size)` per node."""
    errors: list[Array] = field(default_factory=list)
    """The error term of each node."""
    planes: list[Planes | None] = field(default_factory=list)
    """Lines of elementwise nodes with the default slopes, moved apart by the error terms."""
    lines: list[Lines | None] = field(default_factory=list)
    """The same as middle and half."""
    forms: list[Array] = field(default_factory=list)
    """Centre and coefficients of each node's form, `(N, 1 + n_in, size)`; empty without forms."""

    def take(self, rows: Index) -> "Regions":
        """Some of the regions, repeated as often as they are named."""
        return Regions(
            [box.take(rows) for box in self.boxes],
            [error.take(rows, axis=0) for error in self.errors],
            [None if planes is None else planes.take(rows) for planes in self.planes],
            [None if lines is None else lines.take(rows) for lines in self.lines],
            [form.take(rows, axis=0) for form in self.forms],
        )


class Graph:
    """A network's nodes from the bounds' point of view."""

    def __init__(self, network: Network) -> None:
        """Prepare what does not depend on a region."""
        self.nodes = network.nodes
        self.widest = max(node.size for node in network.nodes)
        count = len(network.nodes)
        self.sizes = [node.size for node in network.nodes]
        self.rounding = [
            gamma(size + sum(network.sizes(node.inputs)) + count + 16, UNIT64)
            for node, size in zip(network.nodes, self.sizes, strict=True)
        ]
        """Own roundings of each node: gamma64(sizes + nodes + 16)."""
        self.consumers: list[list[int]] = [[] for _ in range(count)]
        self.curved = [False] * count
        """Whether an operator that is not linear lies behind the node."""
        for index, node in enumerate(network.nodes):
            for source in node.inputs:
                self.consumers[source].append(index)
                self.curved[index] |= self.curved[source]
            if not isinstance(node.operator, Linear | None):
                self.curved[index] = True
        self.absorbed = [
            index not in network.outputs and self._only_elementwise(index) for index in range(count)
        ]
        """Whether the one consumer's lines carry the node's error term, which saves a pass."""
        ends = np.cumsum(network.sizes(network.inputs))
        starts = ends - network.sizes(network.inputs)
        self.slices = {
            node: slice(int(start), int(end))
            for node, start, end in zip(network.inputs, starts, ends, strict=True)
        }
        self._units: dict[int, tuple[Array, ...]] = {}

    def chained(self, index: int) -> bool:
        """Whether intervals of a linear node may be loose because another one lies behind it."""
        return any(self.nodes[source].operator is not None for source in self.nodes[index].inputs)

    def wanted(self, index: int, box: Box) -> NDArray[np.bool_] | None:
        """`(N, size)`: the elements whose intervals matter to a consumer; None for none."""
        wanted: NDArray[np.bool_] | None = None
        for consumer in self.consumers[index]:
            operator = self.nodes[consumer].operator
            if isinstance(operator, Linear):
                continue
            bent = (
                operator.bent(box) if isinstance(operator, Elementwise) else box.upper > box.lower
            )
            wanted = bent if wanted is None else wanted | bent
        return wanted

    def units(self, index: int) -> tuple[Array, ...] | None:
        """The transposed map of a linear node as matrices `(size, n_i)`; None for a large one."""
        node = self.nodes[index]
        if not isinstance(node.operator, Linear) or node.size > _CACHED_UNITS:
            return None
        if index not in self._units:
            self._units[index] = node.operator.transpose(np.eye(node.size))
        return self._units[index]

    def _only_elementwise(self, index: int) -> bool:
        consumers = self.consumers[index]
        if self.nodes[index].operator is None or len(consumers) != 1:
            return False
        return isinstance(self.nodes[consumers[0]].operator, Elementwise)
