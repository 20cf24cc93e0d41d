"""Branch and bound over the signs of Relus: for networks of many inputs.

Depth first. In each region the boxes of all nodes are computed again, then the claims are bounded
with optimised slopes and split multipliers (beta-CROWN, Wang et al. 2021), where gradients are not
enough by linear programs. Between regions, gradient descent looks for a counterexample, from fresh
points and from minimisers of the bounds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lrai.verifier.attack import Attack, AttackSettings
from lrai.verifier.backward import Choice, Trace
from lrai.verifier.bounds import Arithmetic
from lrai.verifier.branching import candidates
from lrai.verifier.certificate import Tree
from lrai.verifier.network import Array, Network
from lrai.verifier.operators.base import Box
from lrai.verifier.program_bounds import ProgramBounds
from lrai.verifier.property import Case
from lrai.verifier.regions import Index
from lrai.verifier.relu_bounds import Region, ReluBox, Signs
from lrai.verifier.sign_proof import SignProof, SignProofs
from lrai.verifier.slope_ascent import MARGIN, Ascended, Levels, Multipliers, Start, Steps, ascend
from lrai.verifier.smt import ask
from lrai.verifier.verdict import Witness

Confirm = Callable[[Case, Array], Witness | None]
_STEP_S: Final = 0.2
_ATTACK: Final = AttackSettings(starts=120, steps=50)
_ATTACK_S, _ATTACK_SHARE = 1.5, 0.15
"""Descent gets this much time at first, and then this share of all time."""
_QUICK, _LONG = Steps(12), Steps(300, 0.1, 0.1, 0.99)
_CANDIDATES: Final = 16
_LEAST_GAIN: Final = 1e-6
_EVERY: Final = 2
"""So many splits below the last time, the slopes behind a region's boxes are optimised again."""
_ADAPT: Final = Steps(8)
_LEAST_BETTER: Final = 0.02
"""By what share of its distance to a proof a region must come nearer for that to be kept."""
_TABLE_BYTES: Final = 2**27
_SIDES: Final = (-1, 1)
"""In the order of a split's children."""
_MAX_REALS: Final = 64
MAX_HIDDEN: Final = 6_000
"""Neurons of a network that it takes: the slopes of the root's bounds are 2 H^2 bytes."""


@dataclass(frozen=True)
class _Open:
    """A region that waits."""

    node: int
    """In the certificate's tree."""
    signs: Signs
    path: tuple[int, ...]
    """Split neurons from the root."""
    depth: int
    """So many of them halved a region; the others follow from these."""
    slopes: Levels
    """`(claims, H)`: where the ascent begins, as the betas."""
    betas: Multipliers
    bound: float
    """The worst bound of its parent."""
    boxes: list[Box]
    """Of all nodes."""
    table: int
    """Which levels made them: 0 for the root's, or the number of a table of the tree."""


