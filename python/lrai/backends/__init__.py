"""Adapters to inference engines: each loads one model and runs one batch at a time.

Called by the worker inside an actor process, after the fork. A backend never batches, retries,
or records metrics, and never knows how a request arrived.
"""

import importlib
from collections.abc import Mapping
from typing import Final

from lrai.backends.base import Backend, BackendSpec
from lrai.errors import ModelLoadError

BACKENDS: Final[Mapping[str, str]] = {
    "null": "lrai.backends.null:NullBackend",
    "onnxruntime": "lrai.backends.ort:OrtBackend",
    "python": "lrai.backends.python:PythonBackend",
}
"""Name of each backend and where its class is."""


def find_backend(name: str) -> type[Backend]:
    """Import the backend of that name and its engine."""
    place = BACKENDS.get(name)
    if place is None:
        known = ", ".join(sorted(BACKENDS))
        raise ModelLoadError(f"there is no backend '{name}'", hint=f"the backends are {known}")
    module, _, kind = place.partition(":")
    backend: type[Backend] = getattr(importlib.import_module(module), kind)
    return backend


def open_backend(name: str, spec: BackendSpec) -> Backend:
    """Load a model with the backend of that name; raises `ModelLoadError` with a sentence."""
    return find_backend(name)(spec)
