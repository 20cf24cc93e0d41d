import json
from dataclasses import replace

import pytest

from lrai.scheduler.knobs import Knobs
from lrai.scheduler.learner import ACTIONS, Learner
from lrai.scheduler.model_based import ModelBased
from lrai.scheduler.observation import Observation
from lrai.scheduler.policy import Target

from .fakes import samples, seen

TARGET = Target(0.001, 32)
CONTEXTS = range(16)


def tick(number: int, latency_us: float = 500.0) -> Observation:
    times = {rows: 80e-6 + 13e-6 * rows for rows in (1, 2, 4, 8)}
    return seen(number / 10, rows=500, service=samples(times, 5), latency_us=latency_us)


def run(policy: ModelBased, ticks: int = 30) -> Knobs:
    for number in range(ticks):
        knobs = policy.decide(tick(number))
    return knobs


def with_table(costs: dict[int, float], count: float = 1000.0) -> Learner:
    """A learner that has seen what these actions cost, at any load."""
    learner = Learner(TARGET, explores_every=10**9)
    arms = [
        [context, *(action, count, cost, 1e-4)]
        for context in CONTEXTS
        for action, cost in costs.items()
    ]
    learner.from_plain({"arms": arms})
    return learner


def test_without_experience_the_plan_stands():
    assert run(Learner(TARGET, explores_every=10**9)) == run(ModelBased(TARGET))


def test_an_action_that_is_surely_cheaper_is_taken_and_one_that_may_be_is_not():
    plan, half = run(ModelBased(TARGET)), ACTIONS.index((0.5, 1.0))
    assert run(with_table({0: 0.0, half: -0.03})).k == round(plan.k * 0.5)
    assert run(with_table({0: 0.0, half: -0.03}, count=1.0)).k == plan.k
    assert run(with_table({0: 0.0, half: +0.1})).k == plan.k


@pytest.mark.parametrize("action", range(1, len(ACTIONS)))
def test_no_action_leaves_what_the_goal_allows(action):
    learner = with_table({0: 0.0, action: -0.5})
    knobs = run(learner)
    assert 1 <= knobs.k <= knobs.cap
    assert knobs.tau_s <= learner.longest_s
    assert (knobs.goal_s, knobs.work_conserving) == (0.001, knobs.k == 1)


def test_trying_visits_every_action():
    learner = Learner(TARGET, explores_every=1)
    run(learner, 100)
    tried = {action for _, action, count, *_ in learner.to_plain()["arms"] if count}
    assert tried == set(range(len(ACTIONS)))


def test_misses_make_it_greedy_for_a_while():
    learner = Learner(TARGET, explores_every=10**9)
    run(learner)
    late = replace(tick(30, latency_us=2_000.0), late=100)
    assert learner.decide(late) == Knobs(cap=learner.decide(tick(31)).cap)
    assert learner.decide(tick(40)).goal_s == 0.0
    assert learner.decide(tick(55)).goal_s == 0.001


def test_what_was_learnt_survives_as_json():
    learner = Learner(TARGET, explores_every=1)
    run(learner, 60)
    plain = json.loads(json.dumps(learner.to_plain()))
    other = Learner(TARGET)
    other.from_plain(plain)
    assert other.to_plain()["arms"] == learner.to_plain()["arms"]
    assert "rows times" in other.why()