class ReluSplit:
    """A search over cases that share one box of inputs; `step` until nothing is open."""

    def __init__(self, network: Network, cases: Sequence[Case], arithmetic: Arithmetic) -> None:
        """Open the cases' box; the first steps bound its root."""
        self.cases = tuple(cases)
        self._box = ReluBox.root(network, cases, arithmetic)
        self._kept = np.arange(self._box.hidden)
        self._root = Region([], {})
        self._turns = self._box.optimising(self._root)
        self._is_ready = False
        self.tree = Tree(cases, self._box.hidden)
        self.tree.refined = self._box.levels
        self._hidden = self._box.hidden
        counts = [len(case.offset) for case in cases]
        claim = np.repeat(np.arange(len(cases)), counts)
        self._members = claim == np.arange(len(cases))[:, None]
        self._weights = np.zeros(self._members.shape)
        self._attack = Attack(network, cases, _ATTACK)
        self._program: ProgramBounds | None = None
        self._spent_s = self._attack_s = 0.0
        self._seen: list[Array] = []
        self._stack: list[_Open] = []
        self._stuck: list[_Open] = []
        self.boxes = 0
        self.share = 0.0
        """Share of the regions that is proved; a split counts as two halves."""
        self.worst = np.inf
        """The smallest bound that closed a region."""

    @property
    def open(self) -> bool:
        """Whether there is work left."""
        return not self._is_ready or bool(self._stack)

    @property
    def stuck(self) -> bool:
        """Whether a region is left in which all neurons are split."""
        return bool(self._stuck)

    @property
    def waiting(self) -> int:
        """How many regions are open."""
        return len(self._stack)

    @property
    def bound(self) -> float:
        """The worst bound of an open region's parent; infinite where none is open."""
        if not self._is_ready:
            return -np.inf
        return min((one.bound for one in (*self._stack, *self._stuck)), default=np.inf)

    def step(self, confirm: Confirm) -> Witness | None:
        """Look at regions for a fifth of a second; a witness ends the search."""
        start = time.perf_counter()
        witness = None
        if self._attack_s < _ATTACK_S + _ATTACK_SHARE * self._spent_s:
            witness = self._descend(confirm)
            self._attack_s += time.perf_counter() - start
        while not self._is_ready and time.perf_counter() - start < _STEP_S:
            if next(self._turns, None) is None:
                self._begin()
        while witness is None and self._stack and time.perf_counter() - start < _STEP_S:
            witness = self._visit(self._stack.pop(), confirm)
        self._spent_s += time.perf_counter() - start
        return witness

    def holds_over_the_reals(self) -> bool:
        """Whether one look at all open regions proves them without the deployed rounding."""
        waiting = [*self._stack, *self._stuck]
        if not self._is_ready or len(waiting) > _MAX_REALS:
            return False
        box = ReluBox(self._box.network, self._box.box, "real")
        box.levels = self._box.levels
        for one in waiting:
            region = box.region(one.signs)
            if region is not None and self._bound(box, region, one, _QUICK).bound.min() <= 0:
                return False
        return True

    # ---- regions -------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Open the root, with the condition of each claim that is nearest to a proof."""
        self._is_ready = True
        self._box, self._kept = self._box.reduced(self._root)
        self.tree.neurons = self._kept
        box = self._box
        self._program = ProgramBounds.of(box)
        region = box.region(np.zeros(box.hidden, np.int8))
        if region is None:
            raise AssertionError("the root has no split that could empty it")
        count = self._members.shape[1]
        lower = box.bounds.lower(np.eye(count), box.bounds.relax(region.boxes))
        lower = np.where(self._members & ~np.isnan(lower), lower, -np.inf)
        best = lower.argmax(axis=1) if count else np.zeros(0, np.intp)
        self._weights[np.arange(len(best)), best] = 1.0
        levels = np.tile(box.default_levels(region), (len(self.cases), 1))
        none: Multipliers = np.zeros(levels.shape, np.float32)
        signs = np.zeros(box.hidden, np.int8)
        self._proofs = SignProofs(box)
        self._stack = [_Open(0, signs, (), 0, levels, none, -np.inf, region.boxes, 0)]

    def _visit(self, one: _Open, confirm: Confirm) -> Witness | None:
        self.boxes += 1
        if one.depth and one.depth % _EVERY == 0:
            one = self._adapted(one)
            one = one if one.bound == np.inf else self._signed(one)
            if one.bound == np.inf:
                return None
        region = Region(one.boxes, {})
        found = self._bound(self._box, region, one, _QUICK)
        neurons: Index = np.zeros(0, np.intp)
        weights = self._programmed(one, region, found)
        if found.bound.min() <= MARGIN:
            rows, worst = self._traced(region, one.signs, found)
            self._box.trace(region, self._levels(one.table))
            neurons = candidates(self._box, region, rows, _CANDIDATES)
            if not len(neurons):
                found = self._bound(self._box, region, self._moved(one, found), _LONG)
                weights = self._programmed(one, region, found, is_last=True)
            else:
                self._seen = [*self._seen[-7:], found.x[worst]]
                witness = self._ask(found.x[found.bound <= MARGIN], confirm)
                if witness is not None:
                    return witness
        moved, bound = self._moved(one, found), float(found.bound.min())
        if bound > MARGIN:
            self._close(moved, bound, weights)
        elif not len(neurons):
            return self._decide(moved, region, confirm)
        else:
            self._split(moved, neurons, np.flatnonzero(found.bound <= MARGIN))
        return None

    def _programmed(
        self, one: _Open, region: Region, found: Ascended, *, is_last: bool = False
    ) -> Array:
        """Close claims by linear programs where that pays; the weights with which bounds hold."""
        program, each_s = self._program, self._spent_s / self.boxes
        if program is None or found.bound.min() > MARGIN:
            return self._weights
        if not is_last and not program.pays(one.depth, each_s):
            return self._weights
        return program.prove(region, one.signs, self._weights, found)

    def _adapted(self, one: _Open) -> _Open:
        """The region with levels of its own, for itself and all regions in it, if they help.

        It is closed, and its bound is infinite, where they show that it is empty.
        """
        tables = self.tree.tables
        if sum(len(table) * self._hidden for table in tables) > _TABLE_BYTES:
            return one
        levels = self._box.adapted(one.signs, self._levels(one.table), _ADAPT)
        boxes, is_empty = self._box.regions(one.signs[None], levels)
        bound = float(min(self._look(one, boxes, np.arange(len(self.cases)))[0], 0.0))
        if not is_empty[0] and bound < one.bound - _LEAST_BETTER * one.bound:
            return one
        tables.append(levels)
        found = replace(one, boxes=boxes, table=len(tables), bound=bound)
        return self._close(found, np.inf) if is_empty[0] else found

    def _signed(self, one: _Open) -> _Open:
        """The region with the signs that follow from its splits; closed if these contradict."""
        box, levels = self._box, self._levels(one.table)
        for relu in box.relus:
            found = list(self._proofs.find(relu, one.boxes, one.signs, levels))
            for proof in found:
                one = self._ruled_out(one, proof)
                if one.bound == np.inf:
                    return one
            if found:
                boxes, is_empty = box.regions(one.signs[None], levels)
                one = replace(one, boxes=boxes)
                if is_empty[0]:
                    return self._close(one, np.inf)
        return one

    def _ruled_out(self, one: _Open, proof: SignProof) -> _Open:
        """The side of a split that is left when a proof closes the other one."""
        slopes: Levels = np.repeat(proof.slopes[None], len(self.cases), axis=0)
        betas: Multipliers = np.repeat(proof.betas[None], len(self.cases), axis=0)
        no_claim = np.zeros_like(self._weights)
        if one.signs[proof.neuron] == -proof.sign:
            return self._close(replace(one, slopes=slopes, betas=betas), np.inf, no_claim)
        nodes = self.tree.split(one.node, -2 - int(self._kept[proof.neuron]))
        sides = [replace(one, node=node, path=(*one.path, proof.neuron)) for node in nodes]
        empty, rest = sides if proof.sign > 0 else reversed(sides)
        self._write(replace(empty, slopes=slopes, betas=betas), no_claim)
        signs = one.signs.copy()
        signs[proof.neuron] = proof.sign
        return replace(rest, signs=signs)

    def _levels(self, table: int) -> Levels:
        """The levels of a region: the root's, or those that were adapted."""
        return self.tree.tables[table - 1] if table else self._box.levels

    def _decide(self, one: _Open, region: Region, confirm: Confirm) -> Witness | None:
        """Ask Z3 where all neurons have signs: what is left is linear."""
        for claim, members in enumerate(self._members):
            exact = ask(self._box, region, np.flatnonzero(members))
            if exact.is_proved:
                continue
            self._stuck.append(one)
            return None if exact.point is None else confirm(self.cases[claim], exact.point)
        self.tree.close_exactly(one.node, one.table)
        self.share += 2.0**-one.depth
        self.worst = min(self.worst, 0.0)
        return None

    def _bound(self, box: ReluBox, region: Region, one: _Open, steps: Steps) -> Ascended:
        """Bound all claims: with what the parent chose, then better where that is not enough."""
        regions = box.bounds.relax(region.boxes)
        every = np.arange(len(self.cases))
        found = ascend(box.bounds, regions, self._weights, self._start(one, every), Steps(1))
        rest = np.flatnonzero(found.bound <= MARGIN)
        if len(rest):
            start = self._start(one, rest)
            better = ascend(box.bounds, regions, self._weights[rest], start, steps)
            found.bound[rest], found.x[rest] = better.bound, better.x
            for relu in box.relus:
                found.slopes[relu] = found.slopes[relu].copy()
                found.slopes[relu][rest] = better.slopes[relu]
                if relu in better.betas:
                    found.betas[relu][rest] = better.betas[relu]
        return found

    def _start(self, one: _Open, claims: Index) -> Start:
        parts = self._box.slices
        split = [relu for relu, part in parts.items() if one.signs[part].any()]
        return Start(
            {relu: one.slopes[claims, part] for relu, part in parts.items()},
            {relu: one.betas[claims, parts[relu]] for relu in split},
            {relu: one.signs[parts[relu]].astype(np.float64) for relu in split},
        )

    def _moved(self, one: _Open, found: Ascended) -> _Open:
        """The region with what its ascent found."""
        slopes, betas = one.slopes.copy(), one.betas.copy()
        for relu, part in self._box.slices.items():
            slopes[:, part] = found.slopes[relu]
            if relu in found.betas:
                betas[:, part] = found.betas[relu]
        return replace(one, slopes=slopes, betas=betas, bound=float(found.bound.min()))

    def _traced(
        self, region: Region, signs: Signs, found: Ascended
    ) -> tuple[dict[int, Array], int]:
        """What the open claims' rows are at every Relu, and the claim with the worst bound."""
        box, rest = self._box, np.flatnonzero(found.bound <= MARGIN)
        choice = Choice(
            {relu: found.slopes[relu][rest] / 255.0 for relu in box.relus},
            {
                box.sources[relu]: -values[rest].astype(np.float64) * signs[box.slices[relu]]
                for relu, values in found.betas.items()
            },
        )
        trace = Trace()
        box.bounds.lower(self._weights[rest], box.bounds.relax(region.boxes), None, choice, trace)
        return {relu: trace.rows[relu] for relu in box.relus}, int(found.bound.argmin())

    def _split(self, one: _Open, neurons: Index, claims: Index) -> None:
        """Split the neuron that gains most, by one look at both sides of all (Bunel et al. 2020).

        The product of the gains prefers splits that help on both sides.
        """
        signs = np.repeat(one.signs[None], 2 * len(neurons), axis=0)
        signs[np.arange(len(signs)), np.repeat(neurons, 2)] = np.tile(_SIDES, len(neurons))
        boxes, is_empty = self._box.regions(signs, self._levels(one.table))
        worst = np.where(is_empty, 0.0, np.minimum(self._look(one, boxes, claims), 0.0))
        gains = np.maximum(worst - one.bound, -_LEAST_GAIN * one.bound)
        best = int((gains[::2] * gains[1::2]).argmax())
        neuron = int(neurons[best])
        children = self.tree.split(one.node, -2 - int(self._kept[neuron]))
        for side, node in enumerate(children):
            place = 2 * best + side
            child = _Open(
                node, signs[place], (*one.path, neuron), one.depth + 1, one.slopes,
                one.betas, float(worst[place]), _of(boxes, place), one.table,
            )  # fmt: skip
            if is_empty[place]:
                self._close(child, np.inf)
            else:
                self._stack.append(child)

    def _look(self, one: _Open, boxes: list[Box], claims: Index) -> Array:
        """`(N,)`: the worst bound of some claims in N regions, with the slopes of their parent."""
        start, box = self._start(one, claims), self._box
        regions, count = box.bounds.relax(boxes), len(boxes[-1].lower)
        rows = np.repeat(self._weights[None, claims], count, axis=0)
        choice = Choice(
            {relu: levels[None] / 255.0 for relu, levels in start.slopes.items()},
            {
                box.sources[relu]: np.repeat(-betas[None] * start.signs[relu], count, axis=0)
                for relu, betas in start.betas.items()
            },
        )
        found: Array = box.bounds.lower(rows, regions, None, choice).min(axis=1, initial=np.inf)
        return np.where(np.isnan(found), -np.inf, found)

    def _close(self, one: _Open, bound: float, weights: Array | None = None) -> _Open:
        """Count and write a leaf; returns it with an infinite bound."""
        self._write(one, self._weights if weights is None else weights)
        self.share += 2.0**-one.depth
        self.worst = min(self.worst, bound)
        return replace(one, bound=np.inf)

    def _write(self, one: _Open, weights: Array) -> None:
        """Write a leaf; where `weights` are all 0 its multipliers show that it is empty."""
        slopes = np.zeros((len(self.cases), self._hidden), np.uint8)
        slopes[:, self._kept] = one.slopes
        betas = one.betas[:, list(one.path)].astype(np.float64)
        self.tree.close(one.node, weights, slopes, betas, one.table)

    # ---- counterexamples -----------------------------------------------------------------------

    def _descend(self, confirm: Confirm) -> Witness | None:
        starts = np.stack(self._seen) if self._seen else None
        for claim, x in self._attack.round(starts):
            witness = confirm(self.cases[claim], x)
            if witness is not None:
                return witness
        return None

    def _ask(self, points: Array, confirm: Confirm) -> Witness | None:
        values = self._box.network.evaluate(points)
        for claim, members in enumerate(self._members):
            margin = values[:, members].max(axis=1, initial=-np.inf)
            row = int(margin.argmin())
            if margin[row] <= 0:
                witness = confirm(self.cases[claim], points[row])
                if witness is not None:
                    return witness
        return None


def _of(boxes: Sequence[Box], place: int) -> list[Box]:
    """Copies of the boxes of one region, so that those of the others can go."""
    return [
        box if len(box.lower) == 1 else Box(box.lower[[place]], box.upper[[place]]) for box in boxes
    ]
