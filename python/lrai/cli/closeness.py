"""`lrai verify --against`: how far is a variant from its original? By proof, or by cases."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.errors import LraiError
from lrai.verifier.closeness import ClosenessSettings, prove
from lrai.verifier.closeness import compare as compare_over
from lrai.verifier.deployed import DeployedModel
from lrai.verifier.input_box import read_box
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.statistical import Plan, Uniform, certify

_EXIT: Final = {"PROVED": 0, "REFUTED": 1, "OPEN": 2}
_ATTACK_S: Final = 10.0
_MEANING: Final = {
    "PROVED": "close enough for every input in the region",
    "REFUTED": "too far apart: this input shows it",
    "OPEN": "neither proved nor refuted",
}


@dataclass(frozen=True)
class Comparison:
    """What is compared, where, and how it is told."""

    original: Path
    served: Path
    region: Path
    settings: ClosenessSettings
    as_json: bool = False
    certificate: Path | None = None
    """Where the certificate goes, of either kind."""


def compare(comparison: Comparison) -> int:
    """Prove or refute that they differ by at most epsilon; returns the exit code."""
    found = compare_over(
        comparison.original, comparison.served, comparison.region, comparison.settings
    )
    if found.answer == "PROVED" and comparison.certificate is not None:
        _leave_proof(comparison, comparison.certificate, found.scale_lower)
    if comparison.as_json:
        print(found.to_json())
        return _EXIT[found.answer]
    of_what = "" if comparison.settings.is_absolute else ", relative to the largest output"
    print(f"{found.answer}: {_MEANING[found.answer]} (epsilon {found.epsilon:g}{of_what})")
    print(f"  the largest difference is in [{found.lower:.6g}, {found.upper:.6g}]")
    if not comparison.settings.is_absolute:
        print(f"  the largest output is in [{found.scale_lower:.6g}, {found.scale_upper:.6g}]")
    if found.x is not None:
        print(f"  seen at x = {list(found.x)[:12]}")
    if found.reason:
        print(f"  {found.reason}")
    print(f"  {found.boxes} boxes, {found.seconds:.1f} s, {found.arithmetic} arithmetic")
    return _EXIT[found.answer]


def _leave_proof(comparison: Comparison, path: Path, scale: float) -> None:
    """Write the certificate, and beside it the property in VNN-LIB 2.0."""
    network = read_onnx(comparison.original)
    box = read_box(comparison.region, network.input_size, network.output_size)
    limit = comparison.settings.epsilon * scale
    verdict, text = prove(comparison.original, comparison.served, box, limit, comparison.settings)
    if verdict.certificate is None:
        print(f"no certificate: {verdict.reason}", file=sys.stderr)
        return
    verdict.certificate.write(path)
    subject = path.with_suffix(".vnnlib")
    subject.write_text(text, encoding="utf-8")
    print(
        f"`lrai check {path} {comparison.original} {comparison.served} {subject}` proves it again",
        file=sys.stderr,
    )


def _worst(comparison: Comparison) -> NDArray[np.float32] | None:
    """An input that a search for the largest difference found, where the verifier can look."""
    settings = replace(comparison.settings, is_absolute=True, timeout_s=_ATTACK_S)
    try:
        found = compare_over(comparison.original, comparison.served, comparison.region, settings)
    except LraiError:
        return None
    return None if found.x is None else np.array([found.x], np.float32)


def sample(comparison: Comparison, n: int, alpha: float, workers: int) -> int:
    """Bound the share of a region's inputs that differ by more, from n cases; the exit code."""
    original = DeployedModel(comparison.original)
    outputs = original.evaluate(np.zeros((1, original.input_size), np.float32)).shape[1]
    box = read_box(comparison.region, original.input_size, outputs)
    settings = comparison.settings
    plan = Plan(
        comparison.original,
        comparison.served,
        Uniform(box.lower, box.upper),
        settings.epsilon,
        n,
        alpha=alpha,
        seed=settings.seed,
    )
    found = certify(plan, workers, _worst(comparison))
    if comparison.certificate is not None:
        comparison.certificate.write_text(found.to_json() + "\n", encoding="utf-8")
    if comparison.as_json:
        print(json.dumps(json.loads(found.to_json())))
        return 1 if found.k else 2
    print(
        f"statistical, no proof: of {found.n} cases {found.k} differ by more than "
        f"{settings.epsilon:g}\n"
        f"  with confidence {1 - found.alpha:.4%} at most a share of {found.rate:.3g} of all "
        f"inputs does (uniform in the region, {found.method})\n"
        f"  largest difference seen: {found.largest:.6g}; "
        f"beside it, a search for the worst case: {json.dumps(found.adversarial)}"
    )
    return 1 if found.k else 2
