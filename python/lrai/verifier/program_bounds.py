"""Linear programs where the ascent of slopes does not prove a region: when, and what they prove."""

import time
from typing import Final

import numpy as np

from lrai.verifier.backward import Choice
from lrai.verifier.linear_program import LinearProgram, Proposal, is_supported
from lrai.verifier.operators.base import Array
from lrai.verifier.regions import Index
from lrai.verifier.relu_bounds import Region, ReluBox, Signs
from lrai.verifier.slope_ascent import MARGIN, Ascended

_EVERY: Final = 4
"""Levels of a tree of which one has programs in any case: regions far down may all be empty."""


class ProgramBounds:
    """Proves what an ascent leaves open, in the regions of one box."""

    def __init__(self, box: ReluBox) -> None:
        """Prepare for a box whose network is `is_supported`."""
        self._box, self._program = box, LinearProgram(box)
        self._spent_s, self._closed = 0.0, 0

    @staticmethod
    def of(box: ReluBox) -> "ProgramBounds | None":
        """The same; None for other networks."""
        return ProgramBounds(box) if is_supported(box.bounds.graph) else None

    def pays(self, depth: int, each_s: float) -> bool:
        """Whether to try a region, where the search takes so many seconds for each region.

        Programs are used wherever those before have saved more time than they took, a region for
        each that they closed.
        """
        return depth % _EVERY == 0 or self._spent_s < self._closed * each_s

    def prove(self, region: Region, signs: Signs, weights: Array, found: Ascended) -> Array:
        """Prove claim after claim in `found`, the worst first, until one stays open.

        A claim that stays open keeps what the ascent chose, from which regions inside begin better:
        a dual solution is a corner, made for this region alone. Only the point is taken, where a
        counterexample may be. Returns the weights of the conditions with which these bounds hold:
        what was given, or all 0 where the region is empty.
        """
        start = time.perf_counter()
        self._program.describe(region.boxes, signs)
        for _ in range(len(weights)):
            worst = int(found.bound.argmin())
            if found.bound[worst] > MARGIN:
                break
            proposal = self._program.propose(weights[worst])
            if proposal is None:
                break
            claims, given = np.array([worst]), weights
            if proposal.is_empty:
                claims, given = np.arange(len(weights)), np.zeros_like(weights)
            else:
                found.x[worst] = proposal.x
            bound = self._bound(region, signs, given[worst], proposal)
            if not bound > MARGIN:
                break
            _take(found, claims, bound, proposal)
            weights = given
        self._closed += bool(found.bound.min() > MARGIN)
        self._spent_s += time.perf_counter() - start
        return weights

    def _bound(self, region: Region, signs: Signs, row: Array, proposal: Proposal) -> float:
        """What a proposal proves of `row @ outputs`; nan for nothing."""
        box, betas = self._box, {}
        for relu, values in proposal.betas.items():
            sign = signs[box.slices[relu]]
            if sign.any():
                betas[box.sources[relu]] = -values[None].astype(np.float64) * sign
        slopes = {relu: levels[None] / 255.0 for relu, levels in proposal.slopes.items()}
        regions = box.bounds.relax(region.boxes)
        return float(box.bounds.lower(row[None], regions, None, Choice(slopes, betas))[0])


def _take(found: Ascended, claims: Index, bound: float, proposal: Proposal) -> None:
    found.bound[claims] = bound
    for relu, levels in proposal.slopes.items():
        found.slopes[relu] = found.slopes[relu].copy()
        found.slopes[relu][claims] = levels
        if relu in found.betas:
            found.betas[relu] = found.betas[relu].copy()
            found.betas[relu][claims] = proposal.betas[relu]
