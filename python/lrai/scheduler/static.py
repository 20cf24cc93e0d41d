"""Policies that never change their mind: fixed knobs, Triton's delay, greedy."""

from dataclasses import replace

from lrai.scheduler.knobs import Knobs
from lrai.scheduler.observation import Observation
from lrai.scheduler.policy import Policy, Target


class Static(Policy):
    """Closes a batch at k rows or at an age of tau, whichever comes first."""

    name = "static"

    def __init__(self, target: Target, knobs: Knobs | None = None) -> None:
        """Use these knobs; without any, 32 rows or half of the goal (10 ms without a goal)."""
        super().__init__(target)
        if knobs is None:
            tau_s = target.goal_s / 2 if target.goal_s else 0.01
            knobs = Knobs(k=32, tau_s=tau_s, work_conserving=False)
        self.knobs = replace(knobs, k=min(knobs.k, target.max_rows))

    def first(self) -> Knobs:
        """Return the same knobs as ever."""
        return self.knobs

    def decide(self, seen: Observation) -> Knobs:  # noqa: ARG002, whatever is seen
        """Return the same knobs as ever."""
        return self.knobs

    def why(self) -> str:
        """Say that they are fixed."""
        if self.knobs.work_conserving:
            return "a batch leaves as soon as a replica is free, with whatever waits"
        rows = self.knobs.k or self.knobs.cap or self.target.max_rows
        return f"fixed: a batch leaves with {rows} rows or after {self.knobs.tau_s * 1e3:g} ms"


class FixedDelay(Static):
    """Triton's `max_queue_delay_microseconds`: fills batches up to a fixed age."""

    name = "fixed-delay"

    def __init__(self, target: Target, tau_s: float = 200e-6) -> None:
        """Wait at most `tau_s` for more rows."""
        super().__init__(target, Knobs(tau_s=tau_s, work_conserving=False))


class Greedy(Static):
    """Takes everything that waits the moment a replica is free: Triton's default."""

    name = "greedy"

    def __init__(self, target: Target) -> None:
        """Never wait."""
        super().__init__(target, Knobs())
