import pytest

from lrai.errors import ConfigError
from lrai.scheduler.lab import traces
from lrai.scheduler.lab.report import COLUMNS, HINDSIGHT, check_names, draw, judge
from lrai.scheduler.lab.service import affine
from lrai.scheduler.lab.simulator import Scene, simulate
from lrai.scheduler.lab.tuning import candidates, hindsight, tuned

SCENE = Scene(affine(80.0, 13.0), 1e-3, max_rows=8, warmup_s=1.0)
TUNING, JUDGING = (traces.make("poisson-0.2", 40_000.0, 3.0, seed) for seed in (1, 0))


def test_tuning_takes_the_cheapest_candidate_of_its_own_trace():
    label, _ = tuned("static", TUNING, SCENE)
    costs = {
        name: simulate(choice, TUNING, SCENE).cost
        for name, choice in candidates("static", SCENE).items()
    }
    assert costs[label] == min(costs.values())


def test_hindsight_is_no_dearer_than_what_was_tuned_elsewhere():
    _, best = hindsight(JUDGING, SCENE)
    for name in ("one", "static", "static-8", "greedy"):
        assert best.cost <= simulate(tuned(name, TUNING, SCENE)[1], JUDGING, SCENE).cost + 1e-12


def test_a_report_has_a_line_and_a_bar_per_policy():
    judged = judge(["greedy", "static-8", HINDSIGHT], TUNING, JUDGING, SCENE)
    assert [one.policy for one in judged] == ["greedy", "static-8", HINDSIGHT]
    assert all(len(one.cells()) == len(COLUMNS) for one in judged)
    picture = draw(judged)
    assert picture.count("<rect x=") == 3 * 4
    assert picture.count(">static-8<") == 1


def test_a_policy_that_does_not_exist_is_refused():
    check_names(["greedy", "static-32", "one", HINDSIGHT])
    for name in ("gready", "static-0", "static-x"):
        with pytest.raises(ConfigError, match="there is no policy"):
            check_names([name])
