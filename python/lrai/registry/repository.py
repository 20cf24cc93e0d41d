"""What lies on disk: one file, a folder of files, or a repository in Triton's layout."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lrai.config import Settings, overlay, read_toml
from lrai.errors import ConfigError, LraiError, ModelNotFoundError, RepositoryError
from lrai.registry.guard import guard_places
from lrai.registry.triton_config import TritonConfig, read_triton_config

ParseConfig = Callable[[str], str]
"""Turns protobuf text into JSON text; raises an exception with a sentence."""

Fingerprint = tuple[tuple[str, int, int], ...]
"""Path, time and size of every file that a version is made of."""

_DEFAULT_FILES: Final = {"onnxruntime": "model.onnx", "python": "model.py", "null": ""}
_RESERVED: Final = {"stats"}


@dataclass(frozen=True)
class VersionSource:
    """One version on disk."""

    version: str
    path: Path
    """The model's file; its folder for the python and null backends."""
    fingerprint: Fingerprint


@dataclass(frozen=True)
class ModelSource:
    """One model on disk: how it wants to run, and the versions that its policy selects."""

    name: str
    backend: str
    settings: Settings
    """The server's settings with the model's lrai.toml over them; not all sections count."""
    options: Mapping[str, str]
    """Settings of the backend's own: `parameters` of config.pbtxt, `[options]` of lrai.toml."""
    config: TritonConfig
    versions: tuple[VersionSource, ...]
    labels: Mapping[str, tuple[str, ...]]
    """Class labels by output, from the label files that config.pbtxt names."""
    notes: tuple[str, ...]
    folder: Path | None = None
    """A private folder of its files, which goes when none of its versions is served."""


class Repository:
    """Finds models under one path. Reads the disk at every call; keeps nothing."""

    def __init__(self, settings: Settings, parse_config: ParseConfig) -> None:
        """Look at `settings.repository.path`; raises RepositoryError if nothing can be there."""
        self._settings = settings
        self._parse_config = parse_config
        self._root = Path(settings.repository.path)
        if not settings.repository.path or not os.path.lexists(self._root):
            message = f"no model at {settings.repository.path!r}"
            raise RepositoryError(
                message, hint="name an .onnx file, a folder of them, or a repository"
            )
        # An absolute path stays right if the process changes its folder; links stay links.
        self._root = Path(os.path.abspath(self._root))
        self.is_single = _is_model(self._root)
        """Whether the path itself is one model, so that there is nothing to serve without it."""

    def names(self) -> list[str]:
        """Return the names of everything that looks like a model, sorted."""
        return sorted(self._places())

    def strangers(self) -> list[str]:
        """Return the folders beside the models that look like no model, hidden ones left out."""
        if self.is_single:
            return []
        models = {path for paths in self._places().values() for path in paths}
        return [one.name for one in _children(self._root) if one.is_dir() and one not in models]

    def find(self, name: str) -> ModelSource:
        """Read one model: its configuration and the versions to serve."""
        paths = self._places().get(name, [])
        if not paths:
            raise ModelNotFoundError(
                f"failed to load '{name}', failed to poll from model repository"
            )
        if len(paths) > 1:
            both = " and ".join(str(path) for path in paths)
            raise RepositoryError(f"{both} are both called {name!r}", hint="rename one of them")
        check_name(name)
        return self.read(name, paths[0])

    def path_of(self, name: str) -> Path | None:
        """Return where the model lies, if it lies anywhere."""
        return next(iter(self._places().get(name, [])), None)

    def read(self, name: str, path: Path, override: Mapping[str, Any] | None = None) -> ModelSource:
        """Read the model at `path`; `override` is a configuration that replaces config.pbtxt."""
        try:
            return self._read(name, path, override)
        except OSError as error:
            message = f"{error.filename or path} cannot be read: {error.strerror}"
            raise RepositoryError(message, hint="look for broken or circular links") from error

    def _read(self, name: str, path: Path, override: Mapping[str, Any] | None) -> ModelSource:
        is_bare = path.suffix == ".onnx"
        folder = path.parent if is_bare else path
        triton = TritonConfig()
        if override is not None:
            triton = read_triton_config(override, name, "config")
        elif not is_bare:
            triton = self._triton_config(name, folder / "config.pbtxt")
        settings, options = self._lrai_toml(None if is_bare else folder / "lrai.toml")
        backend = settings.model.backend or triton.backend or _guess_backend(path)
        if backend not in _DEFAULT_FILES:
            message = f"its backend {backend!r} is not known"
            raise RepositoryError(message, hint=f"use one of {', '.join(_DEFAULT_FILES)}")
        source = ModelSource(
            name=name,
            backend=backend,
            settings=settings,
            options={**_declared(backend, triton), **triton.parameters, **options},
            config=triton,
            versions=(),
            labels={} if is_bare else _labels(folder, triton),
            notes=triton.notes,
        )
        if is_bare:
            versions: tuple[VersionSource, ...] = (_version("1", _onnx_file(path), (path,)),)
        else:
            versions = tuple(_versions(source, folder))
        return replace(source, versions=versions)

    def _places(self) -> dict[str, list[Path]]:
        """Where the models of each name lie: one place, unless a name is given twice."""
        places: dict[str, list[Path]] = {}
        paths = [self._root] if self.is_single else filter(_is_model, _children(self._root))
        for path in paths:
            name = path.stem if path.suffix == ".onnx" else path.name
            places.setdefault(name, []).append(path)
        return places

    def _triton_config(self, name: str, file: Path) -> TritonConfig:
        if not file.is_file():
            return TritonConfig()
        try:
            plain = json.loads(self._parse_config(file.read_text(encoding="utf-8")))
        except LraiError as error:
            raise RepositoryError(f"{file}: {error.message}", hint=error.hint) from error
        except UnicodeDecodeError as error:
            raise RepositoryError(
                f"{file} is not text in UTF-8", hint="save it as UTF-8"
            ) from error
        return read_triton_config(plain, name, str(file))

    def _lrai_toml(self, file: Path | None) -> tuple[Settings, dict[str, str]]:
        if file is None or not file.is_file():
            return self._settings, {}
        tables = read_toml(file)
        options = tables.pop("options", {})
        if not isinstance(options, dict):
            raise ConfigError(f"{file}: options is no section", hint="write [options]")
        settings = overlay(self._settings, tables, file, "model", "knobs", "scheduler")
        return settings, {key: str(value) for key, value in options.items()}


