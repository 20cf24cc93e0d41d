"""Triton's config.pbtxt as lrai understands it; whatever has no effect here is noted by name."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lrai.config import MOST_QUEUED, MOST_REPLICAS
from lrai.core.model import DATATYPES
from lrai.errors import RepositoryError

# What the wire calls BYTES is a STRING in the configuration; every other name is the same.
DATATYPE_OF_TYPE: Final[Mapping[str, str]] = {
    f"TYPE_{'STRING' if name == 'BYTES' else name}": name for name in DATATYPES
}
_BACKENDS: Final = {"onnxruntime_onnx": "onnxruntime", "onnxruntime": "onnxruntime"}
_SILENT: Final = {"name", "model_transaction_policy", "metric_tags"}
_KNOWN_TENSOR: Final = {"name", "data_type", "dims", "label_filename", "optional", "format"}


@dataclass(frozen=True)
class TensorConfig:
    """What a configuration says about one input or output."""

    name: str
    datatype: str
    """Name of the protocol, or empty if the configuration leaves it open."""
    dims: tuple[int, ...]
    """Without the batch dimension if `max_batch_size` is above 0."""
    label_file: str = ""
    optional: bool = False
    reshaped: bool = False


@dataclass(frozen=True)
class TritonConfig:
    """One model's configuration; None = not said."""

    backend: str = ""
    max_batch_size: int | None = None
    inputs: tuple[TensorConfig, ...] = ()
    outputs: tuple[TensorConfig, ...] = ()
    replicas: int | None = None
    versions: tuple[int, ...] | None = None
    """Versions to serve; None = the latest `num_latest`, empty = all."""
    num_latest: int = 1
    preferred_rows: int | None = None
    queue_delay_us: int | None = None
    max_queue_requests: int | None = None
    priority_levels: int = 0
    """Lowest priority class that a request may ask for, 1 being the highest; 0 = any."""
    default_priority: int = 0
    """Class of requests that ask for none; 0 = after all others."""
    default_model_filename: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_triton_config(plain: Mapping[str, Any], name: str, source: str) -> TritonConfig:
    """Read a configuration from its JSON form; `source` is the file's name for messages."""
    try:
        return _Reader(_snake_case(plain), source).read(name)
    except (AttributeError, TypeError, ValueError) as error:
        message = f"{source} does not have the form of a ModelConfig: {error}"
        raise RepositoryError(message, hint="see model_config.proto of Triton") from error


