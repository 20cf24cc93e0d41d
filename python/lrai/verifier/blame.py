"""Which input to split: the one that most of a bound's looseness comes from."""

import numpy as np

from lrai.verifier.backward import Trace
from lrai.verifier.network import Network
from lrai.verifier.operators.base import Array, Elementwise, Linear
from lrai.verifier.regions import Regions

_TINY = np.finfo(np.float64).tiny


def blame(network: Network, regions: Regions, trace: Trace) -> Array:
    """`(N, n_in)`: what each input contributes to the looseness of one bound per region.

    An elementwise node loses its row times the distance of its lines. The loss is divided among the
    inputs as they reach the node: through the node's form, and through what was lost before it,
    which was divided in the same way.
    """
    total = np.zeros((len(regions.errors[0]), network.input_size))
    spreads: list[Array] = []  # (N, n_in, size): the part of a form's rest that an input causes
    for index, node in enumerate(network.nodes):
        shape = (*total.shape, node.size)
        if isinstance(node.operator, Linear):
            flat = (spreads[i].reshape(-1, spreads[i].shape[2]) for i in node.inputs)
            spreads.append(node.operator.spread(*flat).reshape(shape))
            continue
        lines = regions.lines[index]
        if not isinstance(node.operator, Elementwise) or lines is None:
            spreads.append(np.zeros(shape))
            continue
        source = node.inputs[0]
        box = regions.boxes[source]
        share = np.abs(regions.forms[source][:, 1:]) + spreads[source]
        share /= np.maximum(share.sum(axis=1, keepdims=True), _TINY)
        low, high, middle = (
            np.abs(lines.half_slope * x + lines.half_constant)
            for x in (box.lower, box.upper, np.clip(0, box.lower, box.upper))
        )
        if index in trace.rows:
            lost = np.maximum(low, high) * np.abs(trace.rows[index])
            total += np.matmul(share, lost[:, :, None])[:, :, 0]
        steep = np.abs(lines.slope - lines.half_slope)
        spreads.append(spreads[source] * steep[:, None] + share * middle[:, None])
    return total
