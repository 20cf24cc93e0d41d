from functools import partial

import pytest

from lrai.errors import ConfigError
from lrai.scheduler.knobs import Knobs
from lrai.scheduler.lab import traces
from lrai.scheduler.lab.service import Service, affine
from lrai.scheduler.lab.simulator import Scene, simulate
from lrai.scheduler.model_based import ModelBased
from lrai.scheduler.static import Greedy, Static

MLP = Scene(affine(80.0, 13.0), 1e-3, warmup_s=2.0)


def trace(name, scene=MLP, seconds=8.0, seed=0):
    return traces.make(name, scene.service.capacity(scene.max_rows), seconds, seed)


def test_the_same_trace_gives_the_same_outcome():
    arrivals = trace("drift")
    assert simulate(ModelBased, arrivals, MLP) == simulate(ModelBased, arrivals, MLP)


def test_greedy_is_fastest_and_waiting_saves_time_of_the_replica():
    arrivals = trace("poisson-0.2")
    greedy = simulate(Greedy, arrivals, MLP)
    waiting = simulate(
        partial(Static, knobs=Knobs(k=10, tau_s=7e-4, work_conserving=False)), arrivals, MLP
    )
    assert waiting.p50_s > 2 * greedy.p50_s
    assert waiting.busy < 0.5 * greedy.busy
    assert waiting.rows_per_batch > 8
    assert greedy.rows_per_batch < 3
    assert waiting.requests == greedy.requests == (arrivals.times_ns >= 2e9).sum()


def test_the_cost_is_made_of_misses_busy_and_latency():
    outcome = simulate(Greedy, trace("poisson-0.5"), MLP)
    expected = 20 * outcome.miss_share + outcome.busy + 0.2 * outcome.mean_s / 1e-3
    assert outcome.cost == pytest.approx(expected)
    assert simulate(Greedy, trace("poisson-0.05"), Scene(MLP.service, None)).cost < 1e-3


def test_the_model_based_policy_beats_greedy_within_the_goal():
    arrivals = trace("poisson-0.2")
    greedy, own = simulate(Greedy, arrivals, MLP), simulate(ModelBased, arrivals, MLP)
    assert own.cost < 0.65 * greedy.cost
    assert own.p99_s < 1e-3


def test_a_scene_without_sense_is_refused():
    with pytest.raises(ConfigError, match=r"drift cannot be simulated: .*no service times"):
        simulate(Greedy, trace("drift"), Scene(Service(()), 1e-3))
