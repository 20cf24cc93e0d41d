"""Z3 on one leaf: what is left of the network between linear functions, in rationals."""

from dataclasses import replace
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.bounds import Bounds, State
from lrai.verifier.checker.graph import Relu, Slots

_LIMITS: Final = {"rlimit": 4_000_000, "timeout": 60_000}
"""Z3's own count of steps, which a busy machine does not change, and milliseconds."""
_MAX_TERMS: Final = 1 << 18


def ask(bounds: Bounds, state: State, signs: dict[int, int], claims: list[Slots]) -> str:
    """`unsat` if no point of a region fulfils all conditions of a claim, `sat`, or `unknown`.

    `state` holds one region; `signs` tells that a neuron's input, by its slot, is >= 0 (1) or
    <= 0 (-1); a claim is the slots that must all be <= 0. A slot lies between two linear functions
    of inputs and unstable neurons, apart by what may be rounded on the way: `sat` may be due to it.
    """
    import z3

    slots, relus = np.arange(bounds.graph.slots), bounds.graph.operations
    pairs = [(slots[one.inputs], slots[one.out]) for one in relus if isinstance(one, Relu)]
    sources, outs = np.concatenate([np.zeros((2, 0), np.intp), *pairs], axis=1)
    is_open = state.constant[0, outs] > 0
    sources, outs = sources[is_open], outs[is_open]
    # Backward substitution stops at unstable neurons, and at inputs.
    none, is_stable = np.zeros_like(state.lower), state.constant <= 0
    below, above = state.below * is_stable, state.above * is_stable
    ends = replace(state, lower=none, upper=none, constant=none, below=below, above=above)
    wanted = np.unique(np.concatenate([sources, list(signs), *claims]).astype(np.intp))
    units = np.eye(slots.size)[wanted]
    rows = np.concatenate([units, -units])
    totals = bounds.lower(rows, ends, np.zeros(len(rows), np.intp))
    names = [*slots[bounds.inputs], *outs]
    variables = {slot: z3.Real(f"v{slot}") for slot in names}
    if np.count_nonzero(rows[:, names]) > _MAX_TERMS:
        return "unknown"
    terms = ([_number(row[slot]) * variables[slot] for slot in names if row[slot]] for row in rows)
    forms = [z3.Sum(some) + _number(total) for some, total in zip(terms, totals, strict=True)]
    low = dict(zip(wanted, forms[: wanted.size], strict=True))
    high = {slot: -form for slot, form in zip(wanted, forms[wanted.size :], strict=True)}
    solver = z3.Solver()
    solver.set(**_LIMITS)
    for slot, x in variables.items():
        solver.add(x >= _number(state.lower[0, slot]), x <= _number(state.upper[0, slot]))
    for source, out in zip(sources, outs, strict=True):
        y, least = variables[out], low[source]
        slope, constant = (_number(side[0, out]) for side in (state.above, state.constant))
        solver.add(y >= least, y <= slope * high[source] + constant)
        solver.add(z3.Or(y <= high[source], z3.And(y <= 0, least <= 0)))
    for slot, sign in signs.items():
        solver.add(high[slot] >= 0 if sign > 0 else low[slot] <= 0)
    for claim in claims:
        solver.push()
        solver.add(*(low[slot] <= 0 for slot in claim))
        answer = str(solver.check())
        solver.pop()
        if answer != "unsat":
            return answer
    return "unsat"


def _number(value: float) -> Any:
    import z3

    return z3.Q(*float(value).as_integer_ratio())
