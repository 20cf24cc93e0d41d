"""How often do two models differ by more than epsilon? A bound with a stated confidence."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lrai.errors import InvalidInputError
from lrai.verifier.clopper_pearson import upper_bound
from lrai.verifier.deployed import DeployedModel, Float32Array

_CHUNK: Final = 65_536
_GENERATOR: Final = "PCG64(SeedSequence(seed, spawn_key=(chunk,))), chunks of 65536 cases"


class Distribution(Protocol):
    """Where the cases come from."""

    def draw(self, random: np.random.Generator, count: int) -> Float32Array:
        """`(count, n_in)` independent cases."""

    def describe(self) -> dict[str, Any]:
        """Everything that repeats it, as JSON."""


@dataclass(frozen=True)
class Uniform:
    """Each element is uniform in its interval, rounded to float32 and clipped to the interval."""

    lower: NDArray[np.float64]
    """`(n_in,)`"""
    upper: NDArray[np.float64]
    """`(n_in,)`"""

    def draw(self, random: np.random.Generator, count: int) -> Float32Array:
        """See Distribution."""
        share = random.random((count, len(self.lower)))
        return _inside(self.lower + share * (self.upper - self.lower), self.lower, self.upper)

    def describe(self) -> dict[str, Any]:
        """See Distribution."""
        return {
            "kind": "uniform",
            "lower": self.lower.tolist(),
            "upper": self.upper.tolist(),
        }


@dataclass(frozen=True)
class NoisyRows:
    """A row of a data set, each as likely, plus uniform noise in [-radius, radius] per element."""

    rows: Float32Array
    """`(m, n_in)`; not the rows that calibrated the model."""
    radius: float

    def draw(self, random: np.random.Generator, count: int) -> Float32Array:
        """See Distribution."""
        chosen = self.rows[random.integers(len(self.rows), size=count)]
        noise = random.uniform(-self.radius, self.radius, chosen.shape)
        return np.asarray(chosen + noise, dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """See Distribution."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rows).tobytes()).hexdigest()
        return {
            "kind": "rows with uniform noise",
            "rows": len(self.rows),
            "sha256": digest,
            "radius": self.radius,
        }


