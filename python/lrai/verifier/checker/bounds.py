"""Lower bounds of linear functions of a graph's values, with every rounding accounted for.

Intervals first, then backward substitution (CROWN, Zhang et al. 2018) of the inputs of unstable
Relus. A sum is deployed with an error of at most gamma(n) times the sum of the absolute values of
its terms, in any order (Higham, Accuracy and Stability, section 3.1); it enters as fresh noise at
that sum. The checker's own float64 does the same: all its roundings are relative to quantities that
the same sums of absolute values bound, and `_OWN` times gamma of the network's size exceeds their
number, so one term for each sum covers both.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.checker.graph import Array, Graph, RefusedError, Relu, Slots, Sum

_UNIT_32: Final = 2.0**-24
_UNIT_64: Final = 2.0**-53
_INFLATED: Final = 1 + 2.0**-20
"""More than the roundings of sums of positive numbers."""
_SMALL: Final = 2.0**-100
"""Added to factors, so that the error term exceeds what is lost where numbers are subnormal."""
_LEAST: Final = 2.0**-900
_MAX_FLOAT32: Final = 2.0**127
_ROW_ELEMENTS: Final = 1 << 19


@dataclass(frozen=True)
class State:
    """What is known of N regions, `(N, slots)` each; relaxations stand at the outputs of Relus."""

    lower: Array
    upper: Array
    error: Array
    """How far a slot may be from its sum of values; of inputs, what rounding costs there."""
    below: Array
    """Slope of the lower line through zero."""
    above: Array
    """Slope of the upper line."""
    constant: Array
    """Value of the upper line at zero; positive where the neuron is unstable."""

    def take(self, regions: NDArray[np.intp]) -> "State":
        """A copy of the regions named, repeated as often as they are named."""
        return State(*(part[regions] for part in vars(self).values()))


class Bounds:
    """Bounds of one graph under one arithmetic."""

    def __init__(self, graph: Graph, is_float32: bool) -> None:
        """Prepare for a graph; roundings of its deployment count where `is_float32`."""
        self.graph, self._is_float32 = graph, is_float32
        count = 4 * graph.slots + 4 * len(graph.operations) + 64
        self._own = 2 * _gamma(count, _UNIT_64)
        self._scatters = [_Scatter(one.inputs) for one in graph.operations]
        self._hidden: list[slice | None] = []
        """Which of the hidden neurons an operation holds."""
        seen = 0
        is_plain, self._is_exact = np.zeros((2, graph.slots), bool)
        is_plain[graph.inputs] = True
        for one in graph.operations:
            size = one.inputs.size if isinstance(one, Relu) and one.is_hidden else 0
            self._hidden.append(slice(seen, seen + size) if size else None)
            seen += size
            if isinstance(one, Sum):
                # The interval of a sum of inputs that each come once is exact.
                exact = is_plain[one.inputs].all()
                self._is_exact[one.start : one.stop] = exact
                is_plain[one.start : one.stop] = exact and one.inputs.shape[1] == 1
        self.hidden = seen
        neurons = [one for one in graph.operations if isinstance(one, Relu) and one.is_hidden]
        none = [np.zeros(0, np.intp)]
        self.hidden_inputs = np.concatenate([*none, *(one.inputs for one in neurons)])
        outputs = (np.arange(one.start, one.stop) for one in neurons)
        self.hidden_outputs = np.concatenate([*none, *outputs])

    def regions(self, lower: Array, upper: Array, slopes: Array | None = None) -> State:
        """All bounds in boxes of inputs, `(N, n_in)` each.

        `slopes` `(2 * hidden, hidden)` serve for the lower, then the upper bounds of the inputs of
        hidden neurons.
        """
        state = State(*(np.zeros((len(lower), self.graph.slots)) for _ in range(6)))
        inputs = self.graph.inputs
        state.lower[:, inputs], state.upper[:, inputs] = lower, upper
        state.error[:, inputs] = self._own * (_largest(lower, upper) + _SMALL)
        for index, one in enumerate(self.graph.operations):
            if isinstance(one, Sum):
                self._interval(state, one)
                continue
            part = self._hidden[index]
            given = None
            if slopes is not None and part is not None:
                given = np.stack([slopes[: self.hidden][part], slopes[self.hidden :][part]])
            self._tighten(state, index, one.inputs, given)
            _relax(state, one)
        if not all(np.isfinite(part).all() for part in vars(state).values()):
            raise RefusedError("bounds are not finite")
        return state

    def _interval(self, state: State, one: Sum) -> None:
        low, high = state.lower[:, one.inputs], state.upper[:, one.inputs]
        count, sizes, out = len(low), np.abs(one.weights), slice(one.start, one.stop)
        centre = _apply((low + high) / 2, one.weights) + one.bias
        radius = _apply((high - low) / 2, sizes)
        size = _apply(_largest(low, high) + _SMALL, sizes + _SMALL) + one.size
        size += one.inputs.shape[1] * _SMALL + one.noise
        deployed = _gamma(one.terms, _UNIT_32) if self._is_float32 else 0.0
        error = ((deployed + self._own) * size + one.noise) * _INFLATED
        if self._is_float32 and not size.max() < _MAX_FLOAT32:
            raise RefusedError("values may exceed the range of float32")
        state.error[:, out] = error.reshape(count, -1)
        state.lower[:, out] = (centre - radius - error).reshape(count, -1)
        state.upper[:, out] = (centre + radius + error).reshape(count, -1)
        if one.hull is not None:
            least, most = state.lower[:, one.hull].max(axis=2), state.upper[:, one.hull].max(axis=2)
            state.lower[:, out] = np.maximum(state.lower[:, out], least)
            state.upper[:, out] = np.minimum(state.upper[:, out], most)

    def _tighten(self, state: State, index: int, inputs: Slots, slopes: Array | None) -> None:
        """Bound the unstable inputs of a Relu by backward substitution."""
        low, high = state.lower[:, inputs], state.upper[:, inputs]
        regions, places = np.nonzero((low < 0) & (high > 0) & ~self._is_exact[inputs])
        step = max(_ROW_ELEMENTS // self.graph.slots // 2, 1)
        for start in range(0, len(regions), step):
            region, place = regions[start : start + step], places[start : start + step]
            slot, count = inputs[place], len(region)
            rows = np.zeros((2 * count, self.graph.slots))
            rows[np.arange(count), slot] = 1.0
            rows[np.arange(count, 2 * count), slot] = -1.0
            given = None if slopes is None else slopes[:, place].reshape(2 * count, -1)
            bound = self.lower(rows, state, np.tile(region, 2), given, index)[0]
            state.lower[region, slot] = np.maximum(state.lower[region, slot], bound[:count])
            state.upper[region, slot] = np.minimum(state.upper[region, slot], -bound[count:])

    def lower(
        self,
        rows: Array,
        state: State,
        regions: NDArray[np.intp] | slice,
        slopes: Array | None = None,
        end: int | None = None,
    ) -> tuple[Array, Array]:
        """Lower bounds `(R,)` of `rows @ values`, and the coefficients of the inputs, `(R, n_in)`.

        `rows` `(R, slots)` is used up; `regions` names the region of each row. `slopes`
        `(R, hidden)` replace the lower slopes of unstable neurons; operations before `end` count.
        """
        total = np.zeros(len(rows))
        for index in reversed(range(len(self.graph.operations))[:end]):
            one = self.graph.operations[index]
            out = slice(one.start, one.stop)
            part = rows[:, out]
            if not part.any():
                continue
            if isinstance(one, Sum):
                total += part @ one.bias.reshape(-1)
                total -= np.einsum("rn,rn->r", np.abs(part), state.error[regions, out])
                shaped = part.reshape(len(rows), *one.bias.shape)
                found = _apply(shaped, one.weights.swapaxes(1, 2)).reshape(len(rows), -1)
            else:
                constant, below = state.constant[regions, out], state.below[regions, out]
                hidden = self._hidden[index]
                if slopes is not None and hidden is not None:
                    below = np.where(constant > 0, slopes[:, hidden], below)
                least = np.minimum(part, 0)
                total += np.einsum("rn,rn->r", least, constant)
                found = (part - least) * below + least * state.above[regions, out]
            self._scatters[index].add(rows, found)
        part, inputs = rows[:, self.graph.inputs], self.graph.inputs
        sides = (state.lower, state.upper, state.error)
        low, high, error = (side[:, inputs][regions] for side in sides)
        total += np.minimum(part * low, part * high).sum(axis=1)
        total -= np.einsum("rn,rn->r", np.abs(part), error)
        return total, part


class _Scatter:
    """Adds `(R, n)` to columns of which some may come more than once."""

    def __init__(self, inputs: Slots) -> None:
        flat = inputs.reshape(-1)
        self._order = np.argsort(flat, kind="stable")
        slots, self._starts = np.unique(flat[self._order], return_index=True)
        is_single = slots.size == flat.size
        slots = flat if is_single else slots
        is_run = bool((np.diff(slots) == 1).all())
        self._places: Slots | slice = slice(slots[0], slots[-1] + 1) if is_run else slots
        self._is_single = is_single

    def add(self, rows: Array, found: Array) -> None:
        """Add to the rows in place."""
        if not self._is_single:
            found = np.add.reduceat(found[:, self._order], self._starts, axis=1)
        rows[:, self._places] += found


def _gamma(count: int, unit: float) -> float:
    return count * unit / (1 - count * unit)


def _largest(lower: Array, upper: Array) -> Array:
    return np.maximum(np.abs(lower), np.abs(upper))


def _apply(values: Array, weights: Array) -> Array:
    """`(N, P, K)` by `(1 or P, K, C)`."""
    if len(weights) == 1:
        return np.asarray(values @ weights[0])
    return np.asarray(np.einsum("npk,pkc->npc", values, weights))


def _relax(state: State, one: Relu) -> None:
    out = slice(one.start, one.stop)
    low, high = state.lower[:, one.inputs], state.upper[:, one.inputs]
    state.lower[:, out], state.upper[:, out] = np.maximum(low, 0), np.maximum(high, 0)
    is_unstable = (low < 0) & (high > 0)
    # A little too steep, so that the line stays above in spite of the quotient's rounding.
    steep = high / np.where(is_unstable, high - low, 1.0) * (1 + 2.0**-50)
    state.above[:, out] = np.where(is_unstable, steep, low >= 0)
    state.below[:, out] = np.where(is_unstable, high > -low, low >= 0)
    state.constant[:, out] = np.where(is_unstable, _LEAST - steep * low, 0.0)
