"""Branch and bound over boxes of inputs: complete for networks of few inputs.

Boxes are bounded many at a time. One that is proved becomes a leaf of the certificate's tree, any
other is cut in halves across the input to which the conditions are most sensitive. Every box has
to be closed for a proof, in whatever order; the order here, worst bound first, serves the search
for a counterexample, until too many boxes are open: then the newest come first.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lrai.verifier.backward import Trace
from lrai.verifier.bounds import Arithmetic, Bounds, conditions
from lrai.verifier.certificate import Tree
from lrai.verifier.frontier import Frontier
from lrai.verifier.network import Array, Network
from lrai.verifier.operators.base import Box
from lrai.verifier.operators.relu import Relu
from lrai.verifier.optimise import improve_weights
from lrai.verifier.property import Case
from lrai.verifier.regions import Index, Regions
from lrai.verifier.verdict import Witness

Confirm = Callable[[Case, Array], Witness | None]
_CONFIRMATIONS = 8
"""Candidates of one batch that are replayed: a replay is slow next to a bound."""
_BATCH_ELEMENTS = 2**18
_BEST_FIRST = 200_000
_STEPS = 8


class InputSplit:
    """A search over cases that share one box of inputs; `step` until nothing is open."""

    def __init__(self, network: Network, cases: Sequence[Case], arithmetic: Arithmetic) -> None:
        """Open the cases' box."""
        self.cases = tuple(cases)
        self.bounds = Bounds(conditions(network, cases), arithmetic)
        counts = [len(case.offset) for case in cases]
        claim = np.repeat(np.arange(len(cases)), counts)
        self._members = claim == np.arange(len(cases))[:, None]
        """`(claims, conditions)`: which conditions a claim consists of."""
        hidden = sum(node.size for node in network.nodes if isinstance(node.operator, Relu))
        self.tree = Tree(cases, hidden)
        self._widths = cases[0].upper - cases[0].lower
        self.frontier = Frontier(cases[0].lower, cases[0].upper, _BEST_FIRST)
        self.batch = int(np.clip(_BATCH_ELEMENTS // sum(n.size for n in network.nodes), 1, 512))
        self.boxes = 0
        self.share = 0.0
        """Share of the box's volume that is proved."""
        self.worst = np.inf
        """The smallest bound that closed a box."""
        self._stuck: list[Box] = []

    @property
    def open(self) -> bool:
        """Whether there is work left."""
        return len(self.frontier) > 0

    @property
    def stuck(self) -> bool:
        """Whether a box is left that is too small to be split."""
        return bool(self._stuck)

    def holds_over_the_reals(self) -> bool:
        """Whether one look at all open boxes proves them without the deployed rounding."""
        box, _ = self.frontier.pop(self.batch)
        if self.open:
            return False
        lower = np.concatenate([box.lower, *(part.lower for part in self._stuck)])
        upper = np.concatenate([box.upper, *(part.upper for part in self._stuck)])
        self.bounds.arithmetic = "real"
        _, bound = self._weigh(self.bounds.regions(Box(lower, upper)), len(lower))
        return bool((bound > 0).all())

    def step(self, confirm: Confirm) -> Witness | None:
        """Bound one batch, close or split each of its boxes; a witness ends the search."""
        box, nodes = self.frontier.pop(self.batch)
        self.boxes += len(nodes)
        regions = self.bounds.regions(box)
        weights, bound = self._weigh(regions, len(nodes))
        worst = np.argmin(bound, axis=1)
        proved = bound.min(axis=1) > 0
        for row in np.flatnonzero(proved):
            self.tree.close(int(nodes[row]), weights[row])
        self.worst = min(self.worst, float(bound[proved].min(initial=np.inf)))
        self.share += float(self._volume(box.lower[proved], box.upper[proved]).sum())
        rest = np.flatnonzero(~proved)
        if not len(rest):
            return None
        trace = Trace()
        rows = weights[rest, worst[rest]]
        self.bounds.lower(rows, regions, rest, None, trace)
        assert trace.coefficients is not None
        box = box.take(rest)
        points = np.where(trace.coefficients >= 0, box.lower, box.upper)
        witness = self._look(np.concatenate([points, (box.lower + box.upper) / 2]), confirm)
        if witness is not None:
            return witness
        chords = self.bounds.sensitivity(rows, regions, rest)
        score = (np.abs(chords) + 0.25 * np.abs(trace.coefficients)) * (box.upper - box.lower)
        self._split(box, nodes[rest], bound.min(axis=1)[rest], score.argmax(axis=1))
        return None

    def _weigh(self, regions: Regions, count: int) -> tuple[Array, Array]:
        """Weights `(N, claims, conditions)` and the bounds `(N, claims)` that they give."""
        conditions_count = self._members.shape[1]
        units = np.broadcast_to(np.eye(conditions_count), (count, *2 * (conditions_count,)))
        lower = self.bounds.lower(units, regions)[:, None]
        lower = np.where(self._members & ~np.isnan(lower), lower, -np.inf)
        bound = lower.max(axis=2, initial=-np.inf)
        weights = np.zeros_like(lower)
        if conditions_count:
            np.put_along_axis(weights, lower.argmax(axis=2)[:, :, None], 1.0, axis=2)
        row, claim = np.nonzero((bound <= 0) & (self._members.sum(axis=1) > 1))
        if len(row):
            start = weights[row, claim] + self._members[claim]
            start /= start.sum(axis=1, keepdims=True)
            found, better = improve_weights(self.bounds, regions.take(row), start, _STEPS)
            gain = found > bound[row, claim]
            bound[row[gain], claim[gain]] = found[gain]
            weights[row[gain], claim[gain]] = better[gain]
        return weights, bound

    def _look(self, points: Array, confirm: Confirm) -> Witness | None:
        """Replay the points that seem to meet all conditions of a claim."""
        values = self.bounds.network.evaluate(points)
        for claim, members in enumerate(self._members):
            margin = values[:, members].max(axis=1, initial=-np.inf)
            for row in np.argsort(margin)[:_CONFIRMATIONS]:
                if margin[row] > 0:
                    break
                witness = confirm(self.cases[claim], points[row])
                if witness is not None:
                    return witness
        return None

    def _split(self, box: Box, nodes: Index, bound: Array, axis: Index) -> None:
        rows = np.arange(len(nodes))
        at = (box.lower[rows, axis] + box.upper[rows, axis]) / 2
        inside = (at > box.lower[rows, axis]) & (at < box.upper[rows, axis])
        if not inside.all():
            self._stuck.append(box.take(rows[~inside]))
            rows = rows[inside]
        first = [self.tree.split(int(nodes[r]), int(axis[r]), float(at[r])) for r in rows]
        children = np.array(first, np.intp).reshape(-1, 2)
        upper, lower = box.upper[rows], box.lower[rows]
        middle = np.arange(len(rows)), axis[rows]
        upper[middle], lower[middle] = at[rows], at[rows]
        self.frontier.push(Box(box.lower[rows], upper), bound[rows], children[:, 0])
        self.frontier.push(Box(lower, box.upper[rows]), bound[rows], children[:, 1])

    def _volume(self, lower: Array, upper: Array) -> Array:
        wide = self._widths > 0
        share: Array = ((upper - lower)[:, wide] / self._widths[wide]).prod(axis=1)
        return share
