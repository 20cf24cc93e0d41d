"""What is calibrated: a model version, what of it is free, and what its inputs look like."""

import json
from dataclasses import dataclass

from lrai.actors.messages import ActorSpec
from lrai.calibration.measure import Shapes
from lrai.core.model import Allocation, TensorInfo
from lrai.registry.repository import ModelSource, VersionSource
from lrai.registry.resolve import ServedModel, fixed_allocation
from lrai.scheduler.allocation import batch_sizes


@dataclass(frozen=True)
class Subject:
    """A model version to be calibrated."""

    spec: ActorSpec
    inputs: tuple[TensorInfo, ...]
    max_rows: int
    """0 = requests are never put together."""
    current: Allocation
    fixed: Allocation
    """What somebody has set; 0 = free."""
    goal_s: float | None
    replica_memory_bytes: int
    """For replicas beyond the first."""
    identity: str
    """Changes with everything that what was measured depends on, but for the processors."""


def is_calibrated(source: ModelSource) -> bool:
    """Whether replicas or threads are to be measured: only what computes, and may run twice."""
    model = source.settings.model
    is_pure = source.backend == "onnxruntime" and model.provider == "cpu" and model.retry
    return source.settings.scheduler.calibrate and is_pure and not all(fixed_allocation(source))


def subject_of(source: ModelSource, served: ServedModel, spec: ActorSpec, identity: str) -> Subject:
    """Put together what is known of a version that is served now."""
    return Subject(
        spec=spec,
        inputs=served.inputs,
        max_rows=served.max_batch_size,
        current=Allocation(served.model.replicas, served.model.threads),
        fixed=fixed_allocation(source),
        goal_s=served.scheduler.latency_goal_s or None,
        replica_memory_bytes=served.scheduler.replica_memory_bytes,
        identity=identity,
    )


def identity_of(source: ModelSource, version: VersionSource) -> str:
    """Return what a model's times, and what follows from them, depend on."""
    settings = source.settings
    return json.dumps(
        [
            version.fingerprint,
            sorted(source.options.items()),
            fixed_allocation(source),
            settings.model.max_batch_size,
            settings.scheduler.latency_goal_s,
            settings.scheduler.replica_memory_bytes,
        ]
    )


def shapes_by_rows(subject: Subject, seen: Shapes) -> dict[int, Shapes]:
    """Return the shapes of all inputs for each number of rows to measure; empty if not yet known.

    `seen` are those of a batch that was served: they tell free dimensions.
    """
    shapes = tuple(tensor.shape for tensor in subject.inputs)
    is_batched = subject.max_rows > 0
    if any(-1 in shape[is_batched:] for shape in shapes):
        shapes = seen
    if not shapes or not is_batched:
        return {1: shapes} if shapes else {}
    return {
        rows: tuple((rows, *shape[1:]) if shape else () for shape in shapes)
        for rows in batch_sizes(subject.max_rows)
    }
