import json
from dataclasses import replace

import pytest

from lrai.scheduler.knobs import Knobs
from lrai.scheduler.model_based import ModelBased
from lrai.scheduler.policy import Target

from .fakes import samples, seen


def taught(target: Target, alpha_s: float, beta_s: float, rate: float = 5_000) -> ModelBased:
    policy = ModelBased(target)
    times = {rows: alpha_s + beta_s * rows for rows in (1, 2, 4, 8)}
    for tick in range(30):
        policy.decide(seen(tick / 10, rows=round(rate / 10), service=samples(times, 5)))
    return policy


def knobs_of(policy: ModelBased, rate: float = 5_000, now_s: float = 3.0) -> Knobs:
    return policy.decide(seen(now_s, rows=round(rate / 10)))


MLP = (80e-6, 13e-6)


def test_is_greedy_before_anything_is_known() -> None:
    policy = ModelBased(Target(0.001, 32))
    assert policy.decide(seen()) == Knobs()
    assert policy.is_reachable is None
    assert "nothing" in policy.why()


def test_waits_for_rows_within_the_goal() -> None:
    policy = taught(Target(0.001, 32), *MLP)
    knobs = knobs_of(policy)
    assert not knobs.work_conserving
    assert 1 < knobs.k <= knobs.cap
    assert 0 < knobs.tau_s < knobs.goal_s == 0.001
    assert knobs.tau_s + policy.service.predict(1)[0] < 0.001
    assert knobs.service
    assert f"{knobs.k} rows" in policy.why()


def test_is_greedy_without_a_goal() -> None:
    policy = taught(Target(None, 32), *MLP)
    knobs = knobs_of(policy)
    assert (knobs.work_conserving, knobs.goal_s, knobs.service) == (True, 0.0, ())
    assert "without a latency goal" in policy.why()


def test_a_model_of_a_million_rows_is_planned_for_thousands() -> None:
    policy = taught(Target(None, 1 << 20), *MLP)
    assert len(policy.service.table_s()) == 8192 + 1
    assert knobs_of(policy).cap <= 8192


@pytest.mark.parametrize("goal_s", [None, 0.015])
def test_settles_on_single_rows_where_batches_do_not_pay(goal_s: float | None) -> None:
    policy = taught(Target(goal_s, 32), 10e-6, 420e-6, rate=1_000)
    knobs = knobs_of(policy, rate=1_000)
    assert knobs.cap == 1
    assert "one row" in policy.why()


def test_stays_with_single_rows_while_two_gain_little() -> None:
    policy = taught(Target(0.02, 32), 26e-6, 423e-6, rate=1_000)
    single = samples({1: 449e-6}, 100)
    caps = [policy.decide(seen(3 + tick / 10, rows=100, service=single)).cap for tick in range(500)]
    assert set(caps) == {1}


def test_single_rows_are_given_up_where_two_gain_much() -> None:
    policy = taught(Target(0.02, 32), 10e-6, 420e-6, rate=1_000)
    assert knobs_of(policy, rate=1_000).cap == 1
    quicker = samples({1: 430e-6, 2: 520e-6, 4: 700e-6}, 50)
    for tick in range(40):
        knobs = policy.decide(seen(3 + tick / 10, rows=100, service=quicker))
    assert knobs.cap > 1


def test_keeps_free_what_batches_are_held_up_for() -> None:
    calm, jerky = (taught(Target(0.001, 32), *MLP) for _ in range(2))
    for tick in range(40):
        times = [93e-6 * (1 + 0.001 * (at % 9 - 4)) for at in range(40)]
        held_up = [*times[1:], times[0] + 200e-6]
        one, two = (samples({1: some}, 0) for some in (times, held_up))
        before = calm.decide(seen(3 + tick / 10, rows=500, service=one))
        after = jerky.decide(seen(3 + tick / 10, rows=500, service=two))
    assert calm.longest_s - jerky.longest_s > 150e-6
    assert after.tau_s < before.tau_s


def test_a_flood_is_served_in_full_batches() -> None:
    policy = taught(Target(0.001, 32), *MLP)
    assert knobs_of(policy).k < 20
    for tick in range(30):
        knobs = policy.decide(seen(3 + tick / 10, rows=500, refused_late=2_000))
    assert knobs.k == knobs.cap == 32
    for tick in range(60):
        knobs = policy.decide(seen(6 + tick / 10, rows=500))
    assert knobs.k < 20


