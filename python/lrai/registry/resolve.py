"""Puts together what a model's files ask for and what the backend found in the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from lrai.config import KnobsConfig, ModelConfig, SchedulerConfig
from lrai.core.model import Allocation, Ragged, Signature, TensorInfo, first_edges
from lrai.errors import RepositoryError
from lrai.registry.guard import GuardBox, read_guard
from lrai.registry.repository import ModelSource
from lrai.registry.triton_config import TensorConfig

_TINY_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class ServedModel:
    """One version as it will be served; everything is decided."""

    name: str
    version: str
    platform: str
    backend: str
    max_batch_size: int
    """0 = requests are never put together."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    model: ModelConfig
    knobs: KnobsConfig
    is_tuned: bool
    """Whether the scheduler sets the knobs; False where somebody has."""
    scheduler: SchedulerConfig
    priority_levels: int
    """Lowest priority class of requests; 0 = any number is one."""
    default_priority: int
    """Class of requests that ask for none; 0 = after all others."""
    file_name: str
    parameters: dict[str, str]
    num_latest: int
    guard: tuple[GuardBox, ...]
    """Where a proof about the model holds; empty: nothing is marked."""
    ragged: Ragged | None
    """How requests of different lengths share a batch; None = they do not."""
    notes: tuple[str, ...]


def fixed_allocation(source: ModelSource) -> Allocation:
    """Return the replicas and threads that somebody has set; 0 = free."""
    model = source.settings.model
    threads = _number(source.options.get("intra_op_thread_count", "")) or model.threads
    return Allocation(source.config.replicas or model.replicas, threads)


