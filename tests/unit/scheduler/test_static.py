import json

import pytest

from lrai.scheduler.aimd import Aimd
from lrai.scheduler.knobs import Knobs, ServicePoint
from lrai.scheduler.observation import Counters, observe, quantile_s
from lrai.scheduler.policies import POLICIES
from lrai.scheduler.policy import Target
from lrai.scheduler.static import FixedDelay, Greedy, Static

from .fakes import FakeWindow, seen

TARGET = Target(goal_s=0.01, max_rows=16)


def test_knobs_are_whole_microseconds_on_the_wire() -> None:
    knobs = Knobs(k=8, tau_s=1.5e-3, goal_s=0.02, service=(ServicePoint(0, 1, 93.4e-6),))
    plain = json.loads(knobs.to_json())
    assert (plain["k"], plain["tau_us"], plain["goal_us"]) == (8, 1500, 20000)
    assert plain["service"] == [[0, 1, 93]]
    assert plain["edges"] == []


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_decides_and_explains(name: str) -> None:
    policy = POLICIES[name](TARGET)
    assert policy.name == name
    for _ in range(3):
        knobs = policy.decide(seen(rows=100))
        assert 0 <= knobs.k <= TARGET.max_rows
        assert 0 <= knobs.cap <= TARGET.max_rows
    assert policy.why()


def test_static_is_what_it_was_told_within_the_model() -> None:
    knobs = Static(TARGET, Knobs(k=32, tau_s=0.001)).decide(seen())
    assert (knobs.k, knobs.tau_s) == (16, 0.001)
    assert Static(TARGET).decide(seen()).tau_s == 0.005


def test_delay_waits_and_greedy_does_not() -> None:
    assert not FixedDelay(TARGET).decide(seen()).work_conserving
    assert Greedy(TARGET).decide(seen()).work_conserving


def test_aimd_adds_while_the_goal_holds_and_backs_off_when_it_does_not() -> None:
    policy = Aimd(TARGET)
    caps = [policy.decide(seen(latency_us=500)).cap for _ in range(10)]
    assert caps == list(range(2, 12))
    assert policy.decide(seen(latency_us=50_000)).cap == 9
    assert policy.decide(seen(requests=0)).cap == 9


def test_observation_is_the_difference_of_two_windows() -> None:
    first = FakeWindow(requests=10, rows_in=30, busy_ns=5_000_000, latency_counts=[4, 6, 0])
    _, counters = observe(first, Counters(0.0), 1.0)
    second = FakeWindow(
        requests=15,
        rows_in=50,
        busy_ns=7_000_000,
        latency_counts=[5, 9, 1],
        queue_age_us=250,
        service=[(0, 2, 3, 300.0, 30_200.0)],
    )
    now, _ = observe(second, counters, 1.1)
    assert (now.requests, now.rows, now.latency) == (5, 20, (1, 3, 1))
    assert now.interval_s == pytest.approx(0.1)
    assert now.busy_s == pytest.approx(0.002)
    assert now.queue_age_s == pytest.approx(250e-6)
    assert now.service[0].sum_s == pytest.approx(300e-6)
    assert now.service[0].sum_squares_s2 == pytest.approx(30_200e-12)


def test_quantile_is_linear_in_its_bucket() -> None:
    assert quantile_s((0, 0), (10,), 0.5) is None
    assert quantile_s((100, 100, 0), (10, 20), 0.75) == pytest.approx(15e-6)
    assert quantile_s((0, 0, 5), (10, 20), 0.99) == pytest.approx(20e-6)
