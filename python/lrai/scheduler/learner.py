"""Reinforcement learning inside what the model allows: a bandit on multipliers of its plan.

The context is the load; an action multiplies the plan's rows and age. What an action earns is the
cost that was seen, less the cost that the plan expected: the load's own ups and downs cancel. Now
and then it tries what may be cheapest (UCB1: Auer, Cesa-Bianchi and Fischer 2002); else it leaves
the plan alone unless another action is cheaper beyond doubt. Rows stay between one and the cap and
ages below what the goal allows, so no action leaves the feasible set.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import copysign, inf, log2, sqrt
from typing import Any, Final

from lrai.scheduler.knobs import Knobs
from lrai.scheduler.model_based import ModelBased
from lrai.scheduler.observation import Observation
from lrai.scheduler.plan import LATENCY_COST, MISS_COST
from lrai.scheduler.policy import Target

ACTIONS: Final = (
    *((1.0, 1.0), (0.5, 1.0), (0.75, 1.0), (1.5, 1.0), (2.0, 1.0)),
    *((1.0, 0.5), (1.0, 1.5), (0.5, 0.5), (1.5, 1.5), (0.0, 0.0)),
)
"""Multipliers of the plan's rows and age; nothing waits in the last."""
_EPOCH_TICKS: Final = 3
_LEVELS: Final = 8
_MEMORY: Final = 200.0
_DOUBT: Final = 2.0
_LEAST_DEVIATION: Final = 0.02
_EXPLORES_EVERY: Final = 50
_MOST_MISSES: Final = 0.005
_MISS_MEMORY: Final = 2000
_RETREAT_S: Final = 2.0


class _Arm:
    """What an action has cost more than expected, in one context."""

    __slots__ = ("count", "mean", "variance")

    def __init__(self, count: float = 0.0, mean: float = 0.0, variance: float = 0.0) -> None:
        self.count, self.mean, self.variance = count, mean, variance

    def add(self, cost: float) -> None:
        self.count = min(self.count + 1, _MEMORY)
        gap = cost - self.mean
        self.mean += gap / self.count
        self.variance += (gap * (cost - self.mean) - self.variance) / self.count

    def bound(self, doubt: float) -> float:
        """Return the cost with so many standard errors added; infinite before the first try."""
        if not self.count:
            return copysign(inf, doubt)
        deviation = max(_LEAST_DEVIATION, sqrt(self.variance))
        return self.mean + doubt * deviation / sqrt(self.count)


class Learner(ModelBased):
    """Trims the model-based plan by what its multiples have cost so far."""

    name = "learner"

    def __init__(self, target: Target, explores_every: int = _EXPLORES_EVERY) -> None:
        """Know nothing; try something every so many choices."""
        super().__init__(target)
        self.explores_every = explores_every
        self._choices = 0
        self._arms: dict[tuple[int, int], _Arm] = {}
        self._context = self._action = 0
        self._ticks = 0
        self._cost = 0.0
        self._misses = 0.0
        self._retreats_until_s = -inf

    def decide(self, seen: Observation) -> Knobs:
        """Learn what the last action cost, then choose the next one every few ticks."""
        knobs = super().decide(seen)
        goal_s, plan = knobs.goal_s, self.plan
        if not goal_s or plan is None:
            self._ticks = 0
            return knobs
        self._watch_misses(seen)
        if seen.now_s < self._retreats_until_s:
            self._ticks = 0
            return replace(knobs, k=0, tau_s=0.0, work_conserving=True)
        if self._ticks:
            self._cost += (self._seen_cost(seen, goal_s) - plan.cost) / _EPOCH_TICKS
        if self._ticks == _EPOCH_TICKS:
            self._arm(self._action).add(self._cost)
            self._ticks = 0
        if not self._ticks:
            self._cost, self._context = 0.0, self._find_context(seen)
            self._action = self._choose()
        self._ticks += 1
        return self._scaled(knobs)

    def why(self) -> str:
        """Say what the model wants and how that is trimmed."""
        rows, age = ACTIONS[self._action]
        arm = self._arm(self._action)
        return (
            f"{super().why()}; rows times {rows:g} and age times {age:g},"
            f" which cost {arm.mean:+.3f} in {arm.count:.0f} trials at such a load"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the model's state and the table of costs."""
        arms = [[*key, arm.count, arm.mean, arm.variance] for key, arm in self._arms.items()]
        return {"model": super().to_plain(), "arms": arms}

    def from_plain(self, plain: Mapping[str, Any]) -> None:
        """Take up what `to_plain` returned; a table alone, as training writes it, will do."""
        if "model" in plain:
            super().from_plain(plain["model"])
        self._arms = {
            (int(context), int(action)): _Arm(*state) for context, action, *state in plain["arms"]
        }

    def _choose(self) -> int:
        """Return the plan's own action unless another is surely cheaper, or it is time to try."""
        self._choices += 1
        if self._choices % self.explores_every == 0:
            return min(range(len(ACTIONS)), key=lambda action: self._arm(action).bound(-_DOUBT))
        best = min(range(1, len(ACTIONS)), key=lambda action: self._arm(action).bound(_DOUBT))
        return best if self._arm(best).bound(_DOUBT) < self._arm(0).mean else 0

    def _arm(self, action: int) -> _Arm:
        return self._arms.setdefault((self._context, action), _Arm())

    def _find_context(self, seen: Observation) -> int:
        """Number the load: octaves of the share of the capacity, twice for even and for bursty."""
        rows_s = self.arrivals.rate * self.arrivals.rows_per_request
        edge = self.service.edges[-1]
        table_s = self.service.table_s(edge)
        share = rows_s * table_s[-1] / (len(table_s) - 1) / max(1, seen.replicas)
        level = min(_LEVELS - 1, max(0, int(_LEVELS + log2(max(share, 1e-9)) * 1.5)))
        return level + _LEVELS * self.arrivals.is_bursty

    def _seen_cost(self, seen: Observation, goal_s: float) -> float:
        busy = seen.busy_s / seen.interval_s / max(1, seen.replicas)
        if not (asked := sum(seen.latency) + seen.refused_late):
            return self.target.cpu_cost * busy
        lows = (0, *seen.bounds_us)
        total_us = sum(
            count * (low + high) / 2
            for count, low, high in zip(seen.latency, lows, seen.bounds_us, strict=False)
        )
        mean_s = total_us / max(1, sum(seen.latency)) * 1e-6
        misses = (seen.late + seen.refused_late) / asked
        return self.target.cpu_cost * busy + LATENCY_COST * mean_s / goal_s + MISS_COST * misses

    def _watch_misses(self, seen: Observation) -> None:
        """Be greedy for a while when more than 0.5% of some thousand requests miss the goal."""
        asked = sum(seen.latency) + seen.refused_late
        if not asked:
            return
        share = asked / (asked + _MISS_MEMORY)
        self._misses += share * ((seen.late + seen.refused_late) / asked - self._misses)
        if self._misses > _MOST_MISSES:
            self._misses = 0.0
            self._retreats_until_s = seen.now_s + _RETREAT_S

    def _scaled(self, knobs: Knobs) -> Knobs:
        """Multiply rows and age, within the cap and what the goal allows."""
        if self._action == 0:
            return knobs
        rows, age = ACTIONS[self._action]
        k = min(knobs.cap, max(1, round(knobs.k * rows)))
        if k == 1:
            return replace(knobs, k=1, tau_s=0.0, work_conserving=True)
        tau_s = min(self.longest_s, knobs.tau_s * age)
        return replace(knobs, k=k, tau_s=tau_s, work_conserving=False)
