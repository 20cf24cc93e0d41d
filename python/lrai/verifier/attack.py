"""Looks for counterexamples: on a lattice, and by projected descent (Madry et al. 2018)."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.network import Network
from lrai.verifier.operators.base import Box
from lrai.verifier.property import Case

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_LATTICE = 2**13
"""Points of a lattice over the boxes of all cases."""
_CHUNK = 2**9
"""Points that are evaluated at once, so that their values stay in the cache."""


@dataclass(frozen=True)
class AttackSettings:
    """How hard to try; one round costs `starts * steps` evaluations and gradients."""

    starts: int = 64
    """Points that descend at once, shared among the cases."""
    steps: int = 40
    rounds: int = 4
    """Fresh sets of starts; each looks at the cases that are nearest to a counterexample."""
    seed: int = 0


class Objective:
    """The distance of points to the unsafe sets of several cases: at most 0 means inside."""

    def __init__(self, network: Network, cases: Sequence[Case]) -> None:
        """Stack the rows of the cases; shorter cases repeat their last row."""
        self.network = network
        self.lower = np.stack([case.lower for case in cases])
        self.upper = np.stack([case.upper for case in cases])
        count = max(1, *(len(case.offset) for case in cases))
        self._rows = np.stack([_pad(_rows_of(case), count) for case in cases])
        self._input_rows = np.stack([_pad(_input_rows_of(case), count) for case in cases])
        self._offset = np.stack([_pad(case.offset, count) for case in cases])

    def measure(self, x: Array, case: Indices) -> Array:
        """`(N,)`: the largest of `rows @ y - offset` of each point's case."""
        return self.judge(self.network.evaluate(x), x, case)

    def judge(self, y: Array, x: Array, case: Indices) -> Array:
        """`measure` of points with known outputs `(N, n_out)`."""
        found: Array = self._conditions(y, x, case).max(axis=1)
        return found

    def _conditions(self, y: Array, x: Array, case: Indices) -> Array:
        values: Array = np.einsum("nmo,no->nm", self._rows[case], y)
        values += np.einsum("nmi,ni->nm", self._input_rows[case], x)
        return values - self._offset[case]

    def descend(self, x: Array, case: Indices) -> tuple[Array, Array]:
        """The measure of each point and its gradient, `(N,)` and `(N, n_in)`."""
        values = self.network.values(x)
        y = np.concatenate([values[index] for index in self.network.outputs], axis=1)
        conditions = self._conditions(y, x, case)
        worst = conditions.argmax(axis=1)
        pick = np.arange(len(x))
        gradient = gradients(self.network, values, self._rows[case, worst])
        return conditions[pick, worst], gradient + self._input_rows[case, worst]


def gradients(network: Network, values: list[Array], rows: Array) -> Array:
    """`(N, n_in)`: the gradient of `rows @ y` where the nodes have these values.

    The relaxation of an operator over one point is its tangent there, so `backward` is a
    vector-Jacobian product.
    """
    waiting: dict[int, Array] = {}
    parts = np.split(rows, np.cumsum(network.sizes(network.outputs))[:-1], axis=1)
    for index, part in zip(network.outputs, parts, strict=True):
        waiting[index] = waiting[index] + part if index in waiting else part
    for index in range(len(network.nodes) - 1, -1, -1):
        node = network.nodes[index]
        if node.operator is None or index not in waiting:
            continue
        points = tuple(Box(values[source], values[source]) for source in node.inputs)
        found, _ = node.operator.backward(waiting.pop(index), points)
        for source, part in zip(node.inputs, found, strict=True):
            waiting[source] = waiting[source] + part if source in waiting else part
    zeros = np.zeros((len(rows), 1))
    return np.concatenate(
        [
            waiting.get(index, np.repeat(zeros, network.nodes[index].size, axis=1))
            for index in network.inputs
        ],
        axis=1,
    )


class Attack:
    """Rounds of descent from fresh points, on the cases that are nearest to a counterexample."""

    def __init__(self, network: Network, cases: Sequence[Case], settings: AttackSettings) -> None:
        """Prepare; `settings.rounds` is left to the caller."""
        self._objective = Objective(network, cases)
        self._settings = settings
        self._random = np.random.default_rng(settings.seed)
        self._best = np.full(len(cases), np.inf)

    def round(self, starts: Array | None = None) -> list[tuple[int, Array]]:
        """`(index of the case, x)` of points that seem to be counterexamples, best first.

        They lie in the case's box, but were evaluated in float64 only: let `replay` confirm them.
        `starts` `(S, n_in)` are tried too, for every case.
        """
        objective = self._objective
        x, case = _starts(objective, self._settings, self._random, self._best)
        if starts is not None or not np.isfinite(self._best).all():
            x, case = _with_starts(objective, x, case, starts)
        x, found = _search(objective, x, case, self._settings.steps)
        np.minimum.at(self._best, case, found)
        order = np.argsort(found, kind="stable")[: np.count_nonzero(found <= 0)]
        return [(int(case[row]), x[row]) for row in order]


