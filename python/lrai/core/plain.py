"""Frozen values that came through JSON: what `asdict` took apart, `from_plain` rebuilds."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Value = TypeVar("Value")


def from_plain(kind: type[Value], plain: Any) -> Value:
    """Build a `kind` of dataclasses and tuples; raises TypeError for fields that it has not."""
    if is_dataclass(kind) and isinstance(plain, Mapping):
        hints = get_type_hints(kind)
        values = {name: from_plain(hints.get(name, object), plain[name]) for name in plain}
        return kind(**values)
    if get_origin(kind) is tuple:
        member = get_args(kind)[0]
        return tuple(from_plain(member, value) for value in plain)  # type: ignore[return-value]
    return plain  # type: ignore[no-any-return]
