"""Random small networks with nested properties: what the verifier says, Z3 says of the whole network."""

from itertools import pairwise

import numpy as np
import pytest
import z3

from lrai.verifier.checker import check

OPERATORS = {"<=": lambda left, right: left <= right, ">=": lambda left, right: left >= right}


def random_layers(rng):
    sizes = [int(rng.integers(1, 4)), *rng.integers(2, 6, rng.integers(1, 3)), 2]
    return [
        (rng.integers(-16, 17, pair) / 8, rng.integers(-16, 17, pair[1]) / 8)
        for pair in pairwise(sizes)
    ]


def random_condition(rng, inputs, level, depth):
    """VNN-LIB text, and a function of the variables that makes the same for Z3."""
    if depth and rng.random() < 0.7:
        parts = [random_condition(rng, inputs, level, depth - 1) for _ in range(rng.integers(2, 4))]
        kind = str(rng.choice(["and", "or"]))
        join = {"and": z3.And, "or": z3.Or}[kind]
        text = f"({kind} {' '.join(part[0] for part in parts)})"
        return text, lambda x, y: join(*(part[1](x, y) for part in parts))
    sign = str(rng.choice(list(OPERATORS)))
    compare = OPERATORS[sign]
    if rng.random() < 0.25:
        index, limit = int(rng.integers(inputs)), float(rng.integers(-8, 9) / 8)
        return f"({sign} X_{index} {limit})", lambda x, _: compare(x[index], limit)
    if rng.random() < 0.5:
        return f"({sign} Y_0 Y_1)", lambda _, y: compare(y[0], y[1])
    index, limit = int(rng.integers(2)), float(np.round(level * rng.normal(), 3))
    return f"({sign} Y_{index} {limit})", lambda _, y: compare(
        y[index], z3.Q(round(limit * 1000), 1000)
    )


def oracle(layers, condition):
    solver = z3.Solver()
    x = [z3.Real(f"x{index}") for index in range(len(layers[0][0]))]
    solver.add(*(bound for one in x for bound in (one >= -1, one <= 1)))
    values = x
    for index, (weights, bias) in enumerate(layers):
        sums = [
            z3.Sum(*(value * float(weight) for value, weight in zip(values, column, strict=True)))
            + float(shift)
            for column, shift in zip(weights.T, bias, strict=True)
        ]
        is_last = index == len(layers) - 1
        values = sums if is_last else [z3.If(one > 0, one, z3.RealVal(0)) for one in sums]
    solver.add(condition(x, values))
    return str(solver.check())


def tell(bench, seed):
    """What the verifier and the oracle say, and what the checker says of a certificate."""
    rng = np.random.default_rng(seed)
    layers = random_layers(rng)
    inputs = len(layers[0][0])
    text, condition = random_condition(rng, inputs, 4.0, 3)
    model = bench.dense(layers)
    subject = bench.property(text, [-1.0] * inputs, [1.0] * inputs, 2)
    verdict = bench.decide(model, subject)
    accepted = None
    if verdict.certificate is not None:
        path = bench.folder / "proof"
        verdict.certificate.write(path)
        accepted = check(path, [model], subject).accepted
    return verdict.answer, oracle(layers, condition), accepted


def judge(bench, seeds):
    told = {seed: tell(bench, seed) for seed in seeds}
    wrong = {
        seed: answers
        for seed, answers in told.items()
        if answers[0] not in ("unknown", answers[1]) or answers[2] is False
    }
    decided = sum(answers[0] != "unknown" for answers in told.values())
    kinds = {answers[1] for answers in told.values()}
    assert not wrong
    assert kinds == {"sat", "unsat"}
    assert decided >= 0.99 * len(told)
    assert all(answers[2] for answers in told.values() if answers[0] == "unsat")


def test_fifty_networks_are_decided_as_z3_decides_them(bench):
    judge(bench, range(50))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_hundred_networks_are_decided_as_z3_decides_them(bench):
    judge(bench, range(1000, 1500))
