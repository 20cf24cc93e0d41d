"""The leaves of a tree: where its splits lead, and whether bounds close them."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.checker.bounds import Bounds, State
from lrai.verifier.checker.certificate import Tree
from lrai.verifier.checker.graph import Array, RefusedError

_MAX_FIXED: Final = 1 << 24
_ROW_ELEMENTS: Final = 1 << 19


@dataclass(frozen=True)
class Leaves:
    """Some leaves of one tree, or halves of them."""

    lower: Array
    """`(boxes, n_in)`."""
    upper: Array
    box: NDArray[np.intp]
    """`(leaves,)`, ascending."""
    origin: NDArray[np.intp]
    """`(leaves,)`: the leaf's place in the tree."""
    fixed: list[tuple[int, ...]]
    """For each leaf, from the root: neuron k whose input is >= 0 as k, <= 0 as -1 - k."""
    betas: NDArray[np.intp]
    """`(leaves,)`: where the leaf's multipliers begin."""

    def only(self, chosen: NDArray[np.intp]) -> "Leaves":
        """Some of the leaves."""
        fixed = [self.fixed[leaf] for leaf in chosen]
        parts = (self.box[chosen], self.origin[chosen], fixed, self.betas[chosen])
        return Leaves(self.lower, self.upper, *parts)


def replay(tree: Tree, hidden: int) -> Leaves:
    """Follow the splits; RefusedError where they are no tree or leave their box."""
    root = (tree.lower, tree.upper)
    stack: list[tuple[tuple[Array, Array], tuple[int, ...]]] = [(root, ())]
    found = []
    left = _MAX_FIXED
    for axis, at in zip(tree.axis.tolist(), tree.at.tolist(), strict=True):
        if not stack or left < 0:
            raise RefusedError("a tree has too many nodes")
        box, fixed = stack.pop()
        left -= len(fixed)
        neuron = -2 - axis
        if axis == -1:
            found.append((box, fixed))
        elif 0 <= axis < tree.lower.size and box[0][axis] <= at <= box[1][axis]:
            is_cut = np.arange(tree.lower.size) == axis
            stack.append(((np.where(is_cut, at, box[0]), box[1]), fixed))
            stack.append(((box[0], np.where(is_cut, at, box[1])), fixed))
        elif 0 <= neuron < hidden and neuron not in fixed and -1 - neuron not in fixed:
            stack += [(box, (*fixed, neuron)), (box, (*fixed, -1 - neuron))]
        else:
            raise RefusedError("a tree has a split outside of its box or of the network")
    if stack:
        raise RefusedError("a tree has too few nodes")
    boxes = {id(box): box for box, _ in found}
    place = {key: index for index, key in enumerate(boxes)}
    places = np.array([place[id(one)] for one, _ in found])
    depth = np.array([len(fixed) for _, fixed in found]) * tree.choice.shape[1]
    if tree.betas.size not in (0, depth.sum()):
        raise RefusedError("a tree has another number of multipliers than splits")
    lower, upper = (np.array(side) for side in zip(*boxes.values(), strict=True))
    begins = depth.cumsum() - depth
    fixed_of = [fixed for _, fixed in found]
    every = Leaves(lower, upper, places, np.arange(places.size), fixed_of, begins)
    return every.only(np.argsort(places, kind="stable"))