def check_name(name: str) -> None:
    """Refuse a name that cannot stand in a URL or on disk."""
    if name in _RESERVED or not name or name.startswith(".") or set(name) & set("/\\\0%?#"):
        message = f"a model cannot be called {name!r}"
        raise RepositoryError(message, hint="use letters, digits, '-', '_' and '.'; not 'stats'")


def _children(root: Path) -> Iterator[Path]:
    """Entries of a folder, sorted; hidden ones are never models."""
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        message = f"{root} cannot be read: {error.strerror}"
        raise RepositoryError(
            message, hint="give the server permission, or name another"
        ) from error
    return (root / name for name in names if not name.startswith((".", "__")))


def _is_model(path: Path) -> bool:
    if path.suffix == ".onnx":
        return True
    if not path.is_dir():
        return False
    marks = ("config.pbtxt", "lrai.toml", "model.onnx", "model.py")
    try:
        return any(name.isdecimal() or name in marks for name in os.listdir(path))
    except PermissionError:
        return True  # perhaps a model; reading it says what is wrong


def _guess_backend(path: Path) -> str:
    """A folder is a python model if a version of it holds model.py and no model.onnx."""
    if path.suffix == ".onnx":
        return "onnxruntime"
    found = {entry.name for version in _version_folders(path) for entry in version.iterdir()}
    return "python" if "model.py" in found and "model.onnx" not in found else "onnxruntime"


def _version_folders(folder: Path) -> list[Path]:
    """Folders named by a number above 0, oldest first."""
    numbers = [name for name in os.listdir(folder) if name.isdecimal() and name[0] != "0"]
    return [folder / name for name in sorted(numbers, key=int) if (folder / name).is_dir()]


def _versions(source: ModelSource, folder: Path) -> Iterator[VersionSource]:
    there = _version_folders(folder)
    if not there:
        message = f"there is no version in {folder}"
        raise RepositoryError(message, hint=f"put the model's file into {folder / '1'}")
    config = source.config
    if config.versions is None:
        chosen = there[-config.num_latest :]
    else:
        chosen = [one for one in there if not config.versions or int(one.name) in config.versions]
    if not chosen:
        message = f"there is none of the versions {list(config.versions or ())} in {folder}"
        raise RepositoryError(message, hint=f"there are {[int(one.name) for one in there]}")
    file_name = config.default_model_filename or _DEFAULT_FILES[source.backend]
    settings_files = (folder / "config.pbtxt", folder / "lrai.toml")
    for version in chosen:
        file = version / file_name
        if not file.exists():
            has = ", ".join(sorted(os.listdir(version))) or "nothing"
            message = f"{file} is not there (the folder has {has})"
            raise RepositoryError(message, hint="rename it, or set default_model_filename")
        path = _onnx_file(file) if source.backend == "onnxruntime" else version
        yield _version(version.name, path, (version, *settings_files))


def _onnx_file(path: Path) -> Path:
    """A model with external data may be a folder called model.onnx around a file of that name."""
    path.stat()
    return path / "model.onnx" if path.is_dir() else path


def _version(version: str, path: Path, parts: tuple[Path, ...]) -> VersionSource:
    files = {file for part in (*parts, *guard_places(path)) for file in _files_of(part)}
    stats = [(str(file), file.stat()) for file in sorted(files)]
    marks = tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
    return VersionSource(version=version, path=path, fingerprint=marks)


def _files_of(part: Path) -> Iterator[Path]:
    if part.is_file():
        yield part
    for folder, folders, names in os.walk(part):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        found = (Path(folder, name) for name in sorted(names))
        yield from (file for file in found if file.exists())


def _declared(backend: str, config: TritonConfig) -> dict[str, str]:
    """Tensors for a backend that finds none in a file: `[name, datatype, full shape]` as JSON."""
    batch = [-1] if config.max_batch_size else []
    return {
        kind: json.dumps([[one.name, one.datatype, [*batch, *one.dims]] for one in tensors])
        for kind, tensors in (("inputs", config.inputs), ("outputs", config.outputs))
        if tensors and backend != "onnxruntime"
    }


def _labels(folder: Path, config: TritonConfig) -> dict[str, tuple[str, ...]]:
    found = {}
    for output in config.outputs:
        if output.label_file:
            lines = (folder / output.label_file).read_text(encoding="utf-8").splitlines()
            found[output.name] = tuple(line.strip() for line in lines if line.strip())
    return found
