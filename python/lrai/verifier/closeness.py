"""How far can a served variant be from its original, for any input of a box?"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lrai.errors import InvalidInputError, UnsupportedError
from lrai.verifier.bounds import Arithmetic, Bounds
from lrai.verifier.deployed import DeployedModel, changed_by_runtime
from lrai.verifier.differential import differential, product
from lrai.verifier.input_box import InputBox, read_box
from lrai.verifier.maximum import Maximum, MaximumSettings, maximise
from lrai.verifier.network import Array, Network
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.operators.base import Box
from lrai.verifier.replay import Part, Replay
from lrai.verifier.search import SearchSettings, verify
from lrai.verifier.terms import is_close
from lrai.verifier.verdict import Verdict
from lrai.verifier.vnnlib2 import parse_vnnlib2

# The magnitude of the original is bounded first, in this share of the time, to this precision.
_SCALE_SHARE: Final = 0.1
_SCALE_PRECISION: Final = 1.02
# What stays open is asked as a property in the end: that search also splits Relus.
_PROOF_SHARE: Final = 0.4

# Points at which each model is held against what onnxruntime makes of it.
_CHECKS: Final = 32

Answer = Literal["PROVED", "REFUTED", "OPEN"]


@dataclass(frozen=True)
class ClosenessSettings:
    """What is asked, and how long to look."""

    epsilon: float = 0.01
    """Allowed is |f(x) - q(x)| <= epsilon * scale for every output."""
    is_absolute: bool = False
    """The scale is 1. Otherwise it is the largest |f| of any output over the box, so that epsilon
    limits the relative error in the supremum norm."""
    arithmetic: Arithmetic = "float32"
    timeout_s: float = 60.0
    precision: float = 1.5
    """Look until the upper bound is at most this multiple of the lower one."""
    seed: int = 0


@dataclass(frozen=True)
class Closeness:
    """max |f(x) - q(x)| over the box and all outputs lies in [lower, upper]."""

    answer: Answer
    epsilon: float
    lower: float
    """Attained at `x`: by onnxruntime and by the reference evaluator, the smaller of the two."""
    upper: float
    """Proved, in the outputs' own units; covers the rounding of the deployed models if the
    arithmetic is float32."""
    uppers: tuple[float, ...]
    """The same for each output by itself."""
    scale_lower: float
    """The scale lies in [scale_lower, scale_upper]; 1 where the question is absolute."""
    scale_upper: float
    x: tuple[float, ...] | None
    """`(n_in,)`, exact in float32; None where the box holds no float32 input."""
    original: tuple[float, ...] | None
    """What onnxruntime answers there, `(n_out,)`."""
    served: tuple[float, ...] | None
    models: tuple[str, str]
    """SHA-256 of original and served model."""
    arithmetic: Arithmetic
    boxes: int
    seconds: float
    reason: str
    """Why the bounds are apart, or the answer open; may be empty otherwise."""

    def to_json(self) -> str:
        """One JSON object; what is not finite is null."""
        return json.dumps(_finite(asdict(self)), indent=1, allow_nan=False)


def compare(
    original: Path,
    served: Path,
    region: Path | InputBox,
    settings: ClosenessSettings,
) -> Closeness:
    """Bound the largest difference of two models over a box, and hold it against epsilon.

    Raises VerifierError where a model or the region's file (see `input_box`) cannot be read and
    InvalidInputError where they do not fit each other, or where the original is zero everywhere, so
    that nothing is relative to it, and UnsupportedError where onnxruntime would change the model.
    """
    f, q, box = _read(original, served, region)
    replays = _Answers(Replay([Part(original)]), Replay([Part(served)]))
    scale = _scale(f, box, replays, settings)
    epsilons = settings.epsilon * scale.lower, settings.epsilon * scale.upper
    both = product(f, q), differential(f, q)
    found = maximise(
        [network for network in both if network is not None],
        (box.lower, box.upper),
        replays.difference,
        MaximumSettings(
            arithmetic=settings.arithmetic,
            timeout_s=max((1 - _SCALE_SHARE - _PROOF_SHARE) * settings.timeout_s, 0.0),
            precision=settings.precision,
            epsilon=epsilons[0],
            seed=settings.seed,
        ),
    )
    if found.lower <= epsilons[0] < found.upper:
        limited = replace(settings, timeout_s=_PROOF_SHARE * settings.timeout_s)
        verdict, _ = prove(original, served, box, epsilons[0], limited)
        found = replace(found, seconds=found.seconds + verdict.seconds)
        if verdict.answer == "unsat":
            uppers = np.minimum(found.uppers, epsilons[0])
            found = replace(found, upper=epsilons[0], uppers=uppers, reason="")
    return _conclude(found, scale, epsilons, (replays, f, q, settings))


def prove(
    original: Path, served: Path, box: InputBox, limit: float, settings: ClosenessSettings
) -> tuple[Verdict, str]:
    """Decide whether |f - q| < limit everywhere in the box, in the outputs' own units.

    Returns the verdict, with a certificate where it is `unsat`, and the property in VNN-LIB 2.0
    that `lrai check CERTIFICATE ORIGINAL SERVED PROPERTY` needs. Raises as `compare`.
    """
    f, q, box = _read(original, served, box)
    text = is_close(box, f, q, limit)
    network, subject, parts = parse_vnnlib2(text, (original, served))
    search = SearchSettings(settings.timeout_s, settings.arithmetic, parts)
    return verify(network, subject, search), text


def _read(
    original: Path, served: Path, region: Path | InputBox
) -> tuple[Network, Network, InputBox]:
    """Both networks and the box, after every reason to refuse them."""
    for path in (original, served):
        if node := changed_by_runtime(path):
            raise UnsupportedError(
                f"onnxruntime quantises the float weights of node {node} of {path} by itself",
                "put DequantizeLinear before weights and bias, as onnxruntime's quantizer does",
            )
    f, q = read_onnx(original), read_onnx(served)
    if f.input_size != q.input_size or f.output_size != q.output_size:
        raise InvalidInputError(
            f"{original} maps {f.input_size} elements to {f.output_size}, "
            f"{served} {q.input_size} to {q.output_size}",
            "compare a model with a variant of itself",
        )
    box = region
    if isinstance(box, Path):
        box = read_box(box, f.input_size, f.output_size)
    if len(box.lower) != f.input_size:
        raise InvalidInputError(f"the box has {len(box.lower)} elements, {original} {f.input_size}")
    for path, network in ((original, f), (served, q)):
        _check_runtime(path, network, box)
    return f, q, box


def _check_runtime(path: Path, network: Network, box: InputBox) -> None:
    """Refuse a model of which onnxruntime computes something else than the file says.

    At single points the bounds cover nothing but rounding, so that an answer outside of them comes
    from a graph that was rewritten beyond that.
    """
    random = np.random.default_rng(0)
    share = random.random((_CHECKS, len(box.lower)))
    x = (box.lower + share * (box.upper - box.lower)).astype(np.float32)
    answers = DeployedModel(path).evaluate(x).astype(np.float64)
    points = x.astype(np.float64)
    regions = Bounds(network).regions(Box(points, points))
    lower, upper = (
        np.concatenate([getattr(regions.boxes[index], side) for index in network.outputs], axis=1)
        for side in ("lower", "upper")
    )
    if ((answers < lower) | (answers > upper)).any():
        beyond = np.maximum(lower - answers, answers - upper).max()
        raise UnsupportedError(
            f"onnxruntime computes something else than {path} says, by more than {beyond:.3g}",
            "it rewrites some graphs with DequantizeLinear; compare graph optimisation levels",
        )


def _conclude(
    found: Maximum,
    scale: Maximum,
    epsilons: tuple[float, float],
    context: tuple["_Answers", Network, Network, ClosenessSettings],
) -> Closeness:
    replays, f, q, settings = context
    answer: Answer = "OPEN"
    reason = found.reason
    if found.upper <= epsilons[0]:
        answer = "PROVED"
    elif found.lower > epsilons[1]:
        answer = "REFUTED"
    elif found.lower > epsilons[0]:
        reason = f"the scale is known to be in [{scale.lower:.6g}, {scale.upper:.6g}] only"
    at = None if found.where is None else np.asarray(found.where, np.float32)
    return Closeness(
        answer=answer,
        epsilon=settings.epsilon,
        lower=found.lower,
        upper=found.upper,
        uppers=tuple(found.uppers.tolist()),
        scale_lower=scale.lower,
        scale_upper=scale.upper,
        x=None if at is None else tuple(at.tolist()),
        original=None if at is None else tuple(replays.original.outputs(at)[1].tolist()),
        served=None if at is None else tuple(replays.served.outputs(at)[1].tolist()),
        models=(f.digests[0], q.digests[0]),
        arithmetic=settings.arithmetic,
        boxes=found.boxes,
        seconds=found.seconds + scale.seconds,
        reason=reason,
    )


@dataclass(frozen=True)
class _Answers:
    """The deployed models, point by point."""

    original: Replay
    served: Replay

    def difference(self, x: NDArray[np.float32]) -> Array:
        """`(n_out,)`: |f - q|, what both engines agree on at least."""
        pairs = zip(self.original.outputs(x), self.served.outputs(x), strict=True)
        return _least(*(wanted - found for wanted, found in pairs))

    def magnitude(self, x: NDArray[np.float32]) -> Array:
        """`(n_out,)`: |f|, likewise."""
        return _least(*self.original.outputs(x))


def _scale(f: Network, box: InputBox, replays: _Answers, settings: ClosenessSettings) -> Maximum:
    if settings.is_absolute:
        return Maximum(1.0, 1.0, None, np.ones(f.output_size), 0, 0.0)
    found = maximise(
        (f,),
        (box.lower, box.upper),
        replays.magnitude,
        MaximumSettings(
            arithmetic=settings.arithmetic,
            timeout_s=_SCALE_SHARE * settings.timeout_s,
            precision=_SCALE_PRECISION,
            seed=settings.seed,
        ),
    )
    if found.lower == 0:
        raise InvalidInputError(
            "the original is zero wherever it was evaluated, so no error is relative to it",
            "ask with --absolute",
        )
    return found


def _least(first: Array, second: Array) -> Array:
    return np.nan_to_num(np.minimum(np.abs(first), np.abs(second)), nan=0.0)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
