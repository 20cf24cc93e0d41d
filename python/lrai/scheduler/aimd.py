"""Additive increase, multiplicative decrease of the batch size: the policy of Clipper.

Source: Crankshaw et al., Clipper: A Low-Latency Online Prediction Serving System, NSDI 2017.
"""

from lrai.scheduler.knobs import Knobs
from lrai.scheduler.observation import Observation, quantile_s
from lrai.scheduler.policy import Policy, Target


class Aimd(Policy):
    """Greedy, with a bound on a batch's rows that the goal moves."""

    name = "aimd"

    def __init__(self, target: Target, increase: float = 1.0, decrease: float = 0.9) -> None:
        """Add `increase` rows per good tick, multiply by `decrease` after a bad one."""
        super().__init__(target)
        self.increase, self.decrease = increase, decrease
        self._cap = 1.0
        self._p99_s: float | None = None

    def decide(self, seen: Observation) -> Knobs:
        """Bound the rows by whether this tick met the goal."""
        self._p99_s = quantile_s(seen.latency, seen.bounds_us, 0.99)
        if self._p99_s is not None:
            is_good = self.target.goal_s is None or self._p99_s <= self.target.goal_s
            cap = self._cap + self.increase if is_good else self._cap * self.decrease
            self._cap = min(max(cap, 1.0), float(self.target.max_rows))
        return Knobs(cap=int(self._cap))

    def why(self) -> str:
        """Say what the last tick did to the bound."""
        seen = "nothing" if self._p99_s is None else f"a p99 of {self._p99_s * 1e3:.2f} ms"
        return f"at most {int(self._cap)} rows in a batch, after the last tick saw {seen}"
