"""The largest absolute value of a network's outputs over a box, between two bounds."""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.attack import gradients
from lrai.verifier.backward import Trace
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
# The second network is asked again after so many batches, in case it has become the better one.
_EVERY: Final = 8


@dataclass(frozen=True)
class MaximumSettings:
    """When to stop."""

    arithmetic: Arithmetic = "float32"
    timeout_s: float = 60.0
    precision: float = 1.1
    """The search ends when the upper bound is at most this multiple of the lower one."""
    epsilon: float | None = None
    """A limit to decide: the bounds are to lie on one side of it, and below it need no precision
    beyond a tenth of it."""
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


@dataclass
class _Pool:
    """Open boxes, the one with the largest bound first; closed ones leave their bounds."""

    closed: Array
    """`(2 n_out,)`."""

    def __post_init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._boxes: dict[int, tuple[Array, Array, Array]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def bounds(self) -> Array:
        """`(2 n_out,)`: over open and closed boxes."""
        found = [self.closed, *(bounds for _, _, bounds in self._boxes.values())]
        return np.asarray(np.stack(found).max(axis=0))

    @property
    def top(self) -> float:
        """The largest bound."""
        return max(-self._heap[0][0] if self._heap else 0.0, float(self.closed.max()))

    def add(self, box: Box, bounds: Array, target: float) -> None:
        for lower, upper, found in zip(box.lower, box.upper, bounds, strict=True):
            largest = float(found.max())
            if largest <= target:
                self.closed = np.maximum(self.closed, found)
                continue
            self._boxes[self._count] = (lower, upper, found)
            heapq.heappush(self._heap, (-largest, self._count))
            self._count += 1

    def take(self, count: int, target: float) -> tuple[Box, Array] | None:
        taken: list[tuple[Array, Array, Array]] = []
        while self._heap and len(taken) < count:
            taken.append(self._boxes.pop(heapq.heappop(self._heap)[1]))
            if taken[-1][2].max() <= target:
                self.closed = np.maximum(self.closed, taken.pop()[2])
        if not taken:
            return None
        lower, upper, bounds = (np.stack(part) for part in zip(*taken, strict=True))
        return Box(lower, upper), bounds


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
        self._batch = int(np.clip(_ELEMENTS // widest, 1, _LARGEST_BATCH))
        self._best, self._where = 0.0, self._point((self._lower + self._upper) / 2)
        self._seen = -1.0
        self._boxes, self._batches, self._helps = 0, 0, True
        self._end = time.monotonic() + settings.timeout_s

    def run(self) -> Maximum:
        start = time.monotonic()
        self._climb()
        root = Box(self._lower[None], self._upper[None])
        pool = _Pool(np.full(len(self._rows), -np.inf))
        infinite = np.full((1, len(self._rows)), np.inf)
        bounds, _ = self._bound(root, infinite)
        pool.add(root, bounds, self._target)
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
        return max(min(precise, epsilon), 0.1 * epsilon)

    def _branch(self, pool: _Pool) -> str:
        while len(pool):
            if time.monotonic() > self._end:
                return f"the time of {self._settings.timeout_s:g} s is over"
            if len(pool) > self._settings.max_boxes:
                return f"more than {self._settings.max_boxes} boxes are open"
            taken = pool.take(self._batch, self._target)
            if taken is None:
                break
            box, bounds = taken
            children = self._split(box, bounds)
            if children is None:
                pool.closed = np.maximum(pool.closed, bounds.max(axis=0))
                return "the boxes are too small for float64"
            bounds, trace_points = self._bound(children, np.repeat(bounds, 2, axis=0))
            self._look(trace_points)
            pool.add(children, bounds, self._target)
        return ""

    # ---- upper bounds --------------------------------------------------------------------------

    def _bound(self, box: Box, known: Array) -> tuple[Array, Array]:
        """Bounds `(N, 2 n_out)`, never above the known ones, and points that may attain them."""
        self._boxes += len(box.lower)
        region, row = np.nonzero(known > self._target)
        bounds, points = known.copy(), (box.lower + box.upper) / 2
        ask_all = self._helps or self._batches % _EVERY == 0
        self._batches += 1
        shared: Sequence[Box] = ()
        for number, engine in enumerate(self._bounds if ask_all else self._bounds[:1]):
            trace = Trace() if number == 0 else None
            regions = engine.regions(box, shared)
            shared = regions.boxes[: self._shared]
            found = -engine.lower(-self._rows[row], regions, region, trace=trace)
            found = np.where(np.isnan(found), np.inf, found)
            if number:
                self._helps = bool((found < bounds[region, row]).mean() > 0.1) if len(row) else True
            bounds[region, row] = np.minimum(bounds[region, row], found)
            if trace is not None and trace.coefficients is not None:
                corner = np.where(trace.coefficients > 0, box.lower[region], box.upper[region])
                points = np.concatenate([points, corner])
        return bounds, points

    # ---- branching -----------------------------------------------------------------------------

    def _split(self, box: Box, bounds: Array) -> Box | None:
        """Halve each box where that shrinks the gaps of its relaxations most."""
        count = np.arange(len(box.lower))
        engine = self._bounds[0]
        regions, trace = engine.regions(box), Trace()
        engine.lower(-self._rows[bounds.argmax(axis=1)], regions, count, trace=trace)
        assert trace.coefficients is not None
        width = box.upper - box.lower
        score = np.abs(trace.coefficients) * width
        if self._network.input_size <= _FEW_INPUTS:
            score = 0.01 * score + self._shares(regions, trace, width)
        score = np.where(width > 0, score + 1e-9 * width, -1.0)
        axis = score.argmax(axis=1)
        middle = (box.lower[count, axis] + box.upper[count, axis]) / 2
        split = (box.lower[count, axis] < middle) & (middle < box.upper[count, axis])
        if not split.all():
            return None
        lower, upper = np.repeat(box.lower, 2, axis=0), np.repeat(box.upper, 2, axis=0)
        upper[2 * count, axis] = middle
        lower[2 * count + 1, axis] = middle
        return Box(lower, upper)

    def _shares(self, regions: Regions, trace: Trace, width: Array) -> Array:
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
                if index in trace.rows:
                    gap *= np.abs(trace.rows[index])
                    shares = before / np.maximum(before.sum(axis=1, keepdims=True), 1e-300)
                    total += np.einsum("ndk,nk->nd", shares, gap)
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