def model_settings(
    source: ModelSource, cpus: int, measured: Allocation | None = None
) -> tuple[ModelConfig, KnobsConfig]:
    """Return how the model runs: its settings, with config.pbtxt over them.

    `measured` replicas and threads count where none are set.
    """
    config, model, knobs = source.config, source.settings.model, source.settings.knobs
    fixed, free = fixed_allocation(source), measured or Allocation(1, 0)
    replicas = fixed.replicas or free.replicas
    threads = fixed.threads or free.threads
    model = replace(
        model,
        backend=source.backend,
        replicas=replicas,
        threads=threads or _default_threads(source, cpus // replicas),
        max_queue_requests=config.max_queue_requests or model.max_queue_requests,
    )
    if config.queue_delay_us is not None:
        knobs = replace(knobs, tau_s=config.queue_delay_us / 1e6)
    if config.preferred_rows is not None:
        knobs = replace(knobs, k=config.preferred_rows)
    return model, knobs


def _default_threads(source: ModelSource, share: int) -> int:
    """One for a model that computes less in a batch than waking a second thread costs."""
    sizes = [
        sum(size for name, _, size in one.fingerprint if not name.endswith(".json"))
        for one in source.versions
    ]
    is_tiny = source.backend == "onnxruntime" and max(sizes, default=0) < _TINY_BYTES
    return 1 if is_tiny else max(1, share)


def resolve(
    source: ModelSource,
    version: str,
    signature: Signature,
    cpus: int,
    measured: Allocation | None = None,
) -> ServedModel:
    """Decide how the version is served; a configuration that contradicts the model is refused."""
    model, knobs = model_settings(source, cpus, measured)
    notes = list(signature.notes)
    max_batch_size = _max_batch_size(source, signature, model, notes)
    is_batched = max_batch_size > 0
    inputs = _merge(source, "input", signature, is_batched, notes)
    outputs = _merge(source, "output", signature, is_batched, notes)
    path = next(one.path for one in source.versions if one.version == version)
    guard, note = read_guard(path)
    return ServedModel(
        name=source.name,
        version=version,
        platform=signature.platform,
        backend=source.backend,
        max_batch_size=max_batch_size,
        inputs=inputs,
        outputs=tuple(
            replace(one, labels=source.labels.get(one.name, one.labels)) for one in outputs
        ),
        model=model,
        # The edges stand in `ragged`.
        knobs=replace(knobs, k=min(knobs.k or max_batch_size, max_batch_size) or 1, edges=()),
        is_tuned=replace(knobs, slack_s=0.0, edges=()) == replace(KnobsConfig(), slack_s=0.0),
        scheduler=source.settings.scheduler,
        priority_levels=source.config.priority_levels,
        default_priority=source.config.default_priority,
        file_name=path.name
        if source.backend == "onnxruntime"
        else source.config.default_model_filename,
        parameters=dict(source.config.parameters),
        num_latest=source.config.num_latest,
        guard=guard,
        ragged=_ragged(signature.ragged, model, knobs) if is_batched and not guard else None,
        notes=(*source.notes, *notes, *filter(None, [note, signature.ragged.note])),
    )


def _ragged(found: Ragged, model: ModelConfig, knobs: KnobsConfig) -> Ragged | None:
    """Lay the configured edges over those that the backend chose."""
    if not any(found.inputs):
        return None
    said, longest = knobs.edges, found.longest
    if len(said) == 1:
        return replace(found, edges=first_edges(longest, said[0]))
    if said and model.padding == "accept":
        # The user's word counts for lengths too that were not tried.
        longest = max(longest, said[-1])
    return replace(found, edges=said or found.edges, longest=longest)


def _max_batch_size(
    source: ModelSource, signature: Signature, model: ModelConfig, notes: list[str]
) -> int:
    said = source.config.max_batch_size
    if said is not None and said > 0 and not signature.batchable:
        message = (
            f"config.pbtxt has max_batch_size {said}, but the model's first dimension is not free:"
            f" {signature}"
        )
        raise RepositoryError(
            message, hint="set max_batch_size: 0, or export the model with a free batch"
        )
    if said is not None:
        return said
    if not signature.batchable:
        return 0
    if _writes_full_shapes(source.config.inputs, signature.inputs):
        notes.append(
            "config.pbtxt gives dims with the batch dimension and no max_batch_size, so requests"
            " are not put together hint: set max_batch_size"
        )
        return 0
    return model.max_batch_size


def _writes_full_shapes(said: Sequence[TensorConfig], found: Sequence[TensorInfo]) -> bool:
    ranks = {tensor.name: len(tensor.shape) for tensor in found}
    return bool(said) and all(
        tensor.name in ranks and len(tensor.dims) == ranks[tensor.name] for tensor in said
    )


def _merge(
    source: ModelSource, kind: str, signature: Signature, is_batched: bool, notes: list[str]
) -> tuple[TensorInfo, ...]:
    """Lay what the configuration says about tensors over what the model has."""
    found = signature.inputs if kind == "input" else signature.outputs
    said = source.config.inputs if kind == "input" else source.config.outputs
    by_name = {tensor.name: tensor for tensor in said}
    unknown = by_name.keys() - {tensor.name for tensor in found}
    if unknown:
        message = (
            f"config.pbtxt has the {kind} {', '.join(sorted(unknown))}, which the model has not:"
            f" {signature}"
        )
        raise RepositoryError(message, hint=f"use the model's own {kind} names")
    if said and kind == "input":
        notes += [
            f"config.pbtxt leaves out the input {tensor.name}, which the model needs"
            for tensor in found
            if tensor.name not in by_name and not tensor.optional
        ]
    return tuple(
        _merge_tensor(tensor, by_name[tensor.name], is_batched, notes)
        if tensor.name in by_name
        else tensor
        for tensor in found
    )


def _merge_tensor(
    found: TensorInfo, said: TensorConfig, is_batched: bool, notes: list[str]
) -> TensorInfo:
    where = "config.pbtxt says"
    if said.datatype and said.datatype != found.datatype:
        message = f"{where} {said.datatype} for {said.name}, but the model has {found}"
        raise RepositoryError(message, hint=f"set data_type for {found.datatype}")
    if said.reshaped:
        notes.append(f"{where} reshape for {said.name}, which has no effect: it keeps {found}")
        return found
    dims = (-1, *said.dims) if is_batched else said.dims
    fits = len(dims) == len(found.shape) and all(
        one == other or -1 in (one, other) for one, other in zip(dims, found.shape, strict=True)
    )
    if said.dims and not fits:
        message = f"{where} dims {list(said.dims)} for {said.name}, but the model has {found}"
        without = " without the batch dimension" if is_batched else ""
        raise RepositoryError(message, hint=f"write the model's dims{without}, -1 where any")
    if not said.dims:
        return replace(found, optional=found.optional or said.optional)
    shape = tuple(max(one, other) for one, other in zip(dims, found.shape, strict=True))
    return replace(found, shape=shape)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
