"""Decides a property: a bound, a quick attack, then branch and bound until time is up."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lrai.verifier.attack import AttackSettings, attack
from lrai.verifier.bounds import FEW_INPUTS, Arithmetic
from lrai.verifier.certificate import Certificate, Tree
from lrai.verifier.input_split import InputSplit
from lrai.verifier.network import Array, Network
from lrai.verifier.operators.base import Linear
from lrai.verifier.operators.curve import Clip, LeakyRelu
from lrai.verifier.operators.product import Maximum
from lrai.verifier.operators.quantize import FakeQuantize
from lrai.verifier.operators.relu import Relu
from lrai.verifier.property import Case, Property
from lrai.verifier.relu_split import MAX_HIDDEN, ReluSplit
from lrai.verifier.replay import Part, Replay, float32_inside
from lrai.verifier.verdict import Answer, Progress, Verdict, Witness

_QUICK = AttackSettings(starts=32, steps=20, rounds=1)
_PROGRESS_S = 0.2
_CERTIFIED = (Linear, Relu, LeakyRelu, Clip, Maximum, FakeQuantize, type(None))
"""What the checker can bound."""
"""Up to here inputs are split, which closes boxes of any network; beyond it Relus are."""


@dataclass(frozen=True)
class SearchSettings:
    """How long to search and what counts; the defaults serve every property."""

    timeout_s: float = 300.0
    arithmetic: Arithmetic = "float32"
    """What a proof covers: `float32` deployed in any order of summation, or `real` numbers."""
    parts: tuple[Part, ...] = ()
    """The models that a witness is replayed with; without one only the network itself is asked."""
    open_boxes: int = 2_000_000
    """Boxes that may wait at once: about 200 bytes each with five inputs."""


def verify(
    network: Network,
    subject: Property,
    settings: SearchSettings,
    progress: Callable[[Progress], None] | None = None,
) -> Verdict:
    """Say whether the property holds of the network.

    `unsat` carries a certificate, `sat` a replayed witness, `unknown` the reason. Raises
    VerifierError where a model cannot be replayed.
    """
    return _Search(network, subject, settings, progress).run()


class _Search:
    def __init__(
        self,
        network: Network,
        subject: Property,
        settings: SearchSettings,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._start = time.monotonic()
        self._network, self._subject, self._settings = network, subject, settings
        self._report, self._reported = progress, self._start
        self._replay: Replay | None = None
        self._groups: list[InputSplit | ReluSplit] = []
        self._doubts = 0

    def run(self) -> Verdict:
        """Attack, then bound every group of cases in turn."""
        groups = _groups(self._subject.cases)
        for case in (group[0] for group in groups):
            if not np.all(np.isfinite([case.lower, case.upper])):
                return self._verdict("unknown", reason="an input of the property has no finite box")
        few = self._network.input_size <= FEW_INPUTS
        relus = [n.size for n in self._network.nodes if isinstance(n.operator, Relu)]
        search = ReluSplit if not few and 0 < sum(relus) <= MAX_HIDDEN else InputSplit
        arithmetic = self._settings.arithmetic
        self._groups = [search(self._network, group, arithmetic) for group in groups]
        verdict = self._round()
        if verdict is None and few:
            # Where a point is dear the searches themselves look for a counterexample.
            verdict = self._attack()
        while verdict is None and self._open():
            verdict = self._round()
        if verdict is None and any(group.stuck for group in self._groups):
            verdict = self._unknown("a box cannot be split further")
        return verdict or self._proved([group.tree for group in self._groups])

    def _open(self) -> list[InputSplit | ReluSplit]:
        return [group for group in self._groups if group.open]

    def _round(self) -> Verdict | None:
        """One step of every open group; None where nothing ends the search."""
        for group in self._open():
            witness = group.step(self._confirm)
            if witness is not None:
                return self._verdict("sat", witness)
            if self._seconds() > self._settings.timeout_s:
                return self._unknown("time ran out")
        if sum(group.waiting for group in self._open()) > self._settings.open_boxes:
            return self._unknown("too many boxes are open")
        self._show()
        return None

    def _proved(self, trees: Sequence[Tree]) -> Verdict:
        for node in self._network.nodes:
            if not isinstance(node.operator, _CERTIFIED):
                reason = (
                    f"bounded, without a certificate: the checker has no bounds for {node.name}"
                )
                return self._verdict("unsat", reason=reason)
        every = np.arange(self._network.input_size)
        feeds = [every if part.inputs is None else part.inputs for part in self._settings.parts]
        certificate = Certificate(
            self._network.digests,
            self._subject,
            self._settings.arithmetic,
            tuple(trees),
            tuple(np.concatenate(feeds or [every]).tolist()),
        )
        return self._verdict("unsat", certificate=certificate)

    def _attack(self) -> Verdict | None:
        cases = [case for group in self._open() for case in group.cases]
        for index, x in attack(self._network, cases, _QUICK) if cases else ():
            witness = self._confirm(cases[index], x)
            if witness is not None:
                return self._verdict("sat", witness)
        return None

    def _confirm(self, case: Case, x: Array) -> Witness | None:
        """Replay a point with the models, or with the network where there are none."""
        if self._settings.parts:
            self._replay = self._replay or Replay(self._settings.parts)
            witness = self._replay.confirm(case, x)
        else:
            rounded = float32_inside(x, case.lower, case.upper)
            if rounded is None:
                return None
            exact = rounded.astype(np.float64)
            y = self._network.evaluate(exact[None])[0]
            witness = Witness(exact, y) if case.contains(exact, y) else None
        self._doubts += witness is None
        return witness

    def _unknown(self, cause: str) -> Verdict:
        """Say why, with the bound that was reached and what float32 has to do with it."""
        bound = min(group.bound for group in self._groups)
        share = np.mean([group.share for group in self._groups])
        text = f"{cause}; {share:.2%} of the region is proved, the worst bound is {bound:.3g}"
        if self._doubts:
            text += f"; {self._doubts} candidates were refuted by the deployed model"
        if self._settings.arithmetic == "float32" and self._holds_over_the_reals():
            text += "; it holds over the real numbers, but not with the margin that float32 needs"
        return self._verdict("unknown", reason=text)

    def _holds_over_the_reals(self) -> bool:
        """Whether all open boxes are proved at once without the deployed rounding."""
        waiting = [group for group in self._groups if group.open or group.stuck]
        return all(group.holds_over_the_reals() for group in waiting)

    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _show(self) -> None:
        now = time.monotonic()
        if self._report is None or now - self._reported < _PROGRESS_S:
            return
        self._reported = now
        self._report(
            Progress(
                boxes=sum(group.boxes for group in self._groups),
                bound=min(group.bound for group in self._groups),
                share=float(np.mean([group.share for group in self._groups])),
                seconds=self._seconds(),
            )
        )

    def _verdict(
        self,
        answer: Answer,
        witness: Witness | None = None,
        certificate: Certificate | None = None,
        reason: str = "",
    ) -> Verdict:
        bound = min((group.worst for group in self._groups), default=float("-inf"))
        boxes = sum(group.boxes for group in self._groups)
        return Verdict(answer, witness, certificate, reason, boxes, self._seconds(), bound)


def _groups(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that share a box are refuted together."""
    found: dict[bytes, list[Case]] = {}
    for case in cases:
        found.setdefault(case.lower.tobytes() + case.upper.tobytes(), []).append(case)
    return list(found.values())
