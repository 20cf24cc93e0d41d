"""Lower bounds of linear functions of a graph's values, with every rounding accounted for.

Intervals and forms first, then backward substitution (CROWN, Zhang et al. 2018) of the inputs of
unstable Relus. A sum is deployed with an error of at most gamma(n) times the sum of the absolute
values of its terms, in any order (Higham, Accuracy and Stability, section 3.1); it enters as fresh
noise at that sum. The checker's own float64 does the same: all its roundings are relative to what
the same sums of absolute values bound, and `_own` exceeds twice their number for the whole network,
so that one term for each sum covers both.
"""

from collections.abc import Sequence
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
_MAX_FORM_INPUTS: Final = 16
ROW_ELEMENTS: Final = 1 << 18


@dataclass(frozen=True)
class State:
    """What is known of N regions, `(N, slots)` each; relaxations stand at the outputs of Relus."""

    lower: Array
    upper: Array
    error: Array
    """`(slots,)`: how far values of any region may be from their sums; of inputs, what rounding
    costs there.
    """
    below: Array
    """Slope of the lower line through zero."""
    above: Array
    """Slope of the upper line."""
    constant: Array
    """Value of the upper line at zero; positive where the neuron is unstable."""
    form: Array
    """`(N, 1 + d, slots)`: middle and coefficients of t, inputs scaled to [-1, 1]; or d = 0."""
    rest: Array
    """How far a slot may be from its form."""
    is_empty: NDArray[np.bool_]
    """`(N,)`: no input of the region has the signs that are fixed."""


