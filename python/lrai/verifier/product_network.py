"""Several networks as one, over inputs that they may share."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.network import Network, Node
from lrai.verifier.operators.linear import Select


def join(networks: Sequence[Network], feeds: Sequence[NDArray[np.intp]]) -> Network:
    """One network with one input vector and the outputs of all, side by side.

    `feeds[i]` `(n_in_i,)` says which elements of the common input vector network i reads.
    """
    size = 1 + max(int(feed.max()) for feed in feeds)
    if len(networks) == 1 and np.array_equal(feeds[0], np.arange(size)):
        return networks[0]
    nodes = [Node("inputs", None, (), (size,))]
    outputs: list[int] = []
    for number, (network, feed) in enumerate(zip(networks, feeds, strict=True)):
        places: dict[int, int] = {}
        ends = np.cumsum(network.sizes(network.inputs))
        pieces = dict(zip(network.inputs, np.split(feed, ends[:-1]), strict=True))
        for index, node in enumerate(network.nodes):
            if node.operator is None and np.array_equal(pieces[index], np.arange(size)):
                places[index] = 0
                continue
            if node.operator is None:
                select = Select(pieces[index].astype(np.intp), (size,), np.empty(0))
                moved = replace(node, operator=select, inputs=(0,))
            else:
                moved = replace(node, inputs=tuple(places[source] for source in node.inputs))
            places[index] = len(nodes)
            nodes.append(replace(moved, name=f"{node.name} of model {number + 1}"))
        outputs += [places[index] for index in network.outputs]
    digests = tuple(digest for network in networks for digest in network.digests)
    return Network(tuple(nodes), (0,), tuple(outputs), digests)
