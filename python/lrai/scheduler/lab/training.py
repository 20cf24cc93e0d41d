"""Trains the learner offline, in the simulator, before it meets requests."""

from collections.abc import Iterable
from typing import Any

from lrai.scheduler.lab.simulator import Scene, simulate
from lrai.scheduler.lab.traces import Trace
from lrai.scheduler.learner import Learner
from lrai.scheduler.policy import Target


def train(lessons: Iterable[tuple[Trace, Scene]]) -> dict[str, Any]:
    """Return the table of costs after all lessons, for `Learner.from_plain`."""
    arms: dict[str, Any] = {"arms": []}
    for trace, scene in lessons:
        learner = Learner(scene.target, explores_every=1)
        learner.from_plain(arms)
        arms = _practise(learner, trace, scene)
    return arms


def _practise(learner: Learner, trace: Trace, scene: Scene) -> dict[str, Any]:
    """Return the learner's table of costs after one lesson."""
    simulate(lambda _: learner, trace, scene)
    return {"arms": learner.to_plain()["arms"]}


def trained(plain: dict[str, Any], target: Target) -> Learner:
    """Return a learner that begins with such a table."""
    learner = Learner(target)
    learner.from_plain(plain)
    return learner
