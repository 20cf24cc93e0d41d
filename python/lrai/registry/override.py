"""A model that a client sends with its load command: a configuration, and perhaps files."""

import base64
import binascii
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from lrai.errors import LraiError, ModelNotFoundError, RepositoryError
from lrai.registry.repository import ModelSource, Repository, check_name

_FILE: Final = "file:"


def is_override(parameters: Mapping[str, Any]) -> bool:
    """Whether a load command brings its own configuration or files."""
    return any(key == "config" or key.startswith(_FILE) for key in parameters)


def read_override(
    repository: Repository, name: str, parameters: Mapping[str, Any], folder: Path
) -> ModelSource:
    """Read a model as the parameters `config` and `file:<path>` describe it.

    With files, they alone are the model; they lie below `folder`, in one of their own, which
    whoever serves the model removes in the end.
    """
    check_name(name)
    files = {
        key.removeprefix(_FILE): data for key, data in parameters.items() if key.startswith(_FILE)
    }
    config = parameters.get("config", "")
    if files and not config:
        message = "file overrides come without a configuration"
        raise RepositoryError(message, hint="send the parameter 'config' too")
    plain = _read_config(config)
    private = Path(tempfile.mkdtemp(dir=folder)) if files else None
    path = private or repository.path_of(name)
    if path is None:
        raise ModelNotFoundError(f"failed to load '{name}', failed to poll from model repository")
    try:
        _write_files(files, path)
        source = repository.read(name, path, plain)
    except LraiError:
        remove_folder(private)
        raise
    mark = ("config", hash(config), 0)
    versions = [replace(one, fingerprint=(*one.fingerprint, mark)) for one in source.versions]
    return replace(source, versions=tuple(versions), folder=private)


def remove_folder(folder: Path | None) -> None:
    """Remove the files of an override."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _read_config(text: object) -> Mapping[str, Any]:
    try:
        plain = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        message = f"its parameter 'config' is not JSON: {error}"
        raise RepositoryError(message, hint="send a ModelConfig as JSON text") from error
    if not isinstance(plain, dict):
        message = "its parameter 'config' is no JSON object"
        raise RepositoryError(message, hint="send a ModelConfig as JSON text")
    return plain


def _write_files(files: Mapping[str, Any], folder: Path) -> None:
    try:
        for place, data in files.items():
            path = PurePosixPath(place)
            if path.is_absolute() or ".." in path.parts or not path.name:
                message = f"its file {place!r} lies outside of the model"
                raise RepositoryError(message, hint="use a path such as file:1/model.onnx")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(base64.b64decode(str(data), validate=True))
    except (OSError, binascii.Error) as error:
        message = f"a file of the request cannot be written: {error}"
        raise RepositoryError(message, hint="send files in base64") from error
