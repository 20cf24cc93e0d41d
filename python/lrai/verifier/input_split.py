"""Branch and bound over boxes of inputs: complete for networks of few inputs.

Boxes are bounded many at a time. One that is proved becomes a leaf of the certificate's tree, any
other is cut in halves across the input to which the conditions are most sensitive. Every box has
to be closed for a proof, in whatever order; the order here, worst bound first, serves the search
for a counterexample, until too many boxes are open: then the newest come first.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.attack import Objective
from lrai.verifier.backward import Trace
from lrai.verifier.blame import blame
from lrai.verifier.bounds import Arithmetic, Bounds, conditions
from lrai.verifier.certificate import Tree
from lrai.verifier.frontier import Frontier
from lrai.verifier.network import Array, Network
from lrai.verifier.operators.base import Box
from lrai.verifier.operators.relu import Relu
from lrai.verifier.optimise import default_slopes, improve
from lrai.verifier.property import Case
from lrai.verifier.regions import Index, Regions
from lrai.verifier.verdict import Witness

Confirm = Callable[[Case, Array], Witness | None]
_CONFIRMATIONS = 8
"""Candidates of one batch that are replayed: a replay is slow next to a bound."""
_BATCH_ELEMENTS = 2**18
_BEST_FIRST = 200_000
_STEPS = 12
_CHASED, _CHASE_STEPS = 64, 8
"""Points of a batch that go downhill, and how far."""
_STEP_S = 0.25
_LOOK_S = 0.5
_TRIED = 64
"""Optimised boxes without a proof that make a worse bound hopeless."""
_EASY = 2000
"""Boxes after which a property counts as hard, and slopes are optimised too."""


@dataclass
class Bounded:
    """What the bounds say of N boxes and C claims."""

    weights: Array
    """`(N, C, conditions)`: how a claim's conditions are weighted."""
    bound: Array
    """`(N, C)`: the lower bound of the weighted conditions."""
    levels: NDArray[np.uint8] | None = None
    """`(N, C, hidden)`: lower slopes in steps of 1/255; None for the default ones."""


