"""What one room asks of another without knowing it: small protocols, wired in `server.py`."""

from typing import Literal, Protocol

Fault = Literal["", "signal", "hang", "memory", "retired"]
"""Evidence against the batch of a lost replica: none, a fault signal, a hang, its memory limit;
none either where others have taken its place."""


class DataPlane(Protocol):
    """The part of the data plane that the supervisor of actors needs."""

    def attach(self, key: int, link_fd: int) -> int:
        """Give the gateway's end of a link to model `key`, which owns it; return the replica."""
        ...

    def settle(self, replica: int, fault: Fault) -> None:
        """Say why a lost replica died, so that its batch is run again whole, or in halves."""
        ...


class Window(Protocol):
    """What the supervisor looks at of one model; counters since the start, plain numbers."""

    @property
    def key(self) -> int:
        """The model."""
        ...

    @property
    def batches(self) -> int:
        """Batches run."""
        ...

    @property
    def inflight_age_ms(self) -> list[tuple[int, int]]:
        """For each replica with a batch in flight: its id and the batch's age."""
        ...

    @property
    def compute_bounds_us(self) -> list[int]:
        """Upper bounds of the compute histogram's buckets; the last bucket has none."""
        ...

    @property
    def compute_counts(self) -> list[int]:
        """Batches per bucket of the compute histogram, not cumulative."""
        ...
