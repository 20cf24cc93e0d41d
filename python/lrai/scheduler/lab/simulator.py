"""The door to the simulator: a policy, a trace and service times in; what a report tells out."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import ceil
from types import SimpleNamespace
from typing import Final, cast

from lrai import _native
from lrai.config import SchedulerConfig
from lrai.errors import ConfigError
from lrai.scheduler.control import Controller, Subject
from lrai.scheduler.lab.service import Service
from lrai.scheduler.lab.traces import Trace
from lrai.scheduler.observation import Window
from lrai.scheduler.policy import Policy, Target

TICK_S: Final = 0.1
_MISS_COST, _LATENCY_COST = 20.0, 0.2

Choice = Callable[[Target], Policy]
"""Makes a policy with the parameters that it is to have."""


@dataclass(frozen=True)
class Scene:
    """What policies are judged on, except for the arrivals."""

    service: Service
    goal_s: float | None
    max_rows: int = 32
    replicas: int = 1
    warmup_s: float = 10.0
    cpu_cost: float = 1.0
    seed: int = 0

    @property
    def target(self) -> Target:
        """What its policies work towards."""
        return Target(self.goal_s, self.max_rows, self.cpu_cost, self.replicas)


@dataclass(frozen=True)
class Outcome:
    """One simulation after its warm-up; times in seconds, shares of 1."""

    requests: int
    misses: int
    """Answered after the goal, refused, or dropped."""
    mean_s: float
    p50_s: float
    p99_s: float
    busy: float
    """Share of the replicas' time."""
    rows_per_batch: float
    cost: float
    """20 misses' share + cpu_cost busy + 0.2 mean/goal; without a goal the mean in seconds."""

    @property
    def miss_share(self) -> float:
        """Misses among the requests."""
        return self.misses / max(1, self.requests)


def simulate(choice: Choice, trace: Trace, scene: Scene) -> Outcome:
    """Run the whole trace, asking the policy every 100 ms; raises ConfigError."""
    subject = Subject(trace.name, "1", scene.max_rows, scene.replicas)
    controller = Controller(subject, choice(scene.target), SchedulerConfig(), ())
    simulator = _started(trace, scene)
    simulator.set_knobs(controller.knobs.to_json())
    for tick in range(1, ceil(trace.seconds / TICK_S) + 1):
        simulator.advance(TICK_S)
        window = cast(Window, SimpleNamespace(**json.loads(simulator.observe())))
        if knobs := controller.tick(window, 0.0, tick * TICK_S, 0):
            simulator.set_knobs(knobs.to_json())
    simulator.drain()
    return _outcome(json.loads(simulator.outcome()), scene)


def _started(trace: Trace, scene: Scene) -> _native.Simulator:
    config = {
        "replicas": scene.replicas,
        "max_rows": scene.max_rows,
        "goal_us": round((scene.goal_s or 0.0) * 1e6),
        "warmup_s": min(scene.warmup_s, trace.seconds / 2),
        "seed": scene.seed,
        "service": asdict(scene.service),
    }
    arrivals = (trace.times_ns.astype("<i8"), trace.rows.astype("<u4"), trace.lengths.astype("<u4"))
    try:
        return _native.Simulator(json.dumps(config), *(one.tobytes() for one in arrivals))
    except _native.NativeError as error:
        hint = f"requests have at most {scene.max_rows} rows: --max-batch-size"
        raise ConfigError(f"{trace.name} cannot be simulated: {error}", hint) from error


def _outcome(told: dict[str, float], scene: Scene) -> Outcome:
    requests, misses = int(told["requests"]), int(told["misses"])
    mean_s = told["mean_us"] / 1e6
    cost = mean_s
    if scene.goal_s:
        share = misses / max(1, requests)
        cost = (
            _MISS_COST * share
            + scene.cpu_cost * told["busy"]
            + _LATENCY_COST * mean_s / scene.goal_s
        )
    return Outcome(
        requests,
        misses,
        mean_s,
        told["p50_us"] / 1e6,
        told["p99_us"] / 1e6,
        told["busy"],
        told["rows"] / max(1, told["batches"]),
        cost,
    )
