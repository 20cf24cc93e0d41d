"""The leaves of a tree: where its splits lead, and whether bounds close them."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lrai.verifier.checker.bounds import ROW_ELEMENTS, Bounds, State
from lrai.verifier.checker.certificate import Tree
from lrai.verifier.checker.exact import ask
from lrai.verifier.checker.graph import Array, RefusedError

_MAX_ROUNDS: Final = 12
_MAX_HALVES: Final = 4
"""Halves for each leaf of a tree, beyond a thousand."""


@dataclass(frozen=True)
class Leaf:
    """A leaf of a tree, or a part of one."""

    box: Array
    """`(2, n_in)`: lower, upper."""
    neurons: tuple[int, ...] = ()
    """Those with fixed signs, from the root."""
    signs: tuple[int, ...] = ()
    """1 where the input of one is >= 0, -1 where it is <= 0."""
    origin: int = 0
    """Its place in the tree."""

    def cut(self, axis: int, at: float) -> "list[Leaf]":
        """Its parts above and below a value of an input."""
        parts = [self.box.copy(), self.box.copy()]
        parts[0][0, axis] = parts[1][1, axis] = at
        return [replace(self, box=box) for box in parts]


class Leaves:
    """The leaves of one tree."""

    def __init__(self, tree: Tree, bounds: Bounds) -> None:
        """Follow the splits; RefusedError where they are no tree or leave their box."""
        self._tree, self._bounds, self._root = tree, bounds, None
        root = Leaf(tree["box"])
        self.all, stack = list[Leaf](), [root]
        for axis, at in zip(tree["axis"].tolist(), tree["at"].tolist(), strict=True):
            leaf, neuron = stack.pop(), -2 - axis
            if axis == -1:
                self.all.append(replace(leaf, origin=len(self.all)))
            elif 0 <= axis < len(leaf.box[0]) and leaf.box[0, axis] <= at <= leaf.box[1, axis]:
                stack += leaf.cut(axis, at)
            elif 0 <= neuron < len(bounds.graph.hidden) and neuron not in leaf.neurons:
                neurons = (*leaf.neurons, neuron)
                for sign in (1, -1):
                    stack.append(replace(leaf, neurons=neurons, signs=(*leaf.signs, sign)))
            else:
                raise RefusedError("a tree has a split outside of its box or of the network")
        if stack:
            raise RefusedError("a tree has too few nodes")
        # To fix a sign may loosen a bound with given slopes: what holds at the root holds.
        self._root = self._look([root])

    def prove(self, wanted: int) -> int:
        """Close every leaf, and so many by Z3 as well; how many Z3 closed of these.

        RefusedError where one stays open.
        """
        # Nothing follows from no weight at all: such leaves are left to Z3.
        is_weighed = self._tree["weights"].any(axis=1)
        exact, rest = ([x for x in self.all if is_weighed[x.origin] == y] for y in (False, True))
        chosen = [rest[x] for x in np.random.default_rng().permutation(len(rest))[:wanted]]
        answers = [self._ask(leaf) for leaf in (*exact, *chosen)]
        if "sat" in answers or any(answer != "unsat" for answer in answers[: len(exact)]):
            raise RefusedError("Z3 does not close a leaf of a tree")
        step = max(ROW_ELEMENTS // self._bounds.graph.slots // self._tree["slope"].shape[1], 1)
        count, rounds = 1000 + _MAX_HALVES * len(rest), _MAX_ROUNDS
        while rest and count > 0 and rounds > 0:
            parts = [rest[start : start + step] for start in range(0, len(rest), step)]
            rest = [half for part in parts for half in self._close(part)]
            count, rounds = count - len(rest), rounds - 1
        if rest:
            raise RefusedError(f"the bound does not close leaf {rest[0].origin} of a tree")
        return answers[len(exact) :].count("unsat")

    def _look(self, leaves: list[Leaf]) -> State:
        """What is known of the regions of leaves."""
        signs = np.zeros((len(leaves), len(self._bounds.graph.hidden)), np.int8)
        for row, leaf in zip(signs, leaves, strict=True):
            row[list(leaf.neurons)] = leaf.signs
        box = np.stack([leaf.box for leaf in leaves], axis=1)
        tables = self._tree["tables"][self._tree["table"][[leaf.origin for leaf in leaves]]]
        return self._bounds.regions(box, signs, tables, self._root)

    def _close(self, leaves: list[Leaf]) -> list[Leaf]:
        """Bound leaves; the halves of those that stay open."""
        tree, bounds, state = self._tree, self._bounds, self._look(leaves)
        claims, origin = tree["slope"].shape[1], [leaf.origin for leaf in leaves]
        rows, charge = np.zeros((len(leaves), claims, bounds.graph.slots)), []
        is_member = tree["claim"] == np.arange(claims)[:, None]
        rows[:, :, -tree["offset"].size :] = tree["weights"][origin, None] * is_member
        for row, leaf in zip(rows, leaves, strict=True):
            # To subtract what is >= 0 keeps a lower bound, and so does to add what is <= 0.
            betas = tree["betas"][leaf.origin][:, : len(leaf.neurons)]
            sources = [bounds.graph.hidden[neuron] for neuron in leaf.neurons]
            np.subtract.at(row.T, sources, (betas * leaf.signs).T)
            charge.append(betas @ state.error[sources])
        rows, regions = rows.reshape(-1, rows.shape[2]), np.repeat(np.arange(len(leaves)), claims)
        bound = bounds.lower(rows, state, regions, tree["slope"][origin].ravel())
        is_closed = (bound.reshape(-1, claims) - charge > 0).all(axis=1) | state.is_empty
        influence = np.abs(rows[:, bounds.inputs]).reshape(len(leaves), claims, -1).sum(axis=1)
        halves = list[Leaf]()
        for place in np.flatnonzero(~is_closed).tolist():
            low, high = leaves[place].box
            axis = int((influence[place] * (high - low)).argmax())
            halves += leaves[place].cut(axis, (low[axis] + high[axis]) / 2)
        return halves

    def _ask(self, leaf: Leaf) -> str:
        """What Z3 says of a leaf; see `exact.ask`."""
        conditions = np.arange(self._bounds.graph.slots)[-self._tree["offset"].size :]
        claims = [conditions[self._tree["claim"] == x] for x in np.unique(self._tree["claim"])]
        hidden = self._bounds.graph.hidden
        signs = {hidden[x]: sign for x, sign in zip(leaf.neurons, leaf.signs, strict=True)}
        return ask(self._bounds, self._look([leaf]), signs, claims)
