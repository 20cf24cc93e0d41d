"""What a trial is asked, and what it answers."""

from dataclasses import dataclass

from lrai.actors.messages import Message


@dataclass(frozen=True)
class TrialMessage(Message):
    """Asks a trial to run batches of one size, over its link."""

    shapes: tuple[tuple[int, ...], ...]
    """Of each input, batch dimension included; empty = an optional input left out, or a scalar."""
    seconds: float
    """How long to run; three batches at least."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial has measured."""

    batch_s: float
    """Median time of a batch."""
    cpu_s: float
    """Processor time of a batch, on the average."""
    waited: float
    """Share of the time in which its threads waited for a processor; may pass 1 for several."""
    used_bytes: int
    """Memory beyond what it shares with its template."""
    error: str = ""
    """Why the batch could not be run; nothing else is then known."""
