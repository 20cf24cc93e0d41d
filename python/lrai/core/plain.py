"""Frozen values that came through JSON: what `asdict` took apart, `from_plain` rebuilds."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin

Value = TypeVar("Value")


def from_plain(kind: type[Value], plain: Any) -> Value:
    """Build a `kind` of dataclasses and tuples; raises TypeError for fields that it has not."""
    if is_dataclass(kind) and isinstance(plain, Mapping):
        # Actors do this too, and `typing.get_type_hints` would cost each of them 0.2 MB.
        kinds: dict[str, Any] = {one.name: one.type for one in fields(kind)}
        return kind(**{name: from_plain(kinds.get(name, object), plain[name]) for name in plain})
    if get_origin(kind) is tuple:
        member = get_args(kind)[0]
        return tuple(from_plain(member, value) for value in plain)  # type: ignore[return-value]
    return plain  # type: ignore[no-any-return]
