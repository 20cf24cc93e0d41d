"""Z3 on one region, in exact rationals: the network as linear arithmetic with a few open Relus.

Every weight is taken as the rational number that it is. What the deployed network may round is a
fresh variable per sum, bounded by the error term of the bounds, so that `unsat` covers it; a point
of `sat` may owe to that freedom and is only a candidate.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from lrai.verifier.operators.affine import Affine
from lrai.verifier.operators.base import Array
from lrai.verifier.operators.relu import Relu
from lrai.verifier.regions import Index
from lrai.verifier.relu_bounds import Region, ReluBox

_MAX_TERMS: Final = 20_000


@dataclass(frozen=True)
class Exact:
    """What Z3 found about one claim in a region."""

    is_proved: bool
    point: Array | None = None
    """`(n_in,)`: an input that may be a counterexample."""


def ask(box: ReluBox, region: Region, members: Index, timeout_ms: int = 5_000) -> Exact:
    """Whether no input of the region meets all conditions in `members`, indices of outputs.

    Networks other than of affine maps and Relus, and large ones, stay open.
    """
    nodes = box.network.nodes
    known = all(isinstance(node.operator, Affine | Relu | type(None)) for node in nodes)
    weights = [node.operator.weights for node in nodes if isinstance(node.operator, Affine)]
    if not known or sum(part.size for parts in weights for part in parts) > _MAX_TERMS:
        return Exact(is_proved=False)
    import z3

    solver = z3.Solver()
    solver.set("timeout", timeout_ms)
    values, inputs = _describe(box, region, solver)
    conditions = np.concatenate([values[index] for index in box.network.outputs])
    solver.add(*(conditions[index] <= 0 for index in members))
    answer = solver.check()
    if answer != z3.sat:
        return Exact(is_proved=answer == z3.unsat)
    model = solver.model()
    found = [model.eval(variable, model_completion=True) for variable in inputs]
    return Exact(
        is_proved=False,
        point=np.array([one.numerator_as_long() / one.denominator_as_long() for one in found]),
    )


def _describe(box: ReluBox, region: Region, solver: Any) -> tuple[list[Any], list[Any]]:
    """Assert what the nodes compute; their values as object arrays, and the input variables."""
    import z3

    errors = box.bounds.relax(region.boxes).errors
    values: list[Any] = []
    inputs: list[Any] = []
    for index, node in enumerate(box.network.nodes):
        found = np.array([z3.Real(f"v{index}_{i}") for i in range(node.size)], object)
        values.append(found)
        lower, upper = region.boxes[index].lower[0], region.boxes[index].upper[0]
        solver.add(*(found[i] >= _rational(lower[i]) for i in range(node.size)))
        solver.add(*(found[i] <= _rational(upper[i]) for i in range(node.size)))
        if node.operator is None:
            inputs += list(found)
        elif isinstance(node.operator, Affine):
            for i in range(node.size):
                total = _sum(node.operator, [values[source] for source in node.inputs], i)
                slack = _rational(errors[index][0, i])
                solver.add(found[i] - total <= slack, total - found[i] <= slack)
        else:
            before, source = values[node.inputs[0]], region.boxes[node.inputs[0]]
            for i in range(node.size):
                if source.lower[0, i] >= 0:
                    solver.add(found[i] == before[i])
                elif source.upper[0, i] <= 0:
                    solver.add(found[i] == 0)
                else:
                    solver.add(found[i] >= 0, found[i] >= before[i])
                    solver.add(z3.Or(found[i] <= 0, found[i] <= before[i]))
    return values, inputs


def _sum(operator: Affine, values: list[Any], column: int) -> Any:
    import z3

    terms = [_rational(operator.bias[column])]
    for value, weights in zip(values, operator.weights, strict=True):
        rows = np.flatnonzero(weights[:, column])
        terms.extend(_rational(weights[row, column]) * value[row] for row in rows)
    return z3.Sum(terms)


def _rational(value: float) -> Any:
    import z3

    exact = Fraction(float(value))
    return z3.Q(exact.numerator, exact.denominator)
