"""The leaves of a tree: where its splits lead, and whether bounds close them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
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
    betas: int = 0
    """Where its multipliers begin."""

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
        self.all, stack, betas, claims = (
            list[Leaf](),
            [Leaf(tree["box"])],
            0,
            tree["choice"].shape[1],
        )
        for axis, at in zip(tree["axis"].tolist(), tree["at"].tolist(), strict=True):
            leaf, neuron = stack.pop(), -2 - axis
            if axis == -1:
                self.all.append(replace(leaf, origin=len(self.all), betas=betas))
                betas += len(leaf.neurons) * claims
            elif 0 <= axis < len(leaf.box[0]) and leaf.box[0, axis] <= at <= leaf.box[1, axis]:
                stack += leaf.cut(axis, at)
            elif 0 <= neuron < len(bounds.graph.hidden) and neuron not in leaf.neurons:
                neurons = (*leaf.neurons, neuron)
                for sign in (1, -1):
                    stack.append(replace(leaf, neurons=neurons, signs=(*leaf.signs, sign)))
            else:
                raise RefusedError("a tree has a split outside of its box or of the network")
        if stack or tree["betas"].size not in (0, betas):
            raise RefusedError("a tree has too few nodes, or another number of multipliers")
        if any(leaf.neurons for leaf in self.all):
            # To fix a sign may loosen a bound with given slopes: what holds at the root holds.
            self._root = self._look([Leaf(tree["box"])], 0)

    def prove(self, wanted: int) -> int:
        """Close every leaf, and so many by Z3 as well; how many Z3 closed of these.

        RefusedError where one stays open.
        """
        # The number behind the last row of weights leaves it to Z3.
        is_exact = self._tree["choice"][:, 0] == len(self._tree["weights"])
        exact, rest = (
            [x for x in self.all if is_exact[x.origin] == side] for side in (True, False)
        )
        chosen = [rest[x] for x in np.random.default_rng().permutation(len(rest))[:wanted]]
        answers = [self._ask(leaf) for leaf in (*exact, *chosen)]
        if "sat" in answers or any(answer != "unsat" for answer in answers[: len(exact)]):
            raise RefusedError("Z3 does not close a leaf of a tree")
        step = max(ROW_ELEMENTS // self._bounds.graph.slots // self._tree["choice"].shape[1], 1)
        count, rounds = 1000 + _MAX_HALVES * len(rest), _MAX_ROUNDS
        while rest and count > 0 and rounds > 0:
            rest = [half for part in self._parts(rest, step) for half in self._close(part)]
            count, rounds = count - len(rest), rounds - 1
        if rest:
            raise RefusedError(f"the bound does not close leaf {rest[0].origin} of a tree")
        return answers[len(exact) :].count("unsat")

    def _table(self, leaf: Leaf) -> int:
        return int(self._tree["table"][leaf.origin])

    def _parts(self, leaves: list[Leaf], most: int) -> Iterator[list[Leaf]]:
        """At most so many leaves at once, of one table."""
        for _, run in groupby(leaves, key=self._table):
            some = list(run)
            yield from (some[start : start + most] for start in range(0, len(some), most))

    def _look(self, leaves: list[Leaf], table: int) -> State:
        """What is known of the regions of leaves of one table; 0 is that of the root."""
        signs = np.zeros((len(leaves), len(self._bounds.graph.hidden)), np.int8)
        for row, leaf in zip(signs, leaves, strict=True):
            row[list(leaf.neurons)] = leaf.signs
        box, refined = np.stack([leaf.box for leaf in leaves], axis=1), self._tree["refined"]
        slopes = refined / 255.0 if refined.size else None
        if table and slopes is not None:
            neurons = self._tree["neurons"]
            both = np.concatenate([neurons, slopes.shape[1] + neurons])
            slopes[np.ix_(both, neurons)] = self._tree["tables"][table - 1] / 255.0
        return self._bounds.regions(box, signs, slopes, self._root)

    def _close(self, leaves: list[Leaf]) -> list[Leaf]:
        """Bound leaves; the halves of those that stay open."""
        tree, bounds, state = self._tree, self._bounds, self._look(leaves, self._table(leaves[0]))
        claims, origin = tree["choice"].shape[1], [leaf.origin for leaf in leaves]
        regions = np.repeat(np.arange(len(leaves)), claims)
        rows, charge = np.zeros((len(regions), bounds.graph.slots)), np.zeros(len(regions))
        is_member = tree["claim"] == np.arange(claims)[:, None]
        weights = tree["weights"][tree["choice"][origin]] * is_member
        rows[:, -tree["offset"].size :] = weights.reshape(len(rows), -1)
        # The number behind the last row stands for the default slopes.
        default = np.full((1, len(bounds.graph.hidden)), np.nan)
        table = np.append(tree["slopes"] / 255.0, default, axis=0)
        slopes = table[tree["slope"][origin].ravel()]
        for index, leaf in enumerate(leaves if tree["betas"].size else ()):
            part, count = slice(index * claims, (index + 1) * claims), claims * len(leaf.neurons)
            # To subtract what is >= 0 keeps a lower bound, and so does to add what is <= 0.
            betas = tree["betas"][leaf.betas : leaf.betas + count].reshape(claims, -1)
            sources = [bounds.graph.hidden[neuron] for neuron in leaf.neurons]
            np.subtract.at(rows[part].T, sources, (betas * leaf.signs).T)
            charge[part] = betas @ state.error[sources]
        bound = bounds.lower(rows, state, regions, slopes if len(table) > 1 else None) - charge
        is_open = ~((bound > 0).reshape(-1, claims).all(axis=1) | state.is_empty)
        influence = np.abs(rows[:, bounds.inputs]).reshape(len(leaves), claims, -1).sum(axis=1)
        halves = list[Leaf]()
        for place in np.flatnonzero(is_open).tolist():
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
        return ask(self._bounds, self._look([leaf], self._table(leaf)), signs, claims)
