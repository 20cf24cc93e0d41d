"""A network without the hidden neurons that are zero all over a box."""

from collections.abc import Sequence

import numpy as np

from lrai.verifier.network import Network, Node
from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.base import Box, Operator
from lrai.verifier.operators.relu import Relu
from lrai.verifier.regions import Graph, Index


def without_zeros(
    network: Network, graph: Graph, boxes: Sequence[Box]
) -> tuple[Network, dict[int, Index]]:
    """The smaller network, and for every Relu which of its elements were kept.

    `boxes` `(1, size)` per node contain the values. Error terms stay those of the whole sums,
    because the deployed network computes them.
    """
    nodes, kept = list(network.nodes), {}
    for relu, node in enumerate(network.nodes):
        if not isinstance(node.operator, Relu):
            continue
        source = node.inputs[0]
        keep = np.flatnonzero(boxes[source].upper[0] > 0)
        if not len(keep) or not _is_chain(network, graph, relu):
            keep = np.arange(node.size)
        kept[relu] = keep
        if len(keep) == node.size:
            continue
        before, behind = nodes[source], nodes[graph.consumers[relu][0]]
        nodes[source] = _with(before, _part(before.operator, columns=keep), len(keep))
        nodes[relu] = _with(node, node.operator, len(keep))
        nodes[graph.consumers[relu][0]] = _with(behind, _part(behind.operator, rows=keep))
    return Network(tuple(nodes), network.inputs, network.outputs, network.digests), kept


def _is_chain(network: Network, graph: Graph, relu: int) -> bool:
    """Whether an affine map of one value is before the Relu, and another one behind it."""
    source, consumers = network.nodes[relu].inputs[0], graph.consumers[relu]
    if len(consumers) != 1 or graph.consumers[source] != [relu]:
        return False
    around = [network.nodes[source], network.nodes[consumers[0]]]
    is_inside = relu not in network.outputs and source not in network.outputs
    return is_inside and all(
        isinstance(node.operator, Affine) and len(node.inputs) == 1 for node in around
    )


def _with(node: Node, operator: Operator, size: int | None = None) -> Node:
    return Node(node.name, operator, node.inputs, node.shape if size is None else (size,))


def _part(
    operator: Operator | None, columns: Index | None = None, rows: Index | None = None
) -> Affine:
    assert isinstance(operator, Affine)
    weights, bias = operator.weights[0], operator.bias
    if columns is not None:
        weights, bias = weights[:, columns], bias[columns]
    if rows is not None:
        weights = weights[rows]
    found = Affine((np.ascontiguousarray(weights),), bias)
    found.terms = operator.terms
    return found
