"""Z3 on one leaf: the network as linear forms of inputs and unstable neurons, in rationals."""

from fractions import Fraction
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.bounds import State
from lrai.verifier.checker.graph import Array, Graph, Sum

_TIMEOUT_MS: Final = 10_000
_MAX_SLOTS: Final = 6_000
_INFLATED: Final = 1 + 2.0**-20


def ask(graph: Graph, state: State, fixed: dict[int, bool], claims: list[Array]) -> str:
    """`unsat` if no point of a region fulfils all conditions of a claim, `sat`, or `unknown`.

    `state` holds one region; `fixed` tells that the input of a neuron, by its slot, is >= 0 or
    <= 0; a claim is the slots that must all be <= 0. What sums may deviate by, and what float64
    rounds here, are one number for each form, its radius: `sat` may be due to it.
    """
    import z3

    if graph.slots > _MAX_SLOTS or state.is_empty[0]:
        return "unsat" if state.is_empty[0] else "unknown"
    solver = z3.Solver()
    solver.set("timeout", _TIMEOUT_MS)
    forms, constants, radii, unstable = _forms(graph, state, fixed)
    variables = {
        int(slot): z3.Real(f"v{slot}") for slot in (*graph.inputs, *(y for _, y in unstable))
    }
    for slot, variable in variables.items():
        solver.add(
            variable >= _number(state.lower[0, slot]), variable <= _number(state.upper[0, slot])
        )

    def ends(slot: int) -> tuple[Any, Any]:
        used = [key for key in variables if forms[slot, key]]
        form = z3.Sum([_number(forms[slot, key]) * variables[key] for key in used])
        middle, radius = form + _number(constants[slot]), _number(radii[slot])
        return middle - radius, middle + radius

    for source, out in unstable:
        low, high = ends(source)
        solver.add(variables[out] >= 0, variables[out] >= low)
        solver.add(z3.Or(variables[out] <= high, z3.And(variables[out] <= 0, low <= 0)))
    for source, is_active in fixed.items():
        low, high = ends(source)
        solver.add(high >= 0 if is_active else low <= 0)
    for claim in claims:
        solver.push()
        solver.add(*(ends(int(slot))[0] <= 0 for slot in claim))
        answer = str(solver.check())
        solver.pop()
        if answer != "unsat":
            return answer
    return "unsat"


def _forms(
    graph: Graph, state: State, fixed: dict[int, bool]
) -> tuple[Array, Array, Array, list[tuple[int, int]]]:
    """Coefficients `(slots, slots)`, constants and radii of all slots; inputs and outputs of the
    unstable neurons. Column j is slot j where that is an input or an unstable neuron, and else how
    far the sum at j deviates.
    """
    size = graph.slots
    forms, (constants, loose) = np.zeros((size, size)), np.zeros((2, size))
    lower, upper, deviation = state.lower[0], state.upper[0], state.error.copy()
    deviation[graph.inputs] = 0.0
    reach = np.maximum(np.abs(lower), np.abs(upper))
    unstable = []
    forms[graph.inputs, graph.inputs] = 1.0
    for one in graph.operations:
        out = np.arange(one.out.start, one.out.stop)
        if isinstance(one, Sum):
            # A column of a sum's slot has room for the deviation only.
            reach[out] = deviation[out]
            weights = np.broadcast_to(one.weights, (len(one.inputs), *one.weights.shape[1:]))
            parts = np.concatenate([forms, constants[:, None]], axis=1)[one.inputs]
            made = np.einsum("pks,pkc->pcs", parts, weights).reshape(out.size, -1)
            forms[out], constants[out] = made[:, :-1], made[:, -1] + one.bias.reshape(-1)
            forms[out, out] += 1.0
            # All roundings are relative to the sums of the absolute values of the terms.
            terms = (
                np.abs(parts) @ np.append(reach, 1.0) * (8 * size * 2.0**-53) + loose[one.inputs]
            )
            rounded = np.einsum("pk,pkc->pc", terms, np.abs(weights)).reshape(-1)
            loose[out] = (rounded + 2.0**-50 * one.size.reshape(-1) + 2.0**-500) * _INFLATED
            continue
        for source, target in zip(one.inputs.tolist(), out.tolist(), strict=True):
            is_active = fixed.get(source, bool(lower[source] >= 0))
            if source not in fixed and lower[source] < 0 < upper[source]:
                unstable.append((source, target))
                forms[target, target] = 1.0
            elif is_active:
                forms[target], constants[target] = forms[source], constants[source]
                loose[target] = loose[source]
    chosen = [*graph.inputs.tolist(), *(target for _, target in unstable)]
    rest = np.abs(forms)
    rest[:, chosen] = 0.0
    return forms, constants, (rest @ deviation + loose) * _INFLATED, unstable


def _number(value: float) -> Any:
    import z3

    exact = Fraction(float(value))
    return z3.Q(exact.numerator, exact.denominator)
