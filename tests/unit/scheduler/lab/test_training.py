from functools import partial

from lrai.scheduler.lab import traces
from lrai.scheduler.lab.service import affine
from lrai.scheduler.lab.simulator import Scene, simulate
from lrai.scheduler.lab.training import train, trained
from lrai.scheduler.model_based import ModelBased

SCENE = Scene(affine(80.0, 13.0), 1e-3, warmup_s=4.0)
CAPACITY = SCENE.service.capacity(32)


def test_training_pays_where_requests_come_in_groups():
    def groups(seed, seconds):
        single = traces.make("poisson-0.05", CAPACITY / 4, seconds, seed)
        return traces.in_groups(single, 4, 2e-5, seed)

    table = train([(groups(seed, 40.0), SCENE) for seed in (1, 2)])
    assert sum(count for _, _, count, *_ in table["arms"]) > 100
    judging = groups(3, 20.0)
    learner = simulate(partial(trained, table), judging, SCENE)
    assert learner.cost < 0.95 * simulate(ModelBased, judging, SCENE).cost
