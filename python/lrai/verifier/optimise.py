"""Better multipliers for a bound, by its closed-form gradient.

A backward pass gives a bound and the point where it is attained. One forward pass of that point
through the lines that the backward pass chose gives the derivative in whatever may be chosen: the
weight of a condition, the lower slope of an unstable Relu (alpha-CROWN, Xu et al. 2021), the
multiplier of a split (beta-CROWN, Wang et al. 2021). No automatic differentiation is needed.
"""

from dataclasses import dataclass

import numpy as np

from lrai.verifier.backward import Choice, Trace
from lrai.verifier.bounds import Bounds
from lrai.verifier.network import Array
from lrai.verifier.operators.base import Elementwise
from lrai.verifier.regions import Regions


@dataclass(frozen=True)
class Optimised:
    """The best choice that was seen, row by row."""

    lower: Array
    """`(R,)`."""
    weights: Array
    """`(R, conditions)`, non-negative."""
    choice: Choice


def minimiser(regions: Regions, bounds: Bounds, coefficients: Array) -> Array:
    """`(R, n_in)`: the corner of each row's box where the linear bound is smallest."""
    lower = np.concatenate([regions.boxes[i].lower for i in bounds.network.inputs], axis=1)
    upper = np.concatenate([regions.boxes[i].upper for i in bounds.network.inputs], axis=1)
    return np.where(coefficients >= 0, lower, upper)


def replay(bounds: Bounds, regions: Regions, choice: Choice, trace: Trace) -> list[Array]:
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
            planes = bounds.planes(index, regions, choice)
            above = rows >= 0
            slope = np.where(above, planes.lower_slope, planes.upper_slope)
            constant = np.where(above, planes.lower_constant, planes.upper_constant)
            values.append(slope * inputs[0] + constant)
        else:
            boxes = tuple(regions.boxes[source] for source in node.inputs)
            values.append(node.operator.replay(rows, boxes, inputs))
    return values


def improve_weights(
    bounds: Bounds, regions: Regions, weights: Array, steps: int
) -> tuple[Array, Array]:
    """Ascend in the weights of the conditions, `(R, M)` with zeros for those that stay out.

    Row r belongs to region r. Multiplicative steps on the simplex (exponentiated gradient, Kivinen
    and Warmuth 1997); returns the best bounds `(R,)` and their weights, in steps of 1/64.
    """
    best, best_weights = np.full(len(weights), -np.inf), weights
    current = weights
    for step in range(steps):
        trace = Trace()
        quantised = np.maximum(np.round(current * 64), current > 0) / 64
        lower = bounds.lower(quantised, regions, None, None, trace)
        better = lower > best
        best = np.where(better, lower, best)
        best_weights = np.where(better[:, None], quantised, best_weights)
        if step + 1 == steps:
            break
        gradient = replay(bounds, regions, Choice(), trace)[bounds.network.outputs[0]]
        gradient = gradient - (gradient * current).sum(axis=1, keepdims=True)
        scale = np.abs(np.where(current > 0, gradient, 0)).max(axis=1, keepdims=True)
        rate = 1.5 / (1 + step / 2)
        current = current * np.exp(rate * gradient / np.maximum(scale, np.finfo(np.float64).tiny))
        current = current / current.sum(axis=1, keepdims=True)
        current = np.where((weights > 0) & (current < 1 / 256), 1 / 256, current)
    return best, best_weights
