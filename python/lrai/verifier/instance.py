"""One question: do these models keep that property? Reads both, searches, says what came out."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lrai.errors import ConfigError, UnsupportedOperatorError
from lrai.verifier.certificate import Arithmetic
from lrai.verifier.deadline import Clock, ElapsedError, deadline
from lrai.verifier.network import Network
from lrai.verifier.property import Property
from lrai.verifier.replay import Part
from lrai.verifier.verdict import Progress, Verdict

_GRACE_S: Final = 0.4
"""The search looks at the clock by itself, and then says more about what it has reached."""
_VERSION_2: Final = re.compile(r"\(\s*vnnlib-version\s*<\s*2")


@dataclass(frozen=True)
class Instance:
    """Models and a property about them, as a line of a VNN-COMP list states it."""

    models: tuple[Path, ...]
    """One model, or those that a VNN-LIB 2.0 file declares, in its order."""
    subject: Path
    """The property: VNN-LIB 1.0 or 2.0, `.gz` too, or TOML (`terms`)."""
    timeout_s: float = 300.0


@dataclass(frozen=True)
class Limits:
    """What the time-out of an instance counts."""

    clock: Clock = "wall"
    stretch: float = 1.0
    """Under "cpu": how many times longer than its limit an instance may take on the wall."""


WALL: Final = Limits()


def solve(
    instance: Instance,
    arithmetic: Arithmetic = "float32",
    progress: Callable[[Progress], None] | None = None,
    limits: Limits = WALL,
) -> Verdict:
    """Decide an instance; `unknown` where a model has an operator without sound bounds.

    The seconds of the verdict include reading. In the main thread the time-out ends the search
    wherever it stands, within half a second. Raises LraiError where a file is missing or wrong.
    """
    start = time.monotonic()
    last = Progress(boxes=0, bound=float("-inf"), share=0.0, seconds=0.0)

    def keep(now: Progress) -> None:
        nonlocal last
        last = now
        if progress is not None:
            progress(now)

    wall_s = instance.timeout_s * (limits.stretch if limits.clock == "cpu" else 1)
    grace_s = _GRACE_S if limits.clock == "wall" else 0.0
    try:
        with deadline(instance.timeout_s + grace_s, limits.clock):
            verdict = _solve(replace(instance, timeout_s=wall_s), arithmetic, keep)
    except ElapsedError:
        reason = (
            f"time ran out; {last.share:.2%} of the region is proved, "
            f"the worst bound is {last.bound:.3g}"
        )
        verdict = Verdict("unknown", reason=reason, boxes=last.boxes, bound=last.bound)
    return replace(verdict, seconds=time.monotonic() - start)


def _solve(
    instance: Instance, arithmetic: Arithmetic, progress: Callable[[Progress], None]
) -> Verdict:
    from lrai.verifier.checker import refusal
    from lrai.verifier.search import SearchSettings, verify

    start = time.monotonic()
    for path in (*instance.models, instance.subject):
        if not path.is_file():
            raise ConfigError(f"there is no file {str(path)!r}")
    try:
        network, subject, parts = read(instance)
    except UnsupportedOperatorError as error:
        return Verdict("unknown", reason=str(error))
    left = instance.timeout_s - (time.monotonic() - start)
    settings = SearchSettings(parts=parts, timeout_s=max(left, 0.1), arithmetic=arithmetic)
    verdict = verify(network, subject, settings, progress)
    if verdict.answer != "unsat":
        return verdict
    # What nobody could prove again is not called proved.
    why = verdict.reason if verdict.certificate is None else refusal(instance.models)
    if not why:
        return verdict
    why = why.removeprefix("bounded, without a certificate: ")
    reason = f"bounded, without a certificate: {why}"
    return replace(verdict, answer="unknown", certificate=None, reason=reason)


def read(instance: Instance) -> tuple[Network, Property, tuple[Part, ...]]:
    """The network, the property, and which models replay a witness; raises LraiError."""
    from lrai.verifier.onnx_reader import read_onnx
    from lrai.verifier.vnnlib import read_text, read_vnnlib

    if instance.subject.suffix.lower() == ".toml":
        from lrai.verifier.terms import read_toml

        return read_toml(instance.subject, instance.models)
    if _VERSION_2.search(read_text(instance.subject)):
        from lrai.verifier.vnnlib2 import read_vnnlib2

        return read_vnnlib2(instance.subject, instance.models)
    if len(instance.models) != 1:
        raise ConfigError(
            f"{instance.subject} is about one model, {len(instance.models)} are given",
            "only VNN-LIB 2.0 relates several networks",
        )
    network = read_onnx(instance.models[0])
    subject = read_vnnlib(instance.subject, network.input_size, network.output_size)
    return network, subject, (Part(instance.models[0]),)
