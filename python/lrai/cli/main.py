"""The command `lrai`: its subcommands, its help, and how an error looks."""

import os
import sys
from importlib import import_module
from typing import Annotated, Final

import typer

from lrai.cli.answer import Answer
from lrai.errors import ConfigError, LraiError

_COMMANDS: Final = (
    *("serve", "models", "infer", "bench", "simulate", "doctor"),
    *("verify", "check", "radius"),
)
# Their codes 1 and 2 are answers, so what cannot be asked is 3.
_ANSWERING: Final = ("verify", "check")
# Their matrices are small: several threads would wait for each other more than they compute.
_COMPUTING: Final = (*_ANSWERING, "radius")
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_HELP = """Serve ONNX models: safely, fast, with a standard protocol.

Serve a model, ask it, look at it:

    lrai serve model.onnx

    lrai infer model --input '[[1, 2, 3, 4]]'

    lrai models list

Ask what this machine can do, and how fast a server is:

    lrai doctor

    lrai bench http://127.0.0.1:8000 --model model

Find out how its requests would best be batched:

    lrai simulate --service 80,13 --goal 1ms

Prove what a model can answer, and check a proof:

    lrai verify model.onnx property.vnnlib --certificate proof.lrai-proof

    lrai check proof.lrai-proof model.onnx property.vnnlib
"""


def build_app(command: str = "") -> typer.Typer:
    """Return the application; with the name of a command, only that one, because imports take time.

    Colours only where a person looks.
    """
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in [command] if command in _COMMANDS else _COMMANDS:
        import_module(f"lrai.cli.{name}").register(app)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    An error is a sentence on standard error; the code is 2 for a bad setting, else 1; 3 for both
    where 1 and 2 are answers.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] and given[0] in _COMPUTING:
        for name in _THREADS:  # read when numpy is imported
            os.environ.setdefault(name, "1")
    is_answering = given[:1] and given[0] in _ANSWERING
    try:
        build_app(*given[:1])(_plain(given), prog_name="lrai")
    except LraiError as error:
        print(f"error: {error}", file=sys.stderr)
        if is_answering:
            return 3
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        return 1
    except Answer as answer:
        return answer.code
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        return 3 if is_answering and code else code
    return 0


def _plain(arguments: list[str]) -> list[str]:
    if arguments[:1] != ["serve"]:
        return arguments
    from lrai.cli.serve import plain_arguments

    return plain_arguments(arguments)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from lrai import __version__

        print(f"lrai {__version__}")
        raise typer.Exit


_VERSION: Final = typer.Option(
    "--version", help="Print the version and end.", callback=_print_version, is_eager=True
)


def _root(_version: Annotated[bool, _VERSION] = False) -> None:
    """Take the options that stand before a command."""
