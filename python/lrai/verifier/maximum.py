"""The largest absolute value of a network's outputs over a box, between two bounds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.attack import gradients
from lrai.verifier.backward import Trace
from lrai.verifier.best_first import BestFirst, BoundedBoxes, halve
from lrai.verifier.bounds import Arithmetic, Bounds
from lrai.verifier.network import Network
from lrai.verifier.operators.base import Array, Box, Elementwise, Linear
from lrai.verifier.regions import Regions
from lrai.verifier.replay import float32_inside

Replayed = Callable[[NDArray[np.float32]], Array]
"""What the deployed models answer to one input, `(n_in,)` to `(n_out,)`."""

_ELEMENTS: Final = 2**18
_LARGEST_BATCH: Final = 256
_FEW_INPUTS: Final = 16
_STARTS, _STEPS = 64, 40
# The second network costs as much as two splits; it has to lower a bound as two splits would. It
# is asked again after so many batches, about so many boxes.
_WORTH, _EVERY, _TRIAL = 0.7, 16, 8
# Where a network has many inputs, a split lowers its bounds by little.
_WORTH_OF_MANY: Final = 0.99
# Batches that take longer become smaller, so that the time-out is kept, and grow again after.
_LONG_S: Final = 0.8


@dataclass(frozen=True)
class MaximumSettings:
    """When to stop."""

    arithmetic: Arithmetic = "float32"
    timeout_s: float = 60.0
    precision: float = 1.1
    """The search ends when the upper bound is at most this multiple of the lower one."""
    epsilon: float | None = None
    """A limit to decide: the bounds are to lie on one side of it, and below it need no precision
    beyond half of it."""
    max_boxes: int = 200_000
    """Open boxes held in memory."""
    seed: int = 0


@dataclass(frozen=True)
class Maximum:
    """max |y_j| over all x in the box and all outputs j lies in [lower, upper]."""

    lower: float
    """Attained at `where` by the deployed models."""
    upper: float
    where: Array | None
    """`(n_in,)`, exact in float32; None where the box holds no float32 input."""
    uppers: Array
    """`(n_out,)`: of each output by itself."""
    boxes: int
    seconds: float
    reason: str = ""
    """Why the two are further apart than was asked; empty where they are not."""


def maximise(
    networks: Sequence[Network],
    box: tuple[Array, Array],
    replayed: Replayed,
    settings: MaximumSettings,
) -> Maximum:
    """Bound max |y| over a box, lower and upper `(n_in,)`, by best-first branch and bound.

    The networks compute the same outputs in different ways; every bound is the best of theirs.
    All begin with the nodes of the first one, up to those that answer, which are its last.
    """
    return _Search(networks, box, replayed, settings).run()


class _Search:
    def __init__(
        self,
        networks: Sequence[Network],
        box: tuple[Array, Array],
        replayed: Replayed,
        settings: MaximumSettings,
    ) -> None:
        self._network, self._replayed, self._settings = networks[0], replayed, settings
        self._bounds = [Bounds(network, settings.arithmetic) for network in networks]
        self._lower, self._upper = box
        # The networks begin with the same nodes, up to the answer of the first one.
        self._shared = len(self._network.nodes) - len(self._network.outputs)
        size = self._network.output_size
        self._rows = np.concatenate([np.eye(size), -np.eye(size)])
        widest = max(node.size for node in self._network.nodes) * len(self._rows)
        self._batch = self._largest_batch = int(np.clip(_ELEMENTS // widest, 1, _LARGEST_BATCH))
        self._best, self._where = 0.0, self._point((self._lower + self._upper) / 2)
        self._seen = -1.0
        self._boxes, self._batches, self._helps = 0, 0, False
        self._end = time.monotonic() + settings.timeout_s

    def run(self) -> Maximum:
        start = time.monotonic()
        self._climb()
        root = Box(self._lower[None], self._upper[None])
        pool = BestFirst(np.full(len(self._rows), -np.inf))
        infinite = np.full((1, len(self._rows)), np.inf)
        pool.add(self._bound(root, infinite), self._target)
        reason = self._branch(pool)
        size = self._network.output_size
        every = pool.bounds
        uppers = np.maximum(np.maximum(every[:size], every[size:]), 0.0)
        return Maximum(
            lower=self._best,
            upper=float(uppers.max()),
            where=None if self._where is None else self._where.astype(np.float64),
            uppers=uppers,
            boxes=self._boxes,
            seconds=time.monotonic() - start,
            reason=reason,
        )

    @property
    def _target(self) -> float:
        """Boxes whose bound is at most this need no split."""
        precise = self._settings.precision * self._best
        epsilon = self._settings.epsilon
        if epsilon is None or self._best > epsilon:
            return precise
        return max(min(precise, epsilon), 0.5 * epsilon)

    def _branch(self, pool: BestFirst) -> str:
        while len(pool):
            if time.monotonic() > self._end:
                return f"the time of {self._settings.timeout_s:g} s is over"
            if len(pool) > self._settings.max_boxes:
                return f"more than {self._settings.max_boxes} boxes are open"
            began = time.monotonic()
            taken = pool.take(self._batch, self._target)
            if not taken:
                break
            children = halve(taken)
            known = np.repeat(np.stack([box.bounds for box in taken]), 2, axis=0)
            if children is None:
                pool.closed = np.maximum(pool.closed, known.max(axis=0))
                return "the boxes are too small for float64"
            found = self._bound(children, known)
            self._look(found.points)
            pool.add(found, self._target)
            spent = time.monotonic() - began
            if spent > _LONG_S:
                self._batch = max(1, self._batch // 2)
            elif spent < _LONG_S / 4:
                self._batch = min(self._largest_batch, 2 * self._batch)
        return ""

    # ---- upper bounds --------------------------------------------------------------------------

    def _bound(self, box: Box, known: Array) -> BoundedBoxes:
        """Bounds that are never above the known ones, and where to halve the boxes next."""
        self._boxes += len(box.lower)
        region, row = np.nonzero(known > self._target)
        bounds, trace, engine = known.copy(), Trace(), self._bounds[0]
        regions = engine.regions(box)
        found = -engine.lower(-self._rows[row], regions, region, trace=trace)
        bounds[region, row] = np.minimum(known[region, row], _or_infinite(found))
        middle = (box.lower + box.upper) / 2
        if trace.coefficients is None or not len(row):
            return BoundedBoxes(box, bounds, np.zeros(len(middle), np.intp), middle)
        corners = np.where(trace.coefficients > 0, box.lower[region], box.upper[region])
        shared = regions.boxes[: self._shared]
        for other in self._bounds[1:]:
            self._improve(other, box, shared, bounds)
        worst = _last_of(region, bounds[region, row], len(middle))
        axis = self._choose(box, regions, trace, worst)
        return BoundedBoxes(box, bounds, axis, np.concatenate([middle, corners]))

    def _improve(self, other: Bounds, box: Box, shared: list[Box], bounds: Array) -> None:
        """Lower the bounds by those of another network where that pays; now and then, see if."""
        self._batches += 1
        count = len(box.lower)
        if not self._helps:
            if self._batches % _EVERY != 1:
                return
            count = min(count, _TRIAL)
        few = np.arange(count)
        region, row = np.nonzero(bounds[:count] > self._target)
        if not len(row):
            return
        before = bounds[:count].max(axis=1)
        regions = other.regions(box.take(few), [part.take(few) for part in shared])
        found = _or_infinite(-other.lower(-self._rows[row], regions, region))
        bounds[region, row] = np.minimum(bounds[region, row], found)
        worth = _WORTH if self._network.input_size <= _FEW_INPUTS else _WORTH_OF_MANY
        self._helps = bool(np.mean(bounds[:count].max(axis=1) < worth * before) > 0.5)

    # ---- branching -----------------------------------------------------------------------------

    def _choose(
        self, box: Box, regions: Regions, trace: Trace, worst: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        """`(N,)`: the input whose halving shrinks the gaps of the worst rows' relaxations most."""
        assert trace.coefficients is not None
        width = box.upper - box.lower
        score = np.abs(trace.coefficients[worst]) * width
        if self._network.input_size <= _FEW_INPUTS:
            rows = {index: rows[worst] for index, rows in trace.rows.items()}
            score = 0.01 * score + self._shares(regions, rows, width)
        return np.asarray(np.where(width > 0, score + 1e-9 * width, -1.0).argmax(axis=1))

    def _shares(self, regions: Regions, rows: dict[int, Array], width: Array) -> Array:
        """Each input's share of the relaxations' gaps, `(N, n_in)`, by the slopes of the chords."""
        total = np.zeros_like(width)
        jacobians: list[Array] = []
        offset = 0
        for index, node in enumerate(self._network.nodes):
            if node.operator is None:
                jacobian = np.zeros((*width.shape, node.size))
                inputs = np.arange(node.size)
                jacobian[:, offset + inputs, inputs] = width[:, offset + inputs]
                offset += node.size
            elif isinstance(node.operator, Linear):
                flat = (jacobians[i].reshape(-1, self._network.nodes[i].size) for i in node.inputs)
                jacobian = node.operator.map(*flat).reshape(*width.shape, node.size)
            elif isinstance(node.operator, Elementwise):
                planes, box = regions.planes[index], regions.boxes[node.inputs[0]]
                assert planes is not None
                before = np.abs(jacobians[node.inputs[0]])
                middle = (box.lower + box.upper) / 2
                slope = planes.upper_slope - planes.lower_slope
                gap = slope * middle + planes.upper_constant - planes.lower_constant
                if index in rows:
                    gap *= np.abs(rows[index])
                    shares = before / np.maximum(before.sum(axis=1, keepdims=True), 1e-300)
                    total += np.einsum("bdk,bk->bd", shares, gap)
                jacobian = jacobians[node.inputs[0]] * planes.upper_slope[:, None]
            else:
                jacobian = np.zeros((*width.shape, node.size))
            jacobians.append(jacobian)
        return total

    # ---- lower bounds --------------------------------------------------------------------------

    def _climb(self) -> None:
        """Signed gradient steps from random points and corners, for every output and sign."""
        random = np.random.default_rng(self._settings.seed)
        row = np.resize(np.arange(len(self._rows)), max(_STARTS, 2 * len(self._rows)))
        weight = random.random((len(row), len(self._lower)))
        weight[1::2] = np.round(weight[1::2])
        width = self._upper - self._lower
        x = self._lower + weight * width
        for step in range(_STEPS):
            self._look(x)
            values = self._network.values(x)
            slope = gradients(self._network, values, self._rows[row])
            rate = 0.5 * 0.02 ** (step / (_STEPS - 1))
            x = np.clip(x + rate * width * np.sign(slope), self._lower, self._upper)
            if time.monotonic() > self._end:
                break
        self._look(x)

    def _look(self, x: Array) -> None:
        """Replay the best of these points if float64 says that it beats what was seen before."""
        found = np.abs(self._network.evaluate(x)).max(axis=1)
        at = int(found.argmax())
        if not found[at] > self._seen:
            return
        self._seen = float(found[at])
        point = self._point(x[at])
        if point is None:
            return
        largest = float(np.abs(self._replayed(point)).max())
        if largest > self._best:
            self._best, self._where = largest, point

    def _point(self, x: Array) -> NDArray[np.float32] | None:
        return float32_inside(x, self._lower, self._upper)


def _last_of(region: NDArray[np.intp], found: Array, count: int) -> NDArray[np.intp]:
    """`(count,)`: the row with the largest bound of each region; any, where it has none."""
    order = np.lexsort((found, region))
    ends = np.searchsorted(region[order], np.arange(count), side="right") - 1
    return order[np.maximum(ends, 0)]


def _or_infinite(bounds: Array) -> Array:
    return np.where(np.isnan(bounds), np.inf, bounds)
