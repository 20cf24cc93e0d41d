"""Over 1000 seeded experiments with known rates, the bound fails no more often than it may."""

import numpy as np

from lrai.verifier.clopper_pearson import upper_bound
from lrai.verifier.statistical import Plan, Uniform, draw

RUNS, CASES, ALPHA = 1000, 2000, 0.05
UNIT = Uniform(np.zeros(1), np.ones(1))


def bound_of_a_run(seed, rate):
    plan = Plan(None, None, UNIT, epsilon=0.0, n=CASES, alpha=ALPHA, seed=seed)
    violations = int((draw(plan, 0, CASES)[:, 0] < rate).sum())
    return upper_bound(violations, CASES, ALPHA)


def test_bound_covers_the_known_rate():
    rates = (0.0005, 0.003, 0.02, 0.2, 0.9)
    bounds = [(rates[seed % 5], bound_of_a_run(seed, rates[seed % 5])) for seed in range(RUNS)]
    covered = sum(bound >= rate for rate, bound in bounds)
    assert covered >= (1 - ALPHA) * RUNS
    assert covered < RUNS  # a bound that never failed would be no bound of 95 %
    assert all(bound < rate + 0.05 for rate, bound in bounds)
