"""Lower slopes and split multipliers that make a bound better: alpha- and beta-CROWN.

A bound is linear in what its backward pass sends through a Relu, so that one forward replay of the
chosen lines at the minimising input (`optimise.replay`) gives all derivatives (Xu et al. 2021, Wang
et al. 2021, without automatic differentiation).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.backward import Choice, Trace
from lrai.verifier.bounds import Bounds
from lrai.verifier.operators.base import Array
from lrai.verifier.optimise import minimiser, replay
from lrai.verifier.regions import Regions

Levels = NDArray[np.uint8]
"""Slopes in steps of 1/255: what a certificate holds, and therefore what is optimised."""
Multipliers = NDArray[np.float32]
MARGIN = 1e-6
"""A bound counts as positive above it: the checker rounds elsewhere than the search."""


@dataclass(frozen=True)
class Steps:
    """How long and how fast slopes and multipliers ascend."""

    count: int
    slope_rate: float = 0.25
    beta_rate: float = 0.1
    decay: float = 0.9
    hasty: bool = True
    """Whether to end where the worst row of a region with splits is out of reach."""


@dataclass(frozen=True)
class Start:
    """Where an ascent begins, per Relu."""

    slopes: dict[int, Levels]
    """`(R, size)`."""
    betas: dict[int, Multipliers] = field(default_factory=dict)
    """`(R, size)`, >= 0; absent where nothing is split."""
    signs: dict[int, Array] = field(default_factory=dict)
    """`(size,)` for the Relus in `betas`: 1 for >= 0, -1 for <= 0, 0 for no split."""


@dataclass
class Ascended:
    """The best that was seen, row by row."""

    bound: Array
    slopes: dict[int, Levels]
    betas: dict[int, Multipliers]
    x: Array
    """`(R, n_in)`: where the linear bound is smallest."""


def ascend(bounds: Bounds, regions: Regions, rows: Array, start: Start, steps: Steps) -> Ascended:
    """Improve lower bounds of `rows @ outputs` `(R, n_out)` over one region.

    It ends early where all rows are proved, or, if `steps` say so, where the worst one is out of
    reach: where twice what the first steps gained is not enough.
    """
    relus = tuple(start.slopes)
    sources = {relu: bounds.network.nodes[relu].inputs[0] for relu in relus}
    unstable = {relu: _unstable(regions, sources[relu]) for relu in relus}
    slopes = {relu: levels / 255.0 for relu, levels in start.slopes.items()}
    betas = {relu: values.astype(np.float64) for relu, values in start.betas.items()}
    adam = {(relu, kind): _Adam() for relu in relus for kind in ("slope", "beta")}
    best = Ascended(
        np.full(len(rows), -np.inf),
        dict(start.slopes),
        dict(start.betas),
        np.zeros((len(rows), bounds.network.input_size)),
    )
    first = -np.inf
    for step in range(steps.count):
        levels = {relu: np.rint(slopes[relu] * 255) for relu in relus}
        rounded = {relu: betas[relu].astype(np.float32) for relu in betas}
        choice = Choice(
            {relu: levels[relu] / 255.0 for relu in relus},
            {sources[relu]: -rounded[relu] * start.signs[relu] for relu in betas},
        )
        trace = Trace()
        bound = bounds.lower(rows, regions, None, choice, trace)
        assert trace.coefficients is not None
        _keep(best, bound, levels, rounded, minimiser(regions, bounds, trace.coefficients))
        worst = float(best.bound.min())
        first = worst if step == 0 else first
        hopeless = step == 3 and worst + 2 * (worst - first) < 0 and bool(betas) and steps.hasty
        if worst > MARGIN or step + 1 == steps.count or hopeless:
            break
        values = replay(bounds, regions, trace)
        rate = steps.decay**step
        for relu in relus:
            z = values[sources[relu]]
            gradient = np.where(unstable[relu], np.maximum(trace.rows[relu], 0) * z, 0)
            move = adam[relu, "slope"].step(gradient) * (rate * steps.slope_rate)
            slopes[relu] = np.clip(slopes[relu] + move, 0, 1)
            if relu in betas:
                gradient = -z * start.signs[relu]
                move = adam[relu, "beta"].step(gradient) * (rate * steps.beta_rate)
                betas[relu] = np.maximum(betas[relu] + move, 0)
    return best


def _unstable(regions: Regions, source: int) -> NDArray[np.bool_]:
    box = regions.boxes[source]
    found: NDArray[np.bool_] = (box.lower < 0) & (box.upper > 0)
    return found


def _keep(
    best: Ascended,
    bound: Array,
    levels: dict[int, Array],
    betas: dict[int, Multipliers],
    x: Array,
) -> None:
    better = bound > best.bound
    chosen = better[:, None]
    best.bound = np.where(better, bound, best.bound)
    best.x = np.where(chosen, x, best.x)
    for relu, found in levels.items():
        best.slopes[relu] = np.where(chosen, found.astype(np.uint8), best.slopes[relu])
    for relu, values in betas.items():
        best.betas[relu] = np.where(chosen, values, best.betas[relu])


class _Adam:
    """Directions of size about 1 from both moments of a gradient (Kingma and Ba 2015)."""

    def __init__(self) -> None:
        self._mean: Array | float = 0.0
        self._square: Array | float = 0.0
        self._count = 0

    def step(self, gradient: Array) -> Array:
        self._count += 1
        self._mean = self._mean + 0.1 * (gradient - self._mean)
        self._square = self._square + 0.001 * (gradient * gradient - self._square)
        mean = self._mean / (1 - 0.9**self._count)
        square = self._square / (1 - 0.999**self._count)
        direction: Array = mean / (np.sqrt(square) + 1e-12)
        return direction
