"""The bound of Clopper and Pearson equals published values and covers every rate."""

import math

import pytest

from lrai.errors import InvalidInputError
from lrai.verifier.clopper_pearson import tail, upper_bound


def binomial(violations, n, rate):
    return math.comb(n, violations) * rate**violations * (1 - rate) ** (n - violations)


@pytest.mark.parametrize(
    ("violations", "n", "alpha", "expected"),
    [
        (0, 10**7, 0.001, 6.907753e-07),
        (0, 10**7, 0.05, 2.995732e-07),
        (0, 10**7, 1e-6, 1.381550e-06),
        (1, 10**7, 0.001, 9.233409e-07),
        (10, 10**7, 0.001, 2.413395e-06),
        (37, 1000, 0.05, 0.0483899266),
        (5_000_000, 10_000_000, 0.001, 0.5004886585),
        (6, 6, 0.05, 1.0),
    ],
)
def test_bound_is_the_quantile_of_the_beta_distribution(violations, n, alpha, expected):
    bound = upper_bound(violations, n, alpha)
    assert bound == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    ("n", "alpha", "rate"),
    [(29_956, 0.05, 1e-4), (46_050, 0.01, 1e-4), (690_773, 0.001, 1e-5), (69_077_550, 0.001, 1e-7)],
)
def test_cases_needed_without_a_violation_are_the_published_ones(n, alpha, rate):
    assert upper_bound(0, n, alpha) <= rate < upper_bound(0, n - 1, alpha)


@pytest.mark.parametrize(("n", "violations"), [(1, 0), (7, 6), (20, 3), (100, 50), (100, 99)])
@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_tail_is_the_sum_of_the_binomial_terms(n, violations, rate):
    terms = [binomial(count, n, rate) for count in range(violations + 1)]
    assert tail(violations, n, rate) == pytest.approx(math.fsum(terms), rel=1e-10)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
@pytest.mark.parametrize("n", [1, 5, 30])
def test_share_of_experiments_whose_bound_fails_is_at_most_alpha(n, alpha):
    bounds = [upper_bound(violations, n, alpha) for violations in range(n + 1)]
    for step in range(1, 200):
        rate = step / 200
        failing = [binomial(k, n, rate) for k in range(n + 1) if bounds[k] < rate]
        assert math.fsum(failing) <= alpha


def test_bound_rises_with_the_violations_and_falls_with_the_cases():
    assert upper_bound(3, 100, 0.01) < upper_bound(4, 100, 0.01)
    assert upper_bound(3, 200, 0.01) < upper_bound(3, 100, 0.01)


@pytest.mark.parametrize(
    ("violations", "n", "alpha"), [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (0, 5, 0.0), (0, 5, 1.0)]
)
def test_numbers_without_meaning_are_refused(violations, n, alpha):
    with pytest.raises(InvalidInputError, match="hint: 0 <= violations"):
        upper_bound(violations, n, alpha)
