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
    plain["threads"] = plain.pop("runtime_threads")
    return {
        **plain,
        "not_ready_status": int(settings.gateway.not_ready_status),
        "model_control": settings.repository.model_control_mode,
        "access_log": settings.log.access_log,
        "server_version": version,
    }


def model_spec(served: ServedModel, config: str) -> dict[str, Any]:
    """Return the data plane's ModelSpec; `config` is the JSON text for /config."""
    model = served.model
    return {
        "name": served.name,
        "version": served.version,
        "platform": served.platform,
        "backend": served.backend,
        "max_batch_size": served.max_batch_size,
        "inputs": [asdict(tensor) for tensor in served.inputs],
        "outputs": [asdict(tensor) for tensor in served.outputs],
        "config": config,
        "retry": model.retry,
        "max_queue_requests": model.max_queue_requests,
        "max_queue_bytes": model.max_queue_bytes,
        "max_output_bytes": model.max_output_bytes,
    }