class _Reader:
    """Reads the fields one by one, and remembers which had no effect."""

    def __init__(self, plain: Mapping[str, Any], source: str) -> None:
        self._left = dict(plain)
        self._source = source
        self._notes: list[str] = []

    def read(self, name: str) -> TritonConfig:
        self._check_name(name)
        replicas = self._replicas()
        versions, num_latest = self._versions()
        batching = dict(self._left.pop("dynamic_batching", {}))
        levels, priority = self._priorities(batching)
        preferred, delay, max_queue = self._batching(batching)
        backend = self._text("backend") or self._text("platform")
        self._left.pop("platform", None)
        config = TritonConfig(
            backend=_BACKENDS.get(backend, backend),
            max_batch_size=self._optional("max_batch_size", self._left.pop("max_batch_size", None)),
            inputs=tuple(self._tensors("input")),
            outputs=tuple(self._tensors("output")),
            replicas=replicas,
            versions=versions,
            num_latest=num_latest,
            preferred_rows=preferred,
            queue_delay_us=delay,
            max_queue_requests=max_queue,
            priority_levels=levels,
            default_priority=priority,
            default_model_filename=self._text("default_model_filename"),
            parameters=self._parameters(),
        )
        self._note_unused("", self._left.keys() - _SILENT, self._left)
        return replace(config, notes=tuple(self._notes))

    def _check_name(self, name: str) -> None:
        said = self._text("name") or name
        if said != name:
            message = f"{self._source} names the model {said!r}, but its folder is {name!r}"
            raise RepositoryError(message, hint="use the folder's name, or leave name out")

    def _replicas(self) -> int | None:
        groups = self._left.pop("instance_group", [])
        total = 0
        for at, group in enumerate(groups):
            where = f"instance_group[{at}]"
            total += self._number(group.get("count", 1), f"{where}.count", low=1)
            if group.get("kind") == "KIND_GPU":
                self._notes.append(
                    f"{self._source}: {where}.kind is KIND_GPU, the model runs on the CPU"
                    " hint: set provider = 'cuda' in lrai.toml where onnxruntime-gpu is installed"
                )
            self._note_unused(f"{where}.", group.keys() - {"name", "count", "kind"}, group)
        self._number(total, "the sum of instance_group.count", most=MOST_REPLICAS)
        return total or None

    def _versions(self) -> tuple[tuple[int, ...] | None, int]:
        policy = self._left.pop("version_policy", {})
        if "all" in policy:
            return (), 0
        if "specific" in policy:
            versions = policy["specific"].get("versions", [])
            where = "version_policy.specific"
            return tuple(self._number(one, where, most=1 << 63) for one in versions), 0
        latest = policy.get("latest", {}).get("num_versions", 1)
        return None, self._number(latest, "version_policy.latest.num_versions", low=1)

    def _priorities(self, batching: dict[str, Any]) -> tuple[int, int]:
        """Take the number of priority classes and the default one."""
        levels = self._optional("priority_levels", batching.pop("priority_levels", None)) or 0
        default = batching.pop("default_priority_level", None)
        default = self._optional("default_priority_level", default) or 0
        if levels and not 1 <= default <= levels:
            message = f"{self._source}: dynamic_batching.default_priority_level is {default}"
            raise RepositoryError(message, hint=f"priority_levels allows 1 to {levels}")
        return levels, default

    def _batching(self, batching: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
        preferred = [
            self._number(rows, "dynamic_batching.preferred_batch_size", low=1)
            for rows in batching.pop("preferred_batch_size", [])
        ]
        if len(preferred) > 1:
            self._notes.append(
                f"{self._source}: of dynamic_batching.preferred_batch_size only the largest"
                f" counts ({max(preferred)})"
            )
        delay = self._optional(
            "max_queue_delay_microseconds", batching.pop("max_queue_delay_microseconds", None)
        )
        queue = dict(batching.pop("default_queue_policy", {}))
        size = self._number(queue.pop("max_queue_size", 0), "max_queue_size", most=MOST_QUEUED)
        self._note_unused("dynamic_batching.default_queue_policy.", queue.keys(), queue)
        self._note_unused("dynamic_batching.", batching.keys(), batching)
        return max(preferred, default=None), delay, size or None

    def _tensors(self, kind: str) -> Iterator[TensorConfig]:
        for at, tensor in enumerate(self._left.pop(kind, [])):
            where = f"{kind}[{at}]"
            name = tensor.get("name", "")
            if not name:
                raise RepositoryError(f"{self._source}: {where} has no name", hint="add name")
            code = str(tensor.get("data_type", ""))
            if code and code not in DATATYPE_OF_TYPE:
                message = f"{self._source}: {where}.data_type is {code!r}"
                raise RepositoryError(message, hint=f"use one of {', '.join(DATATYPE_OF_TYPE)}")
            dims = tensor.get("dims", [])
            self._note_unused(f"{where}.", tensor.keys() - _KNOWN_TENSOR, tensor)
            yield TensorConfig(
                name=name,
                datatype=DATATYPE_OF_TYPE.get(code, ""),
                dims=tuple(self._number(dim, f"{where}.dims", low=-1) for dim in dims),
                label_file=tensor.get("label_filename", ""),
                optional=tensor.get("optional") is True,
                reshaped="reshape" in tensor,
            )

    def _parameters(self) -> dict[str, str]:
        plain = self._left.pop("parameters", {})
        return {
            key: str(value.get("string_value", "") if isinstance(value, Mapping) else value)
            for key, value in plain.items()
        }

    def _text(self, name: str) -> str:
        return str(self._left.pop(name, ""))

    def _optional(self, where: str, value: object) -> int | None:
        return None if value is None else self._number(value, where)

    def _number(self, value: object, where: str, low: int = 0, most: int = 1 << 31) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = low - 1
        if not low <= number <= most:
            message = f"{self._source}: {where} is {value!r}"
            raise RepositoryError(message, hint=f"write a whole number from {low} to {most}")
        return number

    def _note_unused(self, where: str, names: Any, plain: Mapping[str, Any]) -> None:
        """Note the fields that say something and have no effect."""
        for name in sorted(names):
            if plain[name] not in ("", 0, False, [], {}, None):
                self._notes.append(f"{self._source}: {where}{name} has no effect here")


def _snake_case(plain: Any) -> Any:
    """Protobuf's JSON form may say maxBatchSize; the keys of maps are the user's own."""
    if isinstance(plain, list):
        return [_snake_case(value) for value in plain]
    if not isinstance(plain, Mapping):
        return plain
    snake = {re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).lower(): key for key in plain}
    return {
        name: plain[key] if name == "metric_tags" else _snake_case_entry(name, plain[key])
        for name, key in snake.items()
    }


def _snake_case_entry(name: str, value: Any) -> Any:
    if name == "parameters" and isinstance(value, Mapping):
        return {key: _snake_case(entry) for key, entry in value.items()}
    return _snake_case(value)
