"""The leaves of a tree: where its splits lead, and whether bounds close them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.checker.bounds import ROW_ELEMENTS, Bounds, State
from lrai.verifier.checker.certificate import Tree
from lrai.verifier.checker.graph import Array, RefusedError

_MAX_FIXED: Final = 1 << 24


@dataclass(frozen=True)
class Leaf:
    """A leaf of a tree, or a half of one that fixes no neurons."""

    lower: Array
    upper: Array
    fixed: tuple[int, ...]
    """From the root: neuron k whose input is >= 0 as k, <= 0 as -1 - k."""
    origin: int
    """Its place in the tree."""
    betas: int
    """Where its multipliers begin."""


def replay(tree: Tree, hidden: int) -> list[Leaf]:
    """Follow the splits; RefusedError where they are no tree or leave their box."""
    stack: list[tuple[Array, Array, tuple[int, ...]]] = [(tree.lower, tree.upper, ())]
    leaves: list[Leaf] = []
    betas = total = 0
    for axis, at in zip(tree.axis.tolist(), tree.at.tolist(), strict=True):
        if not stack or total > _MAX_FIXED:
            raise RefusedError("a tree has too many nodes")
        lower, upper, fixed = stack.pop()
        neuron = -2 - axis
        total += len(fixed)
        if axis == -1:
            leaves.append(Leaf(lower, upper, fixed, len(leaves), betas))
            betas += len(fixed) * tree.choice.shape[1]
        elif 0 <= axis < lower.size and lower[axis] <= at <= upper[axis]:
            is_cut = np.arange(lower.size) == axis
            stack.append((np.where(is_cut, at, lower), upper, fixed))
            stack.append((lower, np.where(is_cut, at, upper), fixed))
        elif 0 <= neuron < hidden and neuron not in fixed and -1 - neuron not in fixed:
            stack += [(lower, upper, (*fixed, one)) for one in (neuron, -1 - neuron)]
        else:
            raise RefusedError("a tree has a split outside of its box or of the network")
    if stack or tree.betas.size not in (0, betas):
        raise RefusedError("a tree has too few nodes, or another number of multipliers")
    return leaves


def close(tree: Tree, bounds: Bounds, leaves: list[Leaf]) -> list[Leaf]:
    """Bound every leaf; the halves of those that stay open. RefusedError if one fixes neurons."""
    count = max(ROW_ELEMENTS // bounds.graph.slots // tree.choice.shape[1], 1)
    halves = []
    for part in _parts(tree, leaves, count):
        for leaf, axis in zip(part, _examine(tree, bounds, part).tolist(), strict=True):
            if axis >= 0 and leaf.fixed:
                raise RefusedError(f"the bound does not close leaf {leaf.origin} of a tree")
            if axis >= 0:
                is_cut = np.arange(leaf.lower.size) == axis
                middle = np.clip((leaf.lower + leaf.upper) / 2, leaf.lower, leaf.upper)
                low, high = np.where(is_cut, middle, [leaf.lower, leaf.upper])
                halves.append(Leaf(leaf.lower, high, (), leaf.origin, 0))
                halves.append(Leaf(low, leaf.upper, (), leaf.origin, 0))
    return halves


def _parts(tree: Tree, leaves: list[Leaf], count: int) -> Iterator[list[Leaf]]:
    """At most `count` leaves at once, of one table."""
    for _, run in groupby(leaves, key=lambda leaf: int(tree.table[leaf.origin])):
        some = list(run)
        yield from (some[start : start + count] for start in range(0, len(some), count))


def look(tree: Tree, bounds: Bounds, leaves: list[Leaf]) -> State:
    """What is known of the regions of leaves of one table."""
    refined = tree.refined / 255.0 if tree.refined.size else None
    table = int(tree.table[leaves[0].origin])
    lower, upper = (
        np.array(side) for side in zip(*((x.lower, x.upper) for x in leaves), strict=True)
    )
    fixed = [leaf.fixed for leaf in leaves]
    # To fix a sign may loosen a bound with given slopes: what holds at the root still holds.
    root = bounds.regions(tree.lower[None], tree.upper[None], [()], refined) if any(fixed) else None
    if table and refined is not None:
        both = np.concatenate([tree.neurons, bounds.hidden_inputs.size + tree.neurons])
        refined[np.ix_(both, tree.neurons)] = tree.tables[table - 1] / 255.0
    return bounds.regions(lower, upper, fixed, refined, root)


def _examine(tree: Tree, bounds: Bounds, leaves: list[Leaf]) -> NDArray[np.intp]:
    """For each leaf -1 where it is closed, else the input that matters most."""
    state = look(tree, bounds, leaves)
    claims, origin = tree.choice.shape[1], np.array([leaf.origin for leaf in leaves])
    regions = np.repeat(np.arange(len(leaves)), claims)
    rows = np.zeros((len(regions), bounds.graph.slots))
    is_in = tree.claim == np.arange(claims)[:, None]
    weights = tree.weights[tree.choice[origin]] * is_in
    rows[:, -tree.offset.size :] = weights.reshape(len(rows), -1)
    slope = tree.slope[origin].reshape(-1, 1)
    slopes = None
    if (slope >= 0).any():
        default = state.below[regions][:, bounds.hidden_outputs]
        slopes = np.where(slope >= 0, tree.slopes[slope[:, 0]] / 255.0, default)
    charge = np.zeros(len(rows))
    if tree.betas.size:
        for place, leaf in enumerate(leaves):
            _multiply(tree, bounds, leaf, (rows, state.error, charge), place * claims)
    bound, inputs = bounds.lower(rows, state, regions, slopes)
    is_open = ~((bound - charge > 0).reshape(-1, claims).all(axis=1) | state.is_empty)
    widths = np.array([leaf.upper - leaf.lower for leaf in leaves])
    influence = np.abs(inputs).reshape(len(leaves), claims, -1).sum(axis=1) * widths
    return np.where(is_open, influence.argmax(axis=1), -1)


def _multiply(
    tree: Tree, bounds: Bounds, leaf: Leaf, parts: tuple[Array, Array, Array], row: int
) -> None:
    """Add the leaf's multipliers to its rows, and to the charge what that may cost in rounding."""
    rows, error, charge = parts
    claims, count = tree.choice.shape[1], len(leaf.fixed)
    betas = tree.betas[leaf.betas : leaf.betas + claims * count].reshape(claims, count)
    signed = np.array(leaf.fixed, np.intp)
    sources = bounds.hidden_inputs[np.maximum(signed, -1 - signed)]
    # To subtract what is >= 0 keeps a lower bound, and so does to add what is <= 0.
    added = np.where(signed >= 0, -betas, betas).astype(np.float64)
    for claim in range(claims):
        np.add.at(rows[row + claim], sources, added[claim])
    charge[row : row + claims] += np.abs(added) @ error[sources]