class Bounds:
    """Bounds of one graph under one arithmetic."""

    def __init__(self, graph: Graph, is_float32: bool) -> None:
        """Prepare for a graph; roundings of its deployment count where `is_float32`."""
        self.graph, self._is_float32 = graph, is_float32
        self._own = 2 * _gamma(4 * graph.slots + 4 * len(graph.operations) + 64, _UNIT_64)
        self._scatters = [_Scatter(one.inputs) for one in graph.operations]
        relus = [one for one in graph.operations if isinstance(one, Relu) and one.is_hidden]
        none = np.zeros(0, np.intp)
        self.hidden_inputs = np.concatenate([none, *(one.inputs for one in relus)])
        places = [np.arange(one.out.start, one.out.stop) for one in relus]
        self.hidden_outputs = np.concatenate([none, *places])
        self._is_exact = np.zeros(graph.slots, bool)
        """Where intervals are exact: at sums of inputs, or of what is an input but for a scale."""
        is_plain = np.isin(np.arange(graph.slots), graph.inputs)
        for one in graph.operations:
            if isinstance(one, Sum):
                self._is_exact[one.out] = is_plain[one.inputs].all()
                is_plain[one.out] = self._is_exact[one.out] & (one.inputs.shape[1] == 1)

    def regions(
        self,
        lower: Array,
        upper: Array,
        fixed: Sequence[tuple[int, ...]],
        slopes: Array | None = None,
        around: State | None = None,
    ) -> State:
        """All bounds in boxes of inputs, `(N, n_in)` each, where neurons have fixed signs.

        `fixed` names, for each region, neuron k whose input is >= 0 as k, <= 0 as -1 - k. `slopes`
        `(2 * hidden, hidden)` serve for the lower, then the upper bounds of the inputs of neurons.
        `around` is known of one region that contains all of them.
        """
        inputs, size = self.graph.inputs, self.graph.slots
        columns = inputs.size if inputs.size <= _MAX_FORM_INPUTS else 0
        flat = {
            name: np.zeros((len(lower), size))
            for name in ("lower", "upper", "below", "above", "constant", "rest")
        }
        form, is_empty = np.zeros((len(lower), 1 + columns, size)), np.zeros(len(lower), bool)
        state = State(**flat, error=np.zeros(size), form=form, is_empty=is_empty)
        region = np.repeat(np.arange(len(lower)), [len(one) for one in fixed])
        signed = np.array([one for some in fixed for one in some], np.intp)
        neuron = np.maximum(signed, -1 - signed)
        state.lower[:, inputs], state.upper[:, inputs] = lower, upper
        state.rest[:, inputs] = self._own * (_largest(lower, upper) + _SMALL)
        state.error[inputs] = state.rest[:, inputs].max(axis=0)
        state.form[:, 0, inputs] = (lower + upper) / 2
        state.form[:, 1 + np.arange(columns), inputs[:columns]] = ((upper - lower) / 2)[:, :columns]
        if not columns:
            state.rest[:, inputs] += (upper - lower) / 2 * _INFLATED
        seen = 0
        for index, one in enumerate(self.graph.operations):
            if isinstance(one, Sum):
                self._sum(state, one)
                if around is not None:
                    low, high = state.lower[:, one.out], state.upper[:, one.out]
                    np.maximum(low, around.lower[:, one.out], out=low)
                    np.minimum(high, around.upper[:, one.out], out=high)
                continue
            given = None
            if slopes is not None and one.is_hidden:
                part = np.arange(seen, seen + one.inputs.size)
                given = slopes[np.stack([part, part + len(slopes) // 2])]
            self._tighten(state, index, given)
            if one.is_hidden:
                is_here = (neuron >= seen) & (neuron < seen + one.inputs.size)
                self._fix(state, region[is_here], neuron[is_here], (signed >= 0)[is_here])
                seen += one.inputs.size
            self._bend(state, one)
        if not all(np.isfinite(part).all() for part in vars(state).values()):
            raise RefusedError("bounds are not finite")
        return state

    def _sum(self, state: State, one: Sum) -> None:
        """A sum's form, and its box where the form or the interval is tighter."""
        low, high = state.lower[:, one.inputs], state.upper[:, one.inputs]
        count, sizes = len(low), np.abs(one.weights)
        size = _apply(_largest(low, high) + _SMALL, sizes + _SMALL) + one.size
        size += one.inputs.shape[1] * _SMALL + one.noise
        if self._is_float32 and not size.max() < _MAX_FLOAT32:
            raise RefusedError("values may exceed the range of float32")
        deployed = _gamma(one.terms, _UNIT_32) if self._is_float32 else 0.0
        error = ((deployed + self._own) * size + one.noise) * _INFLATED
        state.error[one.out] = error.reshape(count, -1).max(axis=0)
        sources = state.form[:, :, one.inputs]
        form = _apply(sources.reshape(-1, *one.inputs.shape), one.weights)
        form = form.reshape(count, -1, one.bias.size)
        form[:, 0] += one.bias.reshape(-1)
        loose = state.rest[:, one.inputs]
        loose = loose + self._own * (np.abs(sources).sum(axis=1) + loose)
        rest = (_apply(loose, sizes) * _INFLATED + error).reshape(count, -1)
        state.form[:, :, one.out], state.rest[:, one.out] = form, rest
        reach = (np.abs(form[:, 1:]).sum(axis=1) + rest) * _INFLATED + self._own * np.abs(
            form[:, 0]
        )
        middle = (_apply((low + high) / 2, one.weights) + one.bias).reshape(count, -1)
        radius = (_apply((high - low) / 2, sizes) * _INFLATED + error).reshape(count, -1)
        state.lower[:, one.out] = np.maximum(form[:, 0] - reach, middle - radius)
        state.upper[:, one.out] = np.minimum(form[:, 0] + reach, middle + radius)

    def _bend(self, state: State, one: Relu) -> None:
        """A Relu's lines, box and form."""
        out, low, high = one.out, state.lower[:, one.inputs], state.upper[:, one.inputs]
        state.lower[:, out], state.upper[:, out] = np.maximum(low, 0), np.maximum(high, 0)
        is_unstable = (low < 0) & (high > 0)
        # A little too steep, so that the line stays above in spite of the quotient's rounding.
        steep = high / np.where(is_unstable, high - low, 1.0) * (1 + 2.0**-50)
        above = state.above[:, out] = np.where(is_unstable, steep, low >= 0)
        state.below[:, out] = np.where(is_unstable, high > -2 * low, low >= 0)
        constant = state.constant[:, out] = np.where(is_unstable, _LEAST - steep * low, 0.0)
        # The value minus above * x lies between 0 and the constant.
        sources, rest = state.form[:, :, one.inputs], state.rest[:, one.inputs]
        total = np.abs(sources).sum(axis=1) + rest
        state.form[:, :, out] = sources * above[:, None]
        state.form[:, 0, out] += constant / 2
        state.rest[:, out] = above * rest + constant / 2 + self._own * (above * total + constant)

    def _fix(
        self, state: State, region: Slots, neuron: Slots, is_active: NDArray[np.bool_]
    ) -> None:
        """Cut the inputs of neurons by their signs."""
        slot = self.hidden_inputs[neuron]
        low, high = state.lower[region, slot], state.upper[region, slot]
        state.is_empty[region[np.where(is_active, high < 0, low > 0)]] = True
        state.lower[region, slot] = np.where(is_active, np.maximum(low, 0), np.minimum(low, 0))
        state.upper[region, slot] = np.where(is_active, np.maximum(high, 0), np.minimum(high, 0))

    def _tighten(self, state: State, index: int, slopes: Array | None) -> None:
        """Bound the unstable inputs of a Relu by backward substitution."""
        inputs, operations = self.graph.operations[index].inputs, self.graph.operations
        maker = max(place for place in range(index) if operations[place].out.start <= inputs[0])
        one = operations[maker]
        assert isinstance(one, Sum)
        is_unstable = (state.lower[:, inputs] < 0) & (state.upper[:, inputs] > 0)
        regions, places = np.nonzero(is_unstable & ~self._is_exact[inputs])
        step = max(ROW_ELEMENTS // self.graph.slots // 2, 1)
        for start in range(0, len(regions), step):
            region, place = regions[start : start + step], places[start : start + step]
            slot, count = inputs[place], len(region)
            rows = np.zeros((2 * count, self.graph.slots))
            given = None if slopes is None else slopes[:, place].reshape(2 * count, -1)
            signs = np.repeat([1.0, -1.0], count)
            if len(one.inputs) == 1:
                # The first step back needs no product: it is a row of the weights.
                column = np.tile(slot - one.out.start, 2)
                self._scatters[maker].add(rows, one.weights[0].T[column] * signs[:, None])
                first = signs * one.bias[0, column] - np.tile(state.error[slot], 2)
            else:
                rows[np.arange(2 * count), np.tile(slot, 2)] = signs
                first = np.zeros(2 * count)
            end = maker if len(one.inputs) == 1 else index
            bound = first + self.lower(rows, state, np.tile(region, 2), given, end)[0]
            state.lower[region, slot] = np.maximum(state.lower[region, slot], bound[:count])
            state.upper[region, slot] = np.minimum(state.upper[region, slot], -bound[count:])

    def lower(
        self,
        rows: Array,
        state: State,
        regions: NDArray[np.intp],
        slopes: Array | None = None,
        end: int | None = None,
    ) -> tuple[Array, Array]:
        """Lower bounds `(R,)` of `rows @ values`, and the coefficients of the inputs, `(R, n_in)`.

        `rows` `(R, slots)` is used up; `regions` names the region of each row. `slopes`
        `(R, hidden)` replace the lower slopes of unstable neurons; operations before `end` count.
        """
        total, seen = np.zeros(len(rows)), self.hidden_inputs.size
        for index, one in reversed(list(enumerate(self.graph.operations))):
            seen -= one.inputs.size * (isinstance(one, Relu) and one.is_hidden)
            part = rows[:, one.out]
            if (end is not None and index >= end) or not (part[:1].any() or part.any()):
                continue
            if isinstance(one, Sum):
                total += part @ one.bias.reshape(-1)
                total -= np.abs(part) @ state.error[one.out]
                found = _apply(part.reshape(-1, *one.bias.shape), one.weights.swapaxes(1, 2))
            else:
                constant, below, above = (
                    side[:, one.out].take(regions, axis=0)
                    for side in (state.constant, state.below, state.above)
                )
                if slopes is not None and one.is_hidden:
                    given = slopes[:, seen : seen + one.inputs.size]
                    below = np.where(constant > 0, given, below)
                least = np.minimum(part, 0)
                total += np.einsum("rn,rn->r", least, constant)
                # In place, which costs half the time.
                found = part - least
                found *= below
                least *= above
                found += least
            self._scatters[index].add(rows, found.reshape(len(rows), -1))
        part, inputs = rows[:, self.graph.inputs], self.graph.inputs
        low, high = (side[:, inputs].take(regions, axis=0) for side in (state.lower, state.upper))
        total += np.minimum(part * low, part * high).sum(axis=1)
        return total - np.abs(part) @ state.error[inputs], part


def _gamma(count: int, unit: float) -> float:
    return count * unit / (1 - count * unit)


def _largest(lower: Array, upper: Array) -> Array:
    return np.maximum(np.abs(lower), np.abs(upper))


def _apply(values: Array, weights: Array) -> Array:
    """`(N, P, K)` by `(1 or P, K, C)`."""
    if len(weights) == 1:
        return np.asarray(values @ weights[0])
    return np.asarray(np.einsum("npk,pkc->npc", values, weights))


class _Scatter:
    """Adds `(R, n)` to columns of which some may come more than once."""

    def __init__(self, inputs: Slots) -> None:
        flat = inputs.reshape(-1)
        self._order = np.argsort(flat, kind="stable")
        slots, self._starts = np.unique(flat[self._order], return_index=True)
        self._is_single = slots.size == flat.size
        slots = flat if self._is_single else slots
        is_run = bool((np.diff(slots) == 1).all())
        self._places = slice(slots[0], slots[-1] + 1) if is_run else slots

    def add(self, rows: Array, found: Array) -> None:
        """Add to the rows in place."""
        if not self._is_single:
            found = np.add.reduceat(found[:, self._order], self._starts, axis=1)
        rows[:, self._places] += found