def close(tree: Tree, bounds: Bounds, leaves: Leaves) -> Leaves:
    """Bound every leaf; the halves of those that stay open. RefusedError if one fixes neurons."""
    refined = tree.refined / 255.0 if tree.refined.size else None
    boxes = max(_ROW_ELEMENTS // bounds.graph.slots, 1)
    count = max(boxes // tree.choice.shape[1], 1)
    halves = []
    for first in range(0, len(leaves.lower), boxes):
        box = slice(first, first + boxes)
        state = bounds.regions(leaves.lower[box], leaves.upper[box], refined)
        start, end = np.searchsorted(leaves.box, (first, first + boxes))
        for begin in range(start, end, count):
            part = leaves.only(np.arange(begin, min(begin + count, end)))
            is_open, axes = _examine(tree, bounds, state, replace(part, box=part.box - first))
            for leaf in np.flatnonzero(is_open):
                if part.fixed[leaf]:
                    raise RefusedError(
                        f"the bound does not close leaf {part.origin[leaf]} of a tree"
                    )
                halves += _halve(part, int(leaf), int(axes[leaf]))
    lower = np.array([one for one, _, _ in halves]).reshape(-1, tree.lower.size)
    upper = np.array([one for _, one, _ in halves]).reshape(lower.shape)
    origin = np.array([one for _, _, one in halves], np.intp)
    place = np.arange(origin.size)
    return Leaves(lower, upper, place, origin, [()] * origin.size, place)


def _halve(leaves: Leaves, leaf: int, axis: int) -> list[tuple[Array, Array, int]]:
    box, origin = leaves.box[leaf], int(leaves.origin[leaf])
    lower, upper = leaves.lower[box], leaves.upper[box]
    is_cut = np.arange(lower.size) == axis
    middle = np.where(is_cut, np.clip((lower + upper) / 2, lower, upper), upper)
    return [(lower, middle, origin), (np.where(is_cut, middle, lower), upper, origin)]


def _examine(
    tree: Tree, bounds: Bounds, state: State, leaves: Leaves
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which leaves stay open, and the input that matters most to each."""
    claims = tree.choice.shape[1]
    repeated = np.repeat(leaves.box, claims)
    regions: NDArray[np.intp] | slice = repeated
    rows = np.zeros((leaves.box.size * claims, bounds.graph.slots))
    is_in = tree.claim == np.arange(claims)[:, None]
    weights = tree.weights[tree.choice[leaves.origin]] * is_in
    rows[:, -tree.offset.size :] = weights.reshape(len(rows), -1)
    slope = tree.slope[leaves.origin].reshape(-1, 1)
    slopes = None
    if (slope >= 0).any():
        default = state.below[repeated][:, bounds.hidden_outputs]
        slopes = np.where(slope >= 0, tree.slopes[slope[:, 0]] / 255.0, default)
    charge, is_empty = np.zeros(len(rows)), np.zeros(len(leaves.box), bool)
    widths = np.repeat(
        (state.upper - state.lower)[leaves.box][:, bounds.graph.inputs], claims, axis=0
    )
    if any(leaves.fixed):
        state, regions = state.take(repeated), slice(None)
        is_empty = _fix(tree, bounds, state, leaves, (rows, charge))
    bound, inputs = bounds.lower(rows, state, regions, slopes)
    margin = (bound - charge).reshape(-1, claims)
    is_open = ~((margin > 0).all(axis=1) | is_empty)
    influence = (np.abs(inputs) * widths).reshape(len(margin), claims, -1).sum(axis=1)
    return is_open, influence.argmax(axis=1)


def _fix(
    tree: Tree, bounds: Bounds, state: State, leaves: Leaves, rows: tuple[Array, Array]
) -> NDArray[np.bool_]:
    """Fix the leaves' neurons in `state` and add their multipliers to `rows`, of which the second
    array is what that costs; tell which leaves have no point at all.
    """
    claims, depth = tree.choice.shape[1], np.array([len(fixed) for fixed in leaves.fixed])
    leaf = np.repeat(np.arange(depth.size), depth)
    signed = np.array([one for fixed in leaves.fixed for one in fixed])
    neuron, is_active = np.maximum(signed, -1 - signed), signed >= 0
    row = leaf[:, None] * claims + np.arange(claims)
    source, out = bounds.hidden_inputs[neuron][:, None], bounds.hidden_outputs[neuron][:, None]
    state.below[row, out] = state.above[row, out] = is_active[:, None]
    state.constant[row, out] = 0.0
    if tree.betas.size:
        step = np.arange(leaf.size) - np.repeat(depth.cumsum() - depth, depth)
        place = leaves.betas[leaf, None] + np.arange(claims) * depth[leaf, None] + step[:, None]
        beta = tree.betas[place].astype(np.float64)
        # To subtract what is >= 0 keeps a lower bound, and so does to add what is <= 0.
        np.add.at(rows[0], (row, source), np.where(is_active[:, None], -beta, beta))
        np.add.at(rows[1], row, beta * state.error[row, source])
    first = row[:, :1]
    is_wrong = np.where(
        is_active, state.upper[first, source][:, 0] < 0, state.lower[first, source][:, 0] > 0
    )
    is_empty = np.zeros(depth.size, bool)
    is_empty[leaf[is_wrong]] = True
    return is_empty
