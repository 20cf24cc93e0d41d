"""Better multipliers for a bound, by its closed-form gradient.

A backward pass gives a bound and the point where it is attained. One forward pass of that point
through the lines that the backward pass chose gives the derivative in whatever may be chosen: the
weight of a condition, the lower slope of an unstable Relu (alpha-CROWN, Xu et al. 2021), the
multiplier of a split (beta-CROWN, Wang et al. 2021). No automatic differentiation is needed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.backward import Choice, Trace
from lrai.verifier.bounds import Bounds
from lrai.verifier.network import Array
from lrai.verifier.operators.base import Elementwise
from lrai.verifier.operators.relu import Relu
from lrai.verifier.regions import Index, Regions


@dataclass
class Improved:
    """The best choice that was seen, row by row."""

    lower: Array
    """`(R,)`."""
    weights: Array
    """`(R, conditions)`, non-negative."""
    slopes: dict[int, NDArray[np.uint8]]
    """`(R, size)` per Relu, in steps of 1/255: what a certificate holds."""


def minimiser(regions: Regions, bounds: Bounds, coefficients: Array) -> Array:
    """`(R, n_in)`: the corner of each row's box where the linear bound is smallest."""
    lower = np.concatenate([regions.boxes[i].lower for i in bounds.network.inputs], axis=1)
    upper = np.concatenate([regions.boxes[i].upper for i in bounds.network.inputs], axis=1)
    return np.where(coefficients >= 0, lower, upper)


def replay(bounds: Bounds, regions: Regions, trace: Trace) -> list[Array]:
    """The value of every node `(R, size)` at the minimiser, along the lines of the bound."""
    assert trace.coefficients is not None
    x = minimiser(regions, bounds, trace.coefficients)
    values: list[Array] = []
    for index, node in enumerate(bounds.network.nodes):
        if node.operator is None:
            values.append(x[:, bounds.graph.slices[index]])
            continue
        inputs = tuple(values[source] for source in node.inputs)
        rows = trace.rows.get(index)
        if rows is None:
            values.append(node.operator.evaluate(*inputs))
        elif isinstance(node.operator, Elementwise):
            lines, sign = trace.lines[index], np.where(rows >= 0, 1.0, -1.0)
            slope = lines.slope + sign * lines.half_slope
            values.append(slope * inputs[0] + lines.constant + sign * lines.half_constant)
        else:
            boxes = tuple(regions.boxes[source] for source in node.inputs)
            values.append(node.operator.replay(rows, boxes, inputs))
    return values


def improve(
    bounds: Bounds, regions: Regions, weights: Array, steps: int, *, sloped: bool
) -> Improved:
    """Ascend in the weights of the conditions `(R, M)`, zeros stay out, and in the lower slopes.

    Row r belongs to region r. Weights take multiplicative steps on the simplex (exponentiated
    gradient, Kivinen and Warmuth 1997) and are rounded to 1/64; slopes take signed steps. Rows that
    are above 0 have done enough.
    """
    slopes = default_slopes(bounds, regions) if sloped else {}
    best = Improved(
        np.full(len(weights), -np.inf),
        weights.copy(),
        {index: levels.copy() for index, levels in slopes.items()},
    )
    current, active = weights, np.arange(len(weights))
    for step in range(steps):
        trace = Trace()
        rounded = np.round(current * 64) / 64
        choice = Choice({index: levels / 255 for index, levels in slopes.items()})
        lower = bounds.lower(rounded, regions, None, choice, trace)
        _keep(best, active, Improved(lower, rounded, slopes))
        left = np.flatnonzero(~(best.lower[active] > 0))
        if step + 1 == steps or not len(left):
            break
        values = replay(bounds, regions, trace)
        rate = 1 / (1 + step / 2)
        current = _reweigh(current, values[bounds.network.outputs[0]], 1.5 * rate)
        slopes = {
            index: _tilt(levels, index, (bounds, regions, trace, values), rate)
            for index, levels in slopes.items()
        }
        if 2 * len(left) <= len(active):
            active, current, regions = active[left], current[left], regions.take(left)
            slopes = {index: levels[left] for index, levels in slopes.items()}
    return best


def default_slopes(bounds: Bounds, regions: Regions) -> dict[int, NDArray[np.uint8]]:
    """The lower slopes of every Relu without a choice, `(N, size)` in steps of 1/255."""
    found = {}
    for index, node in enumerate(bounds.network.nodes):
        planes = regions.planes[index]
        if isinstance(node.operator, Relu) and planes is not None:
            found[index] = (planes.lower_slope * 255).astype(np.uint8)
    return found


def _keep(best: Improved, active: Index, found: Improved) -> None:
    """Take over what is better; row r of `found` is row `active[r]` of `best`."""
    better = found.lower > best.lower[active]
    rows = active[better]
    best.lower[rows] = found.lower[better]
    best.weights[rows] = found.weights[better]
    for index, levels in found.slopes.items():
        best.slopes[index][rows] = levels[better]


def _reweigh(current: Array, gradient: Array, rate: float) -> Array:
    """One multiplicative step; what takes part stays above 1/256."""
    part = current > 0
    centred = np.where(part, gradient - (gradient * current).sum(axis=1, keepdims=True), 0)
    scale = np.maximum(np.abs(centred).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    raised = np.where(part, np.maximum(current * np.exp(rate * centred / scale), 1 / 256), 0)
    found: Array = raised / raised.sum(axis=1, keepdims=True)
    return found


def _tilt(
    levels: NDArray[np.uint8],
    index: int,
    seen: tuple[Bounds, Regions, Trace, list[Array]],
    rate: float,
) -> NDArray[np.uint8]:
    """One signed step of a node's slopes, where a row takes the lower line."""
    bounds, _, trace, values = seen
    gradient = np.maximum(trace.rows[index], 0) * values[bounds.network.nodes[index].inputs[0]]
    moved = levels + np.sign(gradient) * (255 * 0.5 * rate)
    return np.clip(np.round(moved), 0, 255).astype(np.uint8)