def test_batches_of_every_other_tick_teach_enough() -> None:
    policy = taught(Target(0.001, 32), *MLP)
    slower = samples({rows: 2 * (80e-6 + 13e-6 * rows) for rows in (1, 2, 4, 8)}, 100)
    for tick in range(2):
        policy.decide(seen(3 + tick / 10, rows=500, service=slower))
    assert policy.service.predict(1)[0] == pytest.approx(186e-6, rel=0.05)


def test_a_full_batch_that_is_quick_is_never_made_smaller_without_a_goal() -> None:
    assert knobs_of(taught(Target(None, 64), 0.0, 20e-6)).cap == 64
    assert knobs_of(taught(Target(None, 64), 0.0, 420e-6)).cap == 1


def test_looks_again_whether_larger_batches_pay() -> None:
    policy = taught(Target(None, 32), 10e-6, 420e-6, rate=1_000)
    single = samples({1: 430e-6}, 100)
    caps = [
        policy.decide(seen(3 + tick / 10, rows=100, service=single)).cap for tick in range(1300)
    ]
    assert set(caps) == {1, 2}
    assert caps.count(2) <= 4


def test_goal_below_the_service_time_is_not_enforced() -> None:
    policy = taught(Target(50e-6, 32), *MLP)
    assert policy.is_reachable is False
    assert knobs_of(policy).goal_s == 0.0
    assert "more than the goal" in policy.why()


def test_tries_when_everything_is_refused_and_nothing_runs() -> None:
    policy = taught(Target(0.001, 32), *MLP)
    assert knobs_of(policy).service
    refusing = seen(3.1, rows=0, refused_late=50)
    knobs = policy.decide(refusing)
    assert (knobs.goal_s, knobs.service) == (0.001, ())
    busy = replace(refusing, now_s=3.2, pending=20)
    assert policy.decide(busy).service, "a long batch runs, and is no reason to let others wait"


def test_small_batches_are_no_way_out_of_a_goal_that_fixed_costs_eat() -> None:
    policy = taught(Target(0.2, 64), 50e-3, 2e-3, rate=500)
    knobs = knobs_of(policy, rate=500)
    assert knobs.cap > 25
    assert policy.service.predict(knobs.cap)[0] <= 0.14


def test_cap_stays_open_where_larger_batches_always_pay() -> None:
    policy = taught(Target(None, 64), 112e-6, 0.2e-6)
    assert {knobs_of(policy, now_s=3 + tick / 10).cap for tick in range(100)} == {64}


def test_keeps_a_margin_while_answers_are_late() -> None:
    policy = taught(Target(0.001, 32), *MLP)
    before = knobs_of(policy)
    for tick in range(40):
        after = policy.decide(seen(3 + tick / 10, rows=500, latency_us=5_000))
    assert after.tau_s < before.tau_s
    assert policy.margin <= 0.5
    for tick in range(1000):
        policy.decide(seen(7 + tick / 10, rows=500, latency_us=500))
    assert policy.margin == 0.0


def test_two_batches_in_a_row_keep_the_goal() -> None:
    policy = taught(Target(0.001, 256), *MLP)
    knobs = knobs_of(policy)
    assert 2 * policy.service.predict(knobs.cap)[0] <= 0.001


def test_takes_up_what_was_learnt() -> None:
    policy = taught(Target(0.001, 32), *MLP)
    again = ModelBased(Target(0.001, 32))
    again.from_plain(json.loads(json.dumps(policy.to_plain())))
    assert again.is_reachable
    assert again.decide(seen(0.1, rows=500)).k == pytest.approx(knobs_of(policy).k, abs=1)


def test_sizes_that_were_never_seen_do_not_make_it_refuse() -> None:
    policy = ModelBased(Target(0.01, 32))
    for tick in range(10):
        policy.decide(seen(tick / 10, rows=10, service=samples({1: 430e-6}, 10)))
    assert knobs_of(policy, rate=100).slack_s <= 0.0025


def test_a_few_batches_that_were_held_up_change_little() -> None:
    policy = taught(Target(0.02, 32), *MLP)
    before = knobs_of(policy)
    for tick in range(30):
        held_up = samples({1: [93e-6] * 30 + [20e-3], 4: [132e-6] * 20 + [15e-3]}, 0)
        after = policy.decide(seen(3 + tick / 10, rows=500, service=held_up))
    assert after.cap > before.cap / 2
    assert after.service[0].service_s < 3 * 93e-6


def test_batches_are_made_smaller_on_evidence_only() -> None:
    policy = ModelBased(Target(None, 32))
    for tick in range(20):
        once = samples({1: [400e-6, 500e-6], 2: [500e-6, 1400e-6]}, 0)
        knobs = policy.decide(seen(tick / 10, rows=6, service=once))
    assert knobs.cap > 2
