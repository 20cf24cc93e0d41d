"""Two networks as one that answers with their difference."""

import numpy as np

from lrai.verifier.network import Network, Node
from lrai.verifier.operators.base import Linear, Operator
from lrai.verifier.operators.difference import ElementDifference, LinearDifference
from lrai.verifier.operators.linear import Scale, Sum
from lrai.verifier.operators.quantize import FakeQuantize
from lrai.verifier.operators.relu import Relu


def product(f: Network, q: Network) -> Network:
    """The network of both, side by side on the same inputs, with outputs f(x) - q(x)."""
    nodes = list(f.nodes)
    place = _append(nodes, f, q)
    outputs = []
    for left, right in zip(f.outputs, q.outputs, strict=True):
        outputs.append(len(nodes))
        nodes.append(_minus(nodes, left, place[right]))
    return Network(tuple(nodes), f.inputs, tuple(outputs), f.digests + q.digests)


def _append(nodes: list[Node], f: Network, q: Network) -> dict[int, int]:
    """Add the nodes of q, which reads the inputs of f, and return where they came to lie."""
    place = dict(zip(q.inputs, f.inputs, strict=True))
    for index, node in enumerate(q.nodes):
        if node.operator is None:
            continue
        place[index] = len(nodes)
        inputs = tuple(place[source] for source in node.inputs)
        nodes.append(Node(f"served/{node.name}", node.operator, inputs, node.shape))
    return place


def _minus(nodes: list[Node], left: int, right: int) -> Node:
    operator = Sum((1.0, -1.0), nodes[left].size)
    operator.terms = 0  # nobody computes the difference: only the two networks are deployed
    return Node("difference", operator, (left, right), nodes[left].shape)


def differential(f: Network, q: Network) -> Network | None:
    """The same outputs by way of the differences of all layers; None where the two are no chains
    of the same linear operators and Relu, q with any QuantizeLinear and DequantizeLinear between.
    """
    pairs = _pairs(f, q)
    if pairs is None:
        return None
    nodes = list(f.nodes)
    place = _append(nodes, f, q)
    z, y = f.inputs[0], q.inputs[0]
    size = nodes[z].size
    zero = Scale(np.zeros(size), np.zeros(size), terms=0)
    nodes.append(Node("difference", zero, (z,), nodes[z].shape))
    d = len(nodes) - 1
    for left, right in pairs:
        operator = _difference(f, q, left, right)
        linear = isinstance(operator, LinearDifference)
        sources = (d, place[y]) if linear else (z, place[y], d)
        z, y = z if left is None else left, right
        nodes.append(Node("difference", operator, sources, nodes[z].shape))
        d = len(nodes) - 1
    return Network(tuple(nodes), f.inputs, (d,), f.digests + q.digests)


def _difference(f: Network, q: Network, left: int | None, right: int) -> Operator:
    first = None if left is None else f.nodes[left].operator
    second = q.nodes[right].operator
    if isinstance(first, Linear) and isinstance(second, Linear):
        return LinearDifference(first, second)
    assert isinstance(first, Relu | None)  # _pairs makes no others
    assert isinstance(second, Relu | FakeQuantize)
    return ElementDifference(first, second)


def _pairs(f: Network, q: Network) -> list[tuple[int | None, int]] | None:
    """Which node of f each node of q stands for, in order; None: q has it to itself."""
    lefts, rights = _chain(f), _chain(q)
    if lefts is None or rights is None:
        return None
    pairs: list[tuple[int | None, int]] = []
    waiting = list(lefts)
    for number, right in enumerate(rights):
        left = waiting[0] if waiting else None
        first = None if left is None else f.nodes[left].operator
        second = q.nodes[right].operator
        following = q.nodes[rights[number + 1]].operator if number + 1 < len(rights) else None
        if isinstance(second, FakeQuantize):
            # A quantizer that begins at zero has swallowed the Relu before it.
            swallowed = isinstance(first, Relu) and not isinstance(following, Relu)
            pairs.append((left if swallowed else None, right))
            waiting = waiting[swallowed:]
        elif _alike(first, second) and left is not None:
            if f.nodes[left].size != q.nodes[right].size:
                return None
            pairs.append((left, right))
            waiting = waiting[1:]
        else:
            return None
    return None if waiting else pairs


def _alike(first: Operator | None, second: Operator | None) -> bool:
    linear = isinstance(first, Linear) and isinstance(second, Linear)
    return linear or (isinstance(first, Relu) and isinstance(second, Relu))


def _chain(network: Network) -> list[int] | None:
    """The nodes between input and output, if each one has the one before it as its only input."""
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        return None
    last, found = network.inputs[0], []
    for index, node in enumerate(network.nodes):
        if node.operator is None:
            continue
        if node.inputs != (last,):
            return None
        found.append(index)
        last = index
    return found if last == network.outputs[0] else None
