"""What a trial is asked, and what it answers."""

from dataclasses import dataclass

from lrai.actors.messages import Message


@dataclass(frozen=True)
class TrialMessage(Message):
    """Asks a trial to run batches of one size, over its link."""

    shapes: tuple[tuple[int, ...], ...]
    """Of each input, batch dimension included; empty = an optional input left out, or a scalar."""
    seconds: float
    """How long to run; three batches at least, and longer on a busy machine."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial has measured."""

    batch_s: float
    """Median time of the undisturbed batches; 0 = there were none."""
    cpu_s: float
    """Median processor time of all batches."""
    used_bytes: int
    """Memory beyond what it shares with its template."""
    runs: int
    """Batches."""
    undisturbed: int
    """Batches among them during which nobody else wanted the processors."""
    error: str = ""
    """Why the batch could not be run; nothing else is then known."""