def attack(
    network: Network, cases: Sequence[Case], settings: AttackSettings
) -> Iterator[tuple[int, Array]]:
    """Yield what a lattice and then `settings.rounds` rounds of an Attack find, as far as asked."""
    points, case, measure = lattice(network, cases)
    order = np.argsort(measure, kind="stable")[: settings.starts]
    yield from ((int(case[row]), points[row]) for row in order if measure[row] <= 0)
    rounds = Attack(network, cases, settings)
    for index in range(settings.rounds):
        yield from rounds.round(points[order[: settings.starts // 4]] if index == 0 else None)


def lattice(network: Network, cases: Sequence[Case]) -> tuple[Array, Indices, Array]:
    """Points `(N, n_in)` between the ends of every input, their cases and measures `(N,)`.

    Extremes of a network are common on the faces of a box, where descent from a random point seldom
    arrives in all inputs at once. Too many inputs for three values of each give no points.
    """
    objective, size = Objective(network, cases), network.input_size
    boxes, which = np.unique(
        np.concatenate([objective.lower, objective.upper], axis=1), axis=0, return_inverse=True
    )
    levels = int((_LATTICE / len(boxes)) ** (1 / max(size, 1)) + 1e-9)
    levels -= 1 - levels % 2  # the centre is one of an odd number
    if levels < 3:
        return np.zeros((0, size)), np.zeros(0, np.intp), np.zeros(0)
    places = np.array(list(itertools.product(np.linspace(0, 1, levels), repeat=size)))
    found = []
    for index, box in enumerate(boxes):
        owners = np.flatnonzero(which.reshape(-1) == index)
        for start in range(0, len(places), _CHUNK):
            x = box[:size] + (box[size:] - box[:size]) * places[start : start + _CHUNK]
            y, copies = network.evaluate(x), (len(owners), 1)
            x, y, case = np.tile(x, copies), np.tile(y, copies), np.repeat(owners, len(x))
            found.append((x, case, objective.judge(y, x, case)))
    points, case, measure = (np.concatenate(part) for part in zip(*found, strict=True))
    return points, case, measure


def _starts(
    objective: Objective, settings: AttackSettings, random: np.random.Generator, best: Array
) -> tuple[Array, Indices]:
    """Random points and corners; after the first round only for the better half of the cases."""
    kept = np.argsort(best, kind="stable")
    if np.isfinite(best).all():
        kept = kept[: max(1, len(kept) // 2)]
    case = np.resize(kept, max(settings.starts, len(kept)))
    low, high = objective.lower[case], objective.upper[case]
    weight = random.random(low.shape)
    weight[1::2] = np.round(weight[1::2])
    return low + (high - low) * weight, case


def _with_starts(
    objective: Objective, x: Array, case: Indices, starts: Array | None
) -> tuple[Array, Indices]:
    """Add the centre of every box and the caller's points."""
    every = np.arange(len(objective.lower))
    points = [x, (objective.lower + objective.upper) / 2]
    indices = [case, every]
    if starts is not None:
        repeated = np.repeat(every, len(starts))
        points.append(np.tile(starts, (len(every), 1)))
        indices.append(repeated)
    case = np.concatenate(indices)
    x = np.concatenate(points)
    return np.clip(x, objective.lower[case], objective.upper[case]), case


def _search(objective: Objective, x: Array, case: Indices, steps: int) -> tuple[Array, Array]:
    """Signed gradient steps with momentum, from half the width down to a hundredth of it."""
    low, high = objective.lower[case], objective.upper[case]
    width = high - low
    best_x, best = x.copy(), np.full(len(x), np.inf)
    momentum = np.zeros_like(x)
    for step in range(steps):
        found, gradient = objective.descend(x, case)
        better = found < best
        best_x[better], best[better] = x[better], found[better]
        if (best <= 0).any():
            break
        scale = np.abs(gradient * width).max(axis=1, keepdims=True)
        momentum = 0.75 * momentum + gradient * width / np.where(scale > 0, scale, 1)
        rate = 0.5 * 0.02 ** (step / max(1, steps - 1))
        x = np.clip(x - rate * width * np.sign(momentum), low, high)
    found = objective.measure(x, case)
    better = found < best
    best_x[better], best[better] = x[better], found[better]
    return best_x, best


def _rows_of(case: Case) -> Array:
    # A case without rows calls every output unsafe: its measure is that of a zero row, 0.
    return case.output_rows if len(case.offset) else np.zeros((1, case.output_rows.shape[1]))


def _input_rows_of(case: Case) -> Array:
    if case.input_rows is not None and len(case.offset):
        return case.input_rows
    return np.zeros((max(1, len(case.offset)), len(case.lower)))


def _pad(rows: Array, count: int) -> Array:
    missing = count - len(rows)
    if not len(rows):
        return np.zeros(count)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
