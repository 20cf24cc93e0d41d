"""Lower bounds of linear functions of a graph's values, with every rounding accounted for.

Intervals, forms over the inputs where these are few, then backward substitution (CROWN, Zhang et
al. 2018) of the inputs of unstable Relus. A sum is deployed with an error of at most gamma(n) times
the sum of the absolute values of its terms, in any order (Higham, Accuracy and Stability, section
3.1); it enters as fresh noise at that sum. The checker's own float64 does the same: all its
roundings are relative to what the same sums of absolute values bound, and `_own` exceeds twice
their number for the whole network, so that one term for each sum covers both.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.verifier.checker.graph import ONE, Array, Graph, Linear, RefusedError, Relu, Slots

Levels = NDArray[np.uint8]
Signs = NDArray[np.int8]
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
    """What is known of N regions, `(N, slots)` each; relaxations stand at the outputs of Relus.

    A lower end is above the upper one only where no input of the region has the fixed signs.
    """

    lower: Array
    upper: Array
    below: Array
    """Slope of the lower line through zero."""
    above: Array
    """Slope of the upper line."""
    constant: Array
    """Value of the upper line at zero; positive where the neuron is unstable."""
    rest: Array
    """How far a slot may be from its form."""
    form: Array
    """`(N, 1 + n_in, slots)`: middle and coefficients of t, inputs scaled to [-1, 1]; or none."""
    error: Array
    """`(slots,)`: how far values of any region may be from their sums; of inputs, what rounding
    costs there.
    """


class Bounds:
    """Bounds of one graph under one arithmetic."""

    def __init__(self, graph: Graph, is_float32: bool, slopes: Levels | None = None) -> None:
        """Prepare for a graph; roundings of its deployment count where `is_float32`.

        `slopes` `(S, hidden)` are lower slopes in steps of 1/255 to choose from; the last row is
        for the default ones.
        """
        self.graph, self._is_float32 = graph, is_float32
        self._slopes = np.zeros((1, len(graph.hidden)), np.uint8) if slopes is None else slopes
        self.inputs = slice(ONE + 1, ONE + 1 + graph.inputs)
        self._own = 2 * _gamma(4 * graph.slots + 4 * len(graph.operations) + 64, _UNIT_64)

    def regions(
        self, box: Array, signs: Signs, slopes: Slots | None = None, around: State | None = None
    ) -> State:
        """All bounds in boxes of inputs, `(2, N, n_in)`, where neurons have fixed signs.

        `signs` `(N, hidden)` are 1 where a neuron's input is >= 0, -1 where it is <= 0, else 0.
        `slopes` `(N, 2 * hidden)` choose those for the lower, then the upper bounds of the inputs
        of neurons. `around` is known of one region that contains all of them.
        """
        count, known = box.shape[1], slice(0, self.inputs.stop)
        columns = self.graph.inputs if self.graph.inputs <= _MAX_FORM_INPUTS else -1
        low, high, below, above, constant, rest = np.zeros((6, count, self.graph.slots))
        form, error = np.zeros((count, 1 + columns, low.shape[1])), np.zeros(low.shape[1])
        state = State(low, high, below, above, constant, rest, form, error)
        low[:, ONE] = high[:, ONE] = 1.0
        low[:, self.inputs], high[:, self.inputs] = box
        largest = np.maximum(np.abs(low[:, known]), np.abs(high[:, known])).max(axis=0)
        rest[:, known] = error[known] = self._own * (largest + _SMALL)
        if form.size:
            axes, form[:, 0, known] = np.arange(columns), (low[:, known] + high[:, known]) / 2
            form[:, 1 + axes, ONE + 1 + axes] = (box[1] - box[0]) / 2
        for one in self.graph.operations:
            if isinstance(one, Linear):
                self._sum(state, one)
                continue
            low, high = state.lower[:, one.inputs], state.upper[:, one.inputs]
            if around is not None:
                np.maximum(low, around.lower[:, one.inputs], out=low)
                np.minimum(high, around.upper[:, one.inputs], out=high)
            # Before the first Relu nothing is bent.
            if state.above.any():
                self._tighten(state, one, slopes)
            self._bend(state, one, signs[:, one.neurons])
        if not all(np.isfinite(part).all() for part in vars(state).values()):
            raise RefusedError("bounds are not finite")
        return state

    def _sum(self, state: State, one: Linear) -> None:
        """A sum's box, and how far it may be from its sum."""
        low, high = state.lower[:, one.inputs], state.upper[:, one.inputs]
        reach = np.maximum(np.abs(low), np.abs(high)) + _SMALL
        size = one.sizes(reach) + _SMALL * reach.sum(axis=1, keepdims=True) + one.noise
        if self._is_float32 and not size.max(initial=0.0) < _MAX_FLOAT32:
            raise RefusedError("values may exceed the range of float32")
        deployed = _gamma(one.terms, _UNIT_32) if self._is_float32 else 0.0
        error = ((deployed + self._own) * size + one.noise) * _INFLATED
        state.error[one.out] = error.max(axis=0)
        middle = one.map((low + high) / 2)
        radius = one.sizes((high - low) / 2) * _INFLATED + error
        low, high = middle - radius, middle + radius
        if state.form.size:
            form, rest = state.form[:, :, one.inputs], state.rest[:, one.inputs]
            rest = rest * _INFLATED + self._own * np.abs(form).sum(axis=1)
            rest = one.sizes(rest) * _INFLATED + error
            form = one.map(form.reshape(-1, form.shape[2])).reshape(*form.shape[:2], -1)
            reach = (np.abs(form[:, 1:]).sum(axis=1) + rest) * _INFLATED
            reach += self._own * np.abs(form[:, 0])
            low, high = np.maximum(low, form[:, 0] - reach), np.minimum(high, form[:, 0] + reach)
            state.form[:, :, one.out], state.rest[:, one.out] = form, rest
        state.lower[:, one.out], state.upper[:, one.out] = low, high

    def _bend(self, state: State, one: Relu, signs: Signs) -> None:
        """Cut a Relu's inputs by the signs of its neurons; its lines and its box."""
        out, low, high = one.out, state.lower[:, one.inputs], state.upper[:, one.inputs]
        if signs.any():
            np.maximum(low, np.where(signs > 0, 0.0, -np.inf), out=low)
            np.minimum(high, np.where(signs < 0, 0.0, np.inf), out=high)
        state.lower[:, out], state.upper[:, out] = np.maximum(low, 0), np.maximum(high, 0)
        is_unstable = (low < 0) & (high > 0)
        # A little too steep, so that the line stays above in spite of the quotient's rounding.
        steep = high / np.where(is_unstable, high - low, 1.0) * (1 + 2.0**-50)
        above = state.above[:, out] = np.where(is_unstable, steep, low >= 0)
        state.below[:, out] = np.where(is_unstable, high > -2 * low, low >= 0)
        constant = state.constant[:, out] = np.where(is_unstable, _LEAST - steep * low, 0.0)
        if state.form.size:
            # The value minus above * x lies between 0 and the constant.
            form, rest = state.form[:, :, one.inputs], state.rest[:, one.inputs]
            total = above * (np.abs(form).sum(axis=1) + rest) + constant
            state.form[:, :, out] = form * above[:, None]
            state.form[:, 0, out] += constant / 2
            state.rest[:, out] = above * rest + constant / 2 + self._own * total

    def _tighten(self, state: State, one: Relu, slopes: Slots | None) -> None:
        """Bound the unstable inputs of a Relu by backward substitution."""
        low, high = state.lower[:, one.inputs], state.upper[:, one.inputs]
        regions, places = np.nonzero((low < 0) & (high > 0))
        step = max(ROW_ELEMENTS // one.out.start // 2, 1)
        for start in range(0, len(regions), step):
            region, place = regions[start : start + step], places[start : start + step]
            count, given = len(region), None
            rows = np.zeros((2 * count, one.out.start))
            column = np.tile(one.inputs.start + place, 2)
            rows[np.arange(2 * count), column] = np.repeat([1.0, -1.0], count)
            if slopes is not None and one.neurons.stop > one.neurons.start:
                neuron = one.neurons.start + place
                half = slopes.shape[1] // 2
                given = slopes[np.tile(region, 2), np.concatenate([neuron, neuron + half])]
            bound = self.lower(rows, state, np.tile(region, 2), given)
            low[region, place] = np.maximum(low[region, place], bound[:count])
            high[region, place] = np.minimum(high[region, place], -bound[count:])

    def lower(
        self, rows: Array, state: State, regions: Slots, slopes: Slots | None = None
    ) -> Array:
        """Lower bounds `(R,)` of `rows @ values`; leaves in `rows` what reaches each slot.

        `rows` `(R, slots)` may end before the last slot; `regions` names the region of each.
        `slopes` `(R,)` choose lower slopes of unstable neurons.
        """
        total, last = np.zeros(len(rows)), len(self._slopes) - 1
        for one in reversed(self.graph.operations):
            part = rows[:, one.out]
            if not (part[:1].any() or part.any()):
                continue
            if isinstance(one, Linear):
                total -= np.abs(part) @ state.error[one.out]
                rows[:, one.inputs] += one.back(part)
                continue
            constant, below, above = (
                side[:, one.out].take(regions, axis=0)
                for side in (state.constant, state.below, state.above)
            )
            if slopes is not None and last and one.neurons.stop > one.neurons.start:
                is_given = (constant > 0) & (slopes < last)[:, None]
                below = np.where(is_given, self._slopes[slopes, one.neurons] / 255.0, below)
            least = np.minimum(part, 0)
            total += np.einsum("rn,rn->r", least, constant)
            rows[:, one.inputs] += (part - least) * below + least * above
        known = slice(0, self.inputs.stop)
        part = rows[:, known]
        low, high = (side[:, known].take(regions, axis=0) for side in (state.lower, state.upper))
        total += np.minimum(part * low, part * high).sum(axis=1)
        return np.asarray(total - np.abs(part) @ state.error[known])


def _gamma(count: int, unit: float) -> float:
    return count * unit / (1 - count * unit)
