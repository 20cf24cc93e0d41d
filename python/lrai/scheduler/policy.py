"""The base of all policies: from what was seen to the next knobs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lrai.scheduler.knobs import Knobs
from lrai.scheduler.observation import Observation


@dataclass(frozen=True)
class Target:
    """What a policy works towards for one model."""

    goal_s: float | None
    """p99 from request complete to answer begun; None = as fast as possible."""
    max_rows: int
    """Most rows that a batch can hold."""
    cpu_cost: float = 1.0
    """What a busy processor costs, against a mean latency of five goals."""
    replicas: int = 1


class Policy(ABC):
    """Decides the knobs of one model, tick by tick; knows no clock but the observations' own."""

    name: ClassVar[str]

    def __init__(self, target: Target) -> None:
        """Start without having seen anything."""
        self.target = target

    def first(self) -> Knobs:
        """Return the knobs before anything is seen: greedy."""
        return Knobs()

    @abstractmethod
    def decide(self, seen: Observation) -> Knobs:
        """Return the knobs for the next tick."""

    @abstractmethod
    def why(self) -> str:
        """Say in one or two sentences why the knobs are what they are."""

    def to_plain(self) -> dict[str, Any]:
        """Return what was learnt, as JSON can carry it."""
        return {}

    def from_plain(self, plain: Mapping[str, Any]) -> None:  # noqa: B027, not all policies learn
        """Take up what `to_plain` of the same policy returned; raises KeyError or TypeError."""