@dataclass(frozen=True)
class Plan:
    """What is claimed and how it is tested; all of it is fixed before the first case is drawn."""

    original: Path
    served: Path
    distribution: Distribution
    epsilon: float
    """A case violates when an output differs by more than `epsilon * scale` or is not a number."""
    n: int
    """Independent cases; all of them are run, whatever the first ones show."""
    scale: float = 1.0
    alpha: float = 0.001
    """The bounds may be wrong with this probability."""
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What some cases showed."""

    violations: int
    largest: float
    """The largest difference divided by the scale; infinite where an output is not a number."""
    where: Float32Array
    """`(n_in,)`, the first case with that difference."""


@dataclass(frozen=True)
class StatisticalCertificate:
    """A claim about cases of one distribution; it says nothing about the worst case."""

    kind: str
    claim: str
    method: str
    models: tuple[str, str]
    """SHA-256 of the original and of the served model."""
    distribution: dict[str, Any]
    epsilon: float
    scale: float
    n: int
    k: int
    """Cases that violated."""
    alpha: float
    rate: float
    """With confidence 1 - alpha, at most this share of all cases violates."""
    largest: float
    """The largest difference seen in the n cases, divided by the scale."""
    largest_share: float
    """With confidence 1 - alpha (a second statement), at most this share exceeds `largest`."""
    where: tuple[float, ...]
    """The case with the largest difference."""
    adversarial: dict[str, Any] | None
    """What a search for the worst case found; no part of the bound. None: it was not run."""
    seed: int
    generator: str
    versions: dict[str, str]

    def to_json(self) -> str:
        """One JSON object; a difference that is not finite is written as null."""
        document = asdict(self)
        if not math.isfinite(self.largest):
            document["largest"] = None
        return json.dumps(document, indent=1, allow_nan=False)


def certify(
    plan: Plan, workers: int = 1, candidates: Float32Array | None = None
) -> StatisticalCertificate:
    """Run n cases of the plan and bound the rate of violations (Clopper and Pearson 1934).

    `candidates` `(m, n_in)` are inputs that an adversarial search proposes; they are evaluated
    beside the cases and reported apart. The result does not depend on the number of workers.
    Raises `InvalidInputError` for a plan that cannot be run.
    """
    models = _check(plan)
    found = merge(_run(plan, workers))
    adversarial = None
    if candidates is not None and len(candidates):
        worst = compare(*models, np.asarray(candidates, np.float32), plan)
        adversarial = {
            "candidates": len(candidates),
            "largest": worst.largest if math.isfinite(worst.largest) else None,
            "where": worst.where.tolist(),
        }
    rate = upper_bound(found.violations, plan.n, plan.alpha)
    return StatisticalCertificate(
        kind="statistical",
        claim=f"with confidence {1 - plan.alpha:.12g}, at most a share of {rate:.4g} of the cases "
        f"of this distribution differs by more than {plan.epsilon:g} x {plan.scale:g}",
        method="one-sided exact binomial bound of Clopper and Pearson, n fixed in advance",
        models=(models[0].digest, models[1].digest),
        distribution=plan.distribution.describe(),
        epsilon=plan.epsilon,
        scale=plan.scale,
        n=plan.n,
        k=found.violations,
        alpha=plan.alpha,
        rate=rate,
        largest=found.largest,
        largest_share=upper_bound(0, plan.n, plan.alpha),
        where=tuple(found.where.tolist()),
        adversarial=adversarial,
        seed=plan.seed,
        generator=_GENERATOR,
        versions={name: version(name) for name in ("numpy", "onnxruntime")},
    )


def compare(original: DeployedModel, served: DeployedModel, x: Float32Array, plan: Plan) -> Found:
    """Count the violations among the rows of `x` `(N, n_in)`, N > 0."""
    wanted = original.evaluate(x).astype(np.float64)
    difference = np.abs(wanted - served.evaluate(x)).max(axis=1) / plan.scale
    difference = np.where(np.isnan(difference), np.inf, difference)
    at = int(difference.argmax())
    return Found(int((difference > plan.epsilon).sum()), float(difference[at]), x[at])


def cases(plan: Plan) -> Iterator[tuple[int, int]]:
    """The chunks of a plan: index and number of cases."""
    for chunk, start in enumerate(range(0, plan.n, _CHUNK)):
        yield chunk, min(_CHUNK, plan.n - start)


def draw(plan: Plan, chunk: int, count: int) -> Float32Array:
    """The cases of one chunk, `(count, n_in)`; the same for the same seed, whoever draws them."""
    sequence = np.random.SeedSequence(plan.seed, spawn_key=(chunk,))
    return plan.distribution.draw(np.random.Generator(np.random.PCG64(sequence)), count)


def merge(parts: Iterator[Found]) -> Found:
    """The sum of several counts; of equal differences the first one stays."""
    total = next(parts)
    for part in parts:
        worst = part if part.largest > total.largest else total
        total = Found(total.violations + part.violations, worst.largest, worst.where)
    return total


def _check(plan: Plan) -> tuple[DeployedModel, DeployedModel]:
    wrong = {
        f"n is {plan.n}": plan.n < 1,
        f"alpha is {plan.alpha}": not 0 < plan.alpha < 1,
        f"epsilon is {plan.epsilon}": not plan.epsilon >= 0,
        f"scale is {plan.scale}": not 0 < plan.scale < math.inf,
        f"seed is {plan.seed}": plan.seed < 0,
    }
    for sentence, applies in wrong.items():
        if applies:
            raise InvalidInputError(
                f"{sentence}", "n >= 1, 0 < alpha < 1, epsilon >= 0, 0 < scale, seed >= 0"
            )
    models = DeployedModel(plan.original), DeployedModel(plan.served)
    row = draw(plan, 0, 1)
    shapes = [model.evaluate(row).shape for model in models]
    if shapes[0] != shapes[1]:
        raise InvalidInputError(
            f"the models give {shapes[0][1]} and {shapes[1][1]} outputs",
            "compare a model with a variant of itself",
        )
    return models


def _run(plan: Plan, workers: int) -> Iterator[Found]:
    if workers <= 1 or plan.n <= _CHUNK:
        _start(plan)
        yield from map(_work, cases(plan))
        return
    # Spawned, because onnxruntime's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (plan,))
    with pool:
        yield from pool.map(_work, cases(plan))


_compare: Callable[[tuple[int, int]], Found]


def _start(plan: Plan) -> None:
    global _compare  # noqa: PLW0603 - a worker process serves one plan
    _compare = partial(_one, plan, DeployedModel(plan.original), DeployedModel(plan.served))


def _work(chunk: tuple[int, int]) -> Found:
    return _compare(chunk)


def _one(
    plan: Plan, original: DeployedModel, served: DeployedModel, chunk: tuple[int, int]
) -> Found:
    return compare(original, served, draw(plan, *chunk), plan)


def _inside(
    x: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64]
) -> Float32Array:
    """The nearest float32 inside the box; where an interval holds none, the nearest at all."""
    rounded = x.astype(np.float32)
    low, high = np.float32(-np.inf), np.float32(np.inf)
    rounded = np.where(rounded < lower, np.nextafter(rounded, high), rounded)
    return np.where(rounded > upper, np.nextafter(rounded, low), rounded)
