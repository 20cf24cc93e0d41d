"""`lrai serve`: reads the settings and becomes the serving process.

Options are made from `lrai.config`, so that every setting has its flag, its variable and one text.
"""

import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from lrai.config import BOOLEAN, NAMES, SIZE, Setting, load_settings, settings_of
from lrai.errors import ConfigError

SETTINGS_VARIABLE: Final = "LRAI_SERVE_SETTINGS"

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "path": ("--model-repository", "--model-store"),
    "host": ("--http-address",),
    "max_body_bytes": ("--http-max-input-size",),
    "drain_timeout": ("--exit-timeout-secs",),
}
# Triton's flags that change nothing here; those that protect something are refused instead.
_WITHOUT_EFFECT: Final = (
    *("allow-cpu-metrics", "allow-gpu-metrics", "backend-config", "cache-config"),
    *("disable-auto-complete-config", "host-policy", "log-error", "log-info", "log-verbose"),
    *("log-warning", "metrics-config", "metrics-interval-ms", "model-namespacing"),
    *("rate-limit", "strict-model-config", "trace-config"),
)
_ALWAYS_ON: Final = ("allow-grpc", "allow-http", "allow-metrics")
_EXAMPLES: Final = """Serve models until SIGTERM or Ctrl-C.

PATH is an .onnx file (its stem is the model's name), a folder of them, or a model repository in
Triton's layout.

    lrai serve model.onnx

    lrai serve models/ --model-control-mode poll --repository-poll-secs 5

    lrai serve models/ --host 0.0.0.0 --http-port 80 --replicas 2 --memory-limit 2GiB

Each option can also stand in a TOML file (--config) or in the environment, as
LRAI_<SECTION>_<FIELD>; the option wins over the environment, the environment over the file. How
one model runs is said in its own folder, in lrai.toml or config.pbtxt.
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    _serve.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]
    app.command("serve", help=_EXAMPLES)(_serve)


def plain_arguments(arguments: list[str]) -> list[str]:
    """Give every switch of `serve` a value, as Triton's have: `--x`, `--no-x`, `--x=false`."""
    switches = {setting.flag for setting in settings_of() if setting.kind is BOOLEAN}
    switches |= {f"--{name}" for name in (*_WITHOUT_EFFECT, *_ALWAYS_ON)}
    plain: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        opposite = "--" + argument.removeprefix("--no-")
        if argument in switches and following not in ("true", "false"):
            plain.append(f"{argument}=true")
        elif argument.startswith("--no-") and opposite in switches:
            plain.append(f"{opposite}=false")
        else:
            plain.append(argument)
    return plain


def _serve(model_path: str | None, config: Path | None, **given: list[str] | None) -> None:
    values = {name: texts for name, texts in given.items() if texts}
    notes = tuple(_foreign_notes(values))
    flags = {
        setting.name: ",".join(texts) if setting.kind is NAMES else texts[-1]
        for setting in settings_of()
        if (texts := values.get(setting.name))
    }
    if model_path is not None:
        flags["path"] = model_path
    settings = replace(load_settings(flags, file=config), notes=notes)
    if not settings.repository.path:
        message = "there is no model to serve"
        raise ConfigError(message, hint="lrai serve PATH, or --model-repository PATH")
    sys.stdout.flush()
    os.environ[SETTINGS_VARIABLE] = settings.to_json()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "lrai.server"])


def _foreign_notes(values: Mapping[str, list[str]]) -> Iterator[str]:
    """Say which of Triton's flags had no effect; refuse to keep open what should be closed."""
    for name in _ALWAYS_ON:
        if values.get(name.replace("-", "_"), ["true"])[-1] not in ("true", "1"):
            port = f"--{name.removeprefix('allow-')}-port"
            message = f"--{name} cannot be switched off"
            hint = f"set {port} off" if name == "allow-metrics" else "leave it out"
            raise ConfigError(message, hint=hint)
    for name in _WITHOUT_EFFECT:
        if name.replace("-", "_") in values:
            yield f"--{name} has no effect here"


def _parameters() -> Iterator[inspect.Parameter]:
    path = typer.Argument(metavar="PATH", help="File, folder or repository.")
    file = typer.Option("--config", metavar="FILE", help="TOML file of settings.")
    yield _parameter("model_path", Annotated[str | None, path])
    yield _parameter("config", Annotated[Path | None, file])
    for setting in settings_of():
        yield _parameter(setting.name, Annotated[list[str] | None, _option(setting)])
    for name in (*_WITHOUT_EFFECT, *_ALWAYS_ON):
        hidden = typer.Option(f"--{name}", hidden=True)
        yield _parameter(name.replace("-", "_"), Annotated[list[str] | None, hidden])


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def _option(setting: Setting) -> Any:
    default = _written(setting)
    told = f"default {default}; " if default else ""
    return typer.Option(
        setting.flag,
        *_ALIASES.get(setting.name, ()),
        metavar=setting.kind.word,
        help=f"{setting.doc} ({told}{setting.variable})",
        rich_help_panel=f"[{setting.section}]",
        show_default=False,
    )


def _written(setting: Setting) -> str:
    """The default as a person would write it."""
    match setting.default:
        case bool():
            return str(setting.default).lower()
        case float():
            return f"{setting.default:g}s"
        case int() if setting.kind is SIZE and setting.default >= 1 << 20:
            return f"{setting.default >> 20}MiB"
        case () | None:
            return ""
        case other:
            return str(other)