class InputSplit:
    """A search over cases that share one box of inputs; `step` until nothing is open."""

    def __init__(self, network: Network, cases: Sequence[Case], arithmetic: Arithmetic) -> None:
        """Open the cases' box."""
        self.cases = tuple(cases)
        self.bounds = Bounds(conditions(network, cases), arithmetic)
        counts = [len(case.offset) for case in cases]
        claim = np.repeat(np.arange(len(cases)), counts)
        self._objective = Objective(network, cases)
        self._members = claim == np.arange(len(cases))[:, None]
        """`(claims, conditions)`: which conditions a claim consists of."""
        self._relus = [
            index for index, node in enumerate(network.nodes) if isinstance(node.operator, Relu)
        ]
        hidden = sum(network.sizes(self._relus))
        self.tree = Tree(cases, hidden)
        self._widths = cases[0].upper - cases[0].lower
        self.frontier = Frontier(cases[0].lower, cases[0].upper, _BEST_FIRST)
        total = sum(node.size for node in network.nodes)
        self._largest = int(np.clip(_BATCH_ELEMENTS // total, 1, 512))
        self.batch = min(self._largest, 64)
        self._step_s = 0.0
        self._reach = -np.inf
        """Bounds below this one are not optimised."""
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

    @property
    def waiting(self) -> int:
        """How many boxes are open."""
        return len(self.frontier)

    @property
    def bound(self) -> float:
        """The smallest bound of an open box's parent; infinite where none is open."""
        return self.frontier.bound

    def holds_over_the_reals(self) -> bool:
        """Whether one look at all open boxes, as far as a moment lets, proves them in the reals."""
        if self._step_s > 4 * _STEP_S:
            return False
        self.bounds.arithmetic = "real"
        end = time.monotonic() + _LOOK_S
        parts = self._stuck
        while parts or self.open:
            if time.monotonic() > end:
                return False
            if not parts:
                parts = [self.frontier.pop(self.batch)[0]]
            lower = np.concatenate([part.lower for part in parts])
            upper = np.concatenate([part.upper for part in parts])
            found = self._weigh(self.bounds.regions(Box(lower, upper)), len(lower))
            if not (found.bound > 0).all():
                return False
            parts = []
        return True

    def step(self, confirm: Confirm) -> Witness | None:
        """Bound one batch, close or split each of its boxes; a witness ends the search."""
        begin = time.thread_time()
        box, nodes = self.frontier.pop(self.batch)
        self.boxes += len(nodes)
        regions = self.bounds.regions(box)
        found = self._weigh(regions, len(nodes))
        bound = found.bound.min(axis=1, initial=np.inf)
        proved = bound > 0
        for row in np.flatnonzero(proved):
            levels = None if found.levels is None else found.levels[row]
            self.tree.close(int(nodes[row]), found.weights[row], levels)
        self.worst = min(self.worst, float(bound[proved].min(initial=np.inf)))
        self.share += float(self._volume(box.take(np.flatnonzero(proved))).sum())
        rest = np.flatnonzero(~proved)
        witness = None
        if len(rest):
            box = box.take(rest)
            claim = found.bound[rest].argmin(axis=1)
            trace, regions = Trace(), regions.take(rest)
            self.bounds.lower(found.weights[rest, claim], regions, None, None, trace)
            assert trace.coefficients is not None
            points = np.where(trace.coefficients >= 0, box.lower, box.upper)
            witness = self._look(points, (box.lower + box.upper) / 2, claim, confirm)
            widths = box.upper - box.lower
            if regions.forms:
                score = blame(self.bounds.network, regions, trace)
            else:
                score = np.abs(trace.coefficients) * widths
            score = np.where(widths > 0, score + np.finfo(np.float64).tiny * widths, -1)
            self._split(box, nodes[rest], bound[rest], score.argmax(axis=1))
        self._pace(time.thread_time() - begin)
        return witness

    def _pace(self, seconds: float) -> None:
        """Keep a step short, so that a time-out is kept and progress is seen."""
        self._step_s = seconds
        if seconds > 2 * _STEP_S:
            self.batch = max(1, self.batch // 2)
        elif seconds < _STEP_S:
            self.batch = min(self._largest, 2 * self.batch)

    def _weigh(self, regions: Regions, count: int) -> Bounded:
        """Each claim's best condition or, where that proves nothing, the best weighted sum."""
        size = self._members.shape[1]
        units = np.broadcast_to(np.eye(size), (count, size, size))
        lower = self.bounds.lower(units, regions)[:, None]
        lower = np.where(self._members & ~np.isnan(lower), lower, -np.inf)
        weights = np.zeros_like(lower)
        if size:
            np.put_along_axis(weights, lower.argmax(axis=2)[:, :, None], 1.0, axis=2)
        found = Bounded(weights, lower.max(axis=2, initial=-np.inf))
        hard = self.boxes > _EASY
        several = self._members.sum(axis=1) > (not hard)
        row, claim = np.nonzero((found.bound <= 0) & (found.bound >= self._reach) & several)
        if len(row):
            self._improve(found, regions, row, claim, hard=hard)
        return found

    def _improve(
        self, found: Bounded, regions: Regions, row: Index, claim: Index, *, hard: bool
    ) -> None:
        """Optimise the weights of some pairs of box and claim, and the slopes of hard ones."""
        start = found.weights[row, claim] + self._members[claim]
        start /= start.sum(axis=1, keepdims=True)
        chosen = replace(regions, forms=[]).take(row)
        better = improve(self.bounds, chosen, start, _STEPS, sloped=hard)
        before = found.bound[row, claim]
        self._learn(before, before[better.lower > 0])
        gain = better.lower > before
        row, claim = row[gain], claim[gain]
        found.bound[row, claim] = better.lower[gain]
        found.weights[row, claim] = better.weights[gain]
        if better.slopes:
            default = default_slopes(self.bounds, regions)
            levels = np.concatenate([default[index] for index in self._relus], axis=1)
            found.levels = np.repeat(levels[:, None], len(self.cases), axis=1)
            new = np.concatenate([better.slopes[index] for index in self._relus], axis=1)
            found.levels[row, claim] = new[gain]

    def _learn(self, tried: Array, proved: Array) -> None:
        """Learn from which bounds on it pays to optimise: twice the worst that it proved lately."""
        if len(proved):
            worst = 2 * float(np.quantile(proved, 0.02))
            self._reach = min(worst, 0.98 * self._reach) if np.isfinite(self._reach) else worst
        elif np.isfinite(self._reach):
            self._reach *= 0.95
        elif len(tried) >= _TRIED:
            self._reach = float(np.quantile(tried, 0.75))

    def _look(
        self, corners: Array, centres: Array, claim: Index, confirm: Confirm
    ) -> Witness | None:
        """Replay points that seem to be unsafe: minimisers, centres and what lies downhill."""
        points = np.concatenate([corners, centres])
        claims = np.concatenate([claim, claim])
        margin = self._objective.measure(points, claims)
        near = np.argsort(margin)[:_CHASED]
        radius = np.abs(corners - centres)[near % len(centres)]
        points, claims = points[near], claims[near]
        for step in range(_CHASE_STEPS):
            margin, gradient = self._objective.descend(points, claims)
            if (margin <= 0).any() or step + 1 == _CHASE_STEPS:
                break
            moved = points - radius * np.sign(gradient) * (2.0 / (1 + step))
            points = np.clip(moved, self.cases[0].lower, self.cases[0].upper)
        for row in np.argsort(margin)[:_CONFIRMATIONS]:
            if margin[row] > 0:
                break
            witness = confirm(self.cases[claims[row]], points[row])
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

    def _volume(self, box: Box) -> Array:
        wide = self._widths > 0
        share: Array = ((box.upper - box.lower)[:, wide] / self._widths[wide]).prod(axis=1)
        return share
