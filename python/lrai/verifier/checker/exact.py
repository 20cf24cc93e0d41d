"""Z3: whether assertions about reals can hold, and what is left of the network in one leaf."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.bounds import Bounds, State
from lrai.verifier.checker.graph import ONE, Relu, Slots

_LIMITS: Final = {"rlimit": 4_000_000, "timeout": 60_000}
"""Z3's own count of steps, which a busy machine does not change, and milliseconds."""
_MAX_TERMS: Final = 1 << 18


def number(value: Any) -> str:
    """A number as SMT-LIB writes it, exactly; raises where it is not finite."""
    top, bottom = Fraction(value).as_integer_ratio()
    return f"(/ {top}.0 {bottom}.0)" if top >= 0 else f"(/ (- {-top}.0) {bottom}.0)"


def linear(row: Any, names: Sequence[str], constant: float = 0.0) -> str:
    """A row of coefficients times what the names stand for, and a constant."""
    terms = [f"(* {number(row[i])} {names[i]})" for i in np.flatnonzero(row).tolist()]
    return f"(+ {' '.join([*terms, number(constant)])})"


def satisfiable(names: Iterable[str], assertions: Iterable[str], effort: int = 1) -> str:
    """What Z3 says of assertions about real variables: `unsat`, `sat` or `unknown`."""
    import z3

    solver = z3.Solver()
    solver.set(**{limit: effort * value for limit, value in _LIMITS.items()})
    declared = "".join(f"(declare-const {name} Real)" for name in names)
    solver.from_string(declared + "".join(f"(assert {one})" for one in assertions))
    return str(solver.check())


def ask(bounds: Bounds, state: State, signs: dict[int, int], claims: list[Slots]) -> str:
    """`unsat` if no point of a region fulfils all conditions of a claim, `sat`, or `unknown`.

    `state` holds one region; `signs` tells that a neuron's input, by its slot, is >= 0 (1) or
    <= 0 (-1); a claim is the slots that must all be <= 0. A slot lies between two linear functions
    of inputs and unstable neurons, apart by what may be rounded on the way: `sat` may be due to it.
    """
    slots, relus = np.arange(bounds.graph.slots), bounds.graph.operations
    pairs = [(slots[one.inputs], slots[one.out]) for one in relus if isinstance(one, Relu)]
    sources, outs = np.concatenate([np.zeros((2, 0), np.intp), *pairs], axis=1)
    is_open = state.constant[0, outs] > 0
    sources, outs = sources[is_open], outs[is_open]
    # Backward substitution stops at unstable neurons, and at inputs.
    none, is_stable = np.zeros_like(state.lower), state.constant <= 0
    fixed = none + (slots == ONE)
    below, above = state.below * is_stable, state.above * is_stable
    ends = replace(state, lower=fixed, upper=fixed, constant=none, below=below, above=above)
    wanted = np.unique(np.concatenate([sources, list(signs), *claims]).astype(np.intp))
    units = np.eye(slots.size)[wanted]
    rows = np.concatenate([units, -units])
    totals = bounds.lower(rows, ends, np.zeros(len(rows), np.intp))
    known = [*slots[bounds.inputs], *outs]
    rows, names = rows[:, known], [f"v{slot}" for slot in known]
    if np.count_nonzero(rows) > _MAX_TERMS:
        return "unknown"
    forms = [linear(row, names, total) for row, total in zip(rows, totals, strict=True)]
    low = dict(zip(wanted, forms[: wanted.size], strict=True))
    high = {slot: f"(- {form})" for slot, form in zip(wanted, forms[wanted.size :], strict=True)}
    reach = ((number(side[0, slot]) for side in (state.lower, state.upper)) for slot in known)
    lines = [f"(<= {a} {name} {b})" for name, (a, b) in zip(names, reach, strict=True)]
    for source, out in zip(sources, outs, strict=True):
        slope, constant = (number(side[0, out]) for side in (state.above, state.constant))
        lines.append(f"(<= {low[source]} v{out} (+ (* {slope} {high[source]}) {constant}))")
        lines.append(
            f"(or (<= v{out} {high[source]}) (and (<= v{out} 0.0) (<= {low[source]} 0.0)))"
        )
    for slot, sign in signs.items():
        lines.append(f"(>= {high[slot]} 0.0)" if sign > 0 else f"(<= {low[slot]} 0.0)")
    some = (" ".join(f"(<= {low[slot]} 0.0)" for slot in claim) for claim in claims)
    return satisfiable(names, [*lines, f"(or {' '.join(f'(and {one})' for one in some)})"])
