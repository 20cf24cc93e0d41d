"""A network as the verifier sees it: nodes in topological order, values as flat float64 vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.operators.base import Operator

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Node:
    """One value of the network and the operator that makes it; inputs have none."""

    name: str
    """The ONNX node's name, or its output's where it has none: what messages show."""
    operator: Operator | None
    inputs: tuple[int, ...]
    """Indices of earlier nodes."""
    shape: tuple[int, ...]
    """Shape without the batch dimension; values are flattened row-major."""

    @property
    def size(self) -> int:
        """Elements of one row."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Network:
    """A graph of nodes. All inputs together form one flat vector, and so do all outputs."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    """Nodes without operator, in the order of the model's inputs."""
    outputs: tuple[int, ...]
    digests: tuple[str, ...]
    """SHA-256 of each model file that the network was made from, in hexadecimal."""

    @property
    def input_size(self) -> int:
        """Elements of one flat input vector."""
        return sum(self.nodes[index].size for index in self.inputs)

    @property
    def output_size(self) -> int:
        """Elements of one flat output vector."""
        return sum(self.nodes[index].size for index in self.outputs)

    def values(self, x: Array) -> list[Array]:
        """The value of every node, `(N, size)` each, for flat inputs `x` `(N, input_size)`."""
        found: list[Array] = []
        parts = iter(np.split(x, np.cumsum(self.sizes(self.inputs))[:-1], axis=1))
        for node in self.nodes:
            if node.operator is None:
                found.append(next(parts))
            else:
                found.append(node.operator.evaluate(*(found[index] for index in node.inputs)))
        return found

    def evaluate(self, x: Array) -> Array:
        """Flat outputs `(N, output_size)` of flat inputs `(N, input_size)`, in float64."""
        values = self.values(x)
        return np.concatenate([values[index] for index in self.outputs], axis=1)

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Elements of one row of each of these nodes."""
        return [self.nodes[index].size for index in indices]
