"""What a search answers."""

from dataclasses import dataclass
from typing import Literal

from lrai.verifier.certificate import Certificate
from lrai.verifier.network import Array

Answer = Literal["unsat", "sat", "unknown"]


@dataclass(frozen=True)
class Witness:
    """An unsafe input, exact in float32, and what the network answers."""

    x: Array
    """`(n_in,)`."""
    y: Array
    """`(n_out,)`."""


@dataclass(frozen=True)
class Verdict:
    """Whether a property holds of a network, and why."""

    answer: Answer
    """`unsat`: it holds; `sat`: the witness refutes it; the words of VNN-LIB."""
    witness: Witness | None = None
    certificate: Certificate | None = None
    reason: str = ""
    """Why the answer is `unknown`, or what qualifies another one."""
    boxes: int = 0
    """Boxes that were bounded."""
    seconds: float = 0.0
    bound: float = float("-inf")
    """The smallest margin by which the conditions of an open or closed box are missed."""


@dataclass(frozen=True)
class Progress:
    """How far a search has come."""

    boxes: int
    bound: float
    """The smallest lower bound of the open boxes; above 0 nothing is open."""
    share: float
    """Share of the volume that is proved, 0 to 1."""
    seconds: float
