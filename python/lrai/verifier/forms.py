"""Forward bounds of a few inputs: each value is centre + coefficients @ t +- radius, t in [-1, 1].

An affine form with one interval for everything else (compare DeepZ, Singh et al. 2018, which keeps
a term per Relu). It costs one product per node and tells which neurons need a backward bound.
"""

import numpy as np

from lrai.verifier.network import Network
from lrai.verifier.operators.base import Array, Box, Elementwise, Linear
from lrai.verifier.regions import UNIT64, Graph, Regions, gamma


class Forms:
    """The forms of the nodes so far, `(N, 1 + d, size)` with the centre first, and `(N, size)`."""

    def __init__(self, network: Network, graph: Graph, box: Box) -> None:
        """Begin with N boxes of flat inputs, `(N, d)` each."""
        self._nodes, self._graph = network.nodes, graph
        self._size = network.input_size
        self._rounding = gamma(network.input_size + len(network.nodes) + 16, UNIT64)
        self._radius = (box.upper - box.lower) / 2
        self.lines: list[Array] = []
        """Centre and coefficients of each node's form."""
        self._rests: list[Array] = []

    def intersect(self, index: int, regions: Regions) -> Box:
        """Append the form of a node and return its box, tightened where the form is tighter."""
        node, box = self._nodes[index], regions.boxes[index]
        if isinstance(node.operator, Linear):
            self._linear(index, node.operator, regions)
        elif isinstance(node.operator, Elementwise):
            self._elementwise(index, node.operator, regions)
        else:
            self._interval(box)
            return box
        line, rest = self.lines[-1], self._rests[-1]
        reach = np.abs(line[:, 1:]).sum(axis=1) + rest
        reach += self._rounding * (np.abs(line[:, 0]) + reach)
        return Box(
            np.maximum(box.lower, line[:, 0] - reach), np.minimum(box.upper, line[:, 0] + reach)
        )

    def start(self, index: int, box: Box) -> None:
        """Append the form of an input node."""
        part = self._graph.slices[index]
        line = np.zeros((len(box.lower), 1 + self._size, box.lower.shape[1]))
        line[:, 0] = (box.lower + box.upper) / 2
        for column, row in enumerate(range(part.start, part.stop)):
            line[:, 1 + row, column] = self._radius[:, row]
        self.lines.append(line)
        self._rests.append(self._rounding * box.magnitude)

    def _total(self, source: int) -> Array:
        """The largest absolute value that a form can take."""
        total: Array = np.abs(self.lines[source]).sum(axis=1)
        return total + self._rests[source]

    def _linear(self, index: int, operator: Linear, regions: Regions) -> None:
        node = self._nodes[index]
        count = len(regions.boxes[index].lower)
        flat = (self.lines[source].reshape(-1, self._graph.sizes[source]) for source in node.inputs)
        line = operator.map(*flat).reshape(count, 1 + self._size, self._graph.sizes[index])
        line[:, 0] += operator.bias
        sizes = sum(self._graph.sizes[source] for source in node.inputs)
        rounding = self._rounding + gamma(sizes, UNIT64)
        rest = operator.spread(
            *(self._rests[source] + rounding * self._total(source) for source in node.inputs)
        )
        self.lines.append(line)
        self._rests.append(rest + rounding * np.abs(operator.bias) + regions.errors[index])

    def _elementwise(self, index: int, operator: Elementwise, regions: Regions) -> None:
        """One slope for both lines: op(x) - slope * x lies between two constants."""
        source = self._nodes[index].inputs[0]
        box = regions.boxes[source]
        slope, above = _chord(operator, box)
        planes = operator.planes(box, slope)
        difference = planes.lower_slope - slope
        below = planes.lower_constant + np.minimum(difference * box.lower, difference * box.upper)
        line = self.lines[source] * slope[:, None]
        line[:, 0] += (below + above) / 2
        rest = np.abs(slope) * self._rests[source] + (above - below) / 2
        rest += self._rounding * (
            np.abs(slope) * self._total(source) + np.abs(above) + np.abs(below)
        )
        self.lines.append(line)
        self._rests.append(rest + regions.errors[index])

    def _interval(self, box: Box) -> None:
        line = np.zeros((len(box.lower), 1 + self._size, box.lower.shape[1]))
        line[:, 0] = (box.lower + box.upper) / 2
        self.lines.append(line)
        self._rests.append((box.upper - box.lower) / 2 + self._rounding * box.magnitude)


def _chord(operator: Elementwise, box: Box) -> tuple[Array, Array]:
    """Slope and constant of the upper lines."""
    planes = operator.planes(box)
    return planes.upper_slope, planes.upper_constant
