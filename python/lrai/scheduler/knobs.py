"""What a policy may set of a model's waiting line; the data plane obeys without asking."""

import json
from dataclasses import dataclass
from typing import NamedTuple


class ServicePoint(NamedTuple):
    """Predicted time of a batch; straight lines between the points of one bucket edge."""

    edge: int
    """Bucket edge of a ragged model; 0 = no buckets."""
    rows: int
    service_s: float


@dataclass(frozen=True, slots=True)
class Knobs:
    """When a batch of the model leaves, and what is refused. Times in seconds."""

    k: int = 0
    """Rows that close a batch; 0 = `cap`."""
    cap: int = 0
    """Most rows of a batch; 0 = the model's maximum."""
    tau_s: float = 0.0
    """Age of the oldest row that closes a batch."""
    slack_s: float = 0.001
    """Margin added to the predicted service time."""
    work_conserving: bool = True
    """Close the batch when a replica is free."""
    goal_s: float = 0.0
    """Deadline of a request after it is complete, unless its own is nearer; 0 = none."""
    service: tuple[ServicePoint, ...] = ()
    """Predicted times; empty = unknown, then no request is refused as late."""
    edges: tuple[int, ...] = ()
    """Bucket edges of a ragged model; empty = no buckets."""
    token_budget: int = 0
    """Most rows times bucket edge of a batch; 0 = no bound."""
    caps: tuple[tuple[int, int], ...] = ()
    """Most rows by bucket edge, ascending; other edges count as the next larger one."""

    def to_json(self) -> str:
        """Return the text that the data plane reads; times are whole microseconds there."""
        return json.dumps(
            {
                "k": self.k,
                "cap": self.cap,
                "tau_us": round(self.tau_s * 1e6),
                "slack_us": round(self.slack_s * 1e6),
                "work_conserving": self.work_conserving,
                "goal_us": round(self.goal_s * 1e6),
                "service": [
                    (one.edge, one.rows, max(1, round(one.service_s * 1e6))) for one in self.service
                ],
                "edges": self.edges,
                "token_budget": self.token_budget,
                "caps": self.caps,
            }
        )
