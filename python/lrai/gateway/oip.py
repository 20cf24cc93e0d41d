"""What the data plane must know: its own configuration, and the specification of a model."""

from dataclasses import asdict
from typing import Any

from lrai.config import Settings
from lrai.registry.resolve import ServedModel


def gateway_config(settings: Settings, version: str) -> dict[str, Any]:
    """Return the data plane's configuration: same names, times in milliseconds."""
    plain = asdict(settings.gateway)
    for name in ("header_timeout", "body_timeout", "keep_alive_timeout"):
        plain[f"{name}_ms"] = max(1, round(plain.pop(f"{name}_s") * 1e3))
    return {
        "threads": plain.pop("runtime_threads"),
        **plain,
        "not_ready_status": int(settings.gateway.not_ready_status),
        "model_control": settings.repository.model_control_mode,
        "access_log": settings.log.access_log,
        "server_version": version,
    }


def model_spec(served: ServedModel, config: str) -> dict[str, Any]:
    """Return the data plane's ModelSpec, and what it ignores; `config` is the text for /config."""
    return {**asdict(served.model), **asdict(served), "config": config}
