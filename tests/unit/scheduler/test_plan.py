"""The plan's formulas against a small simulation of the rule that they describe."""

import random
from itertools import pairwise

import pytest

from lrai.scheduler.plan import Load, Plan, choose

ALPHA_S, BETA_S, GOAL_S = 80e-6, 13e-6, 1e-3
AFFINE = [0.0, *(ALPHA_S + BETA_S * rows for rows in range(1, 33))]
LINEAR = [420e-6 * rows for rows in range(33)]


def load(rate: float, table_s: list[float] = AFFINE, replicas: int = 1) -> Load:
    return Load([(1.0, rate)], 1.0, table_s, 0.05, replicas)


def simulated(rate: float, k: int, tau_s: float) -> tuple[float, float]:
    """Return busy share and mean latency of one server that closes at k rows or age tau."""
    rng = random.Random(7)
    times, now_s = [], 0.0
    for _ in range(60_000):
        now_s += rng.expovariate(rate)
        times.append(now_s)
    at, free_s, busy_s, latency_s = 0, 0.0, 0.0, 0.0
    while at + 32 < len(times):
        kth_s = times[at + k - 1]
        leaves_s = max(free_s, min(times[at] + tau_s, kth_s))
        rows = next(n for n in range(1, 33) if n == 32 or times[at + n] > leaves_s)
        free_s = leaves_s + AFFINE[rows]
        busy_s += AFFINE[rows]
        latency_s += sum(free_s - born_s for born_s in times[at : at + rows])
        at += rows
    return busy_s / times[at], latency_s / at


@pytest.mark.parametrize("rate", [3_000, 12_000, 30_000, 40_000])
def test_expectations_hold_in_a_simulation(rate: float) -> None:
    plan = choose(load(rate), GOAL_S, 0.8e-3, 32, 1.0)
    busy, mean_s = simulated(rate, plan.k, plan.tau_s)
    assert plan.busy == pytest.approx(busy, rel=0.05)
    assert plan.mean_s == pytest.approx(mean_s, rel=0.1)


def cost(rate: float, k: int, tau_s: float) -> float:
    busy, mean_s = simulated(rate, k, tau_s)
    return busy + 0.2 * mean_s / GOAL_S


@pytest.mark.parametrize("rate", [3_000, 12_000, 30_000])
def test_no_other_setting_is_much_cheaper(rate: float) -> None:
    plan = choose(load(rate), GOAL_S, 0.8e-3, 32, 1.0)
    grid = [cost(rate, k, tau_s) for k in (1, 2, 4, 8, 12, 16, 24) for tau_s in (2e-4, 5e-4, 8e-4)]
    assert cost(rate, plan.k, plan.tau_s) <= 1.05 * min(grid)


def test_waits_for_more_rows_when_more_come() -> None:
    plans = [choose(load(rate), GOAL_S, 0.8e-3, 32, 1.0) for rate in (300, 3_000, 12_000, 30_000)]
    assert all(one.k < other.k for one, other in pairwise(plans))


def test_does_not_wait_where_that_saves_nothing() -> None:
    assert choose(load(500, LINEAR), 0.02, 0.018, 32, 1.0).k == 1
    assert choose(load(5_000), GOAL_S, 0.8e-3, 32, 0.0).k == 1
    assert choose(load(0.1), GOAL_S, 0.8e-3, 32, 1.0).k == 1


def test_dear_processors_are_used_less() -> None:
    plans = [choose(load(5_000), GOAL_S, 0.8e-3, 32, price) for price in (0.2, 1.0, 5.0)]
    assert all(one.busy >= other.busy for one, other in pairwise(plans))
    assert plans[0].busy > plans[-1].busy


def test_overload_keeps_replicas_busy() -> None:
    assert choose(load(100_000), GOAL_S, 0.8e-3, 24, 1.0).busy == 1.0
    assert choose(load(100_000, replicas=4), GOAL_S, 0.8e-3, 24, 1.0).busy < 1.0


def test_rows_of_a_request_count_together() -> None:
    one = choose(load(12_000), GOAL_S, 0.8e-3, 32, 1.0)
    four = choose(Load([(1.0, 3_000.0)], 4.0, AFFINE, 0.05, 1), GOAL_S, 0.8e-3, 8, 1.0)
    assert four.k <= one.k
    assert four.busy == pytest.approx(one.busy, rel=0.2)


def test_two_loads_are_weighed() -> None:
    mixed = Load([(0.8, 3_000.0), (0.2, 30_000.0)], 1.0, AFFINE, 0.05, 1)
    low, high = (choose(load(rate), GOAL_S, 0.8e-3, 32, 1.0) for rate in (3_000, 30_000))
    plan = choose(mixed, GOAL_S, 0.8e-3, 32, 1.0)
    assert isinstance(plan, Plan)
    assert low.k <= plan.k <= high.k


def test_a_table_that_falls_is_no_error() -> None:
    table_s = [0.0, *(100e-6 + 20e-6 * rows for rows in range(1, 9)), *([150e-6] * 8)]
    assert choose(load(40_000, table_s), GOAL_S, 0.8e-3, 16, 1.0).k >= 1
