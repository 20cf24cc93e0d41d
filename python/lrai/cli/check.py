"""`lrai check`: proves a certificate again, with a program that shares nothing with the search."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from lrai.cli.answer import Answer
from lrai.errors import ConfigError

_ACCEPTED, _REFUSED = 0, 1
_HELP: Final = """Prove a certificate of `lrai verify` again, independently of the search.

The models and the property must be the files that the certificate was made for, to the byte.

    lrai check proof.lrai-proof model.onnx property.vnnlib

    lrai check proof.lrai-proof model.onnx property.vnnlib --exact 3

Exit code: 0 it is proved again, 1 refused, 3 wrong usage.
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("check", help=_HELP, no_args_is_help=True)(_check)


def _check(
    certificate: Annotated[
        Path, typer.Argument(metavar="CERTIFICATE", help="What to prove again.")
    ],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL... PROPERTY", help="ONNX models, then the property."),
    ],
    exact: Annotated[
        int, typer.Option(min=0, help="So many leaves, at random, Z3 closes once more.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from lrai.verifier.checker import check

    if len(files) < 2:
        raise ConfigError(
            "give a certificate, a model and a property", "lrai check PROOF MODEL.onnx PROPERTY"
        )
    try:
        result = check(certificate, files[:-1], files[-1], exact)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    if as_json:
        print(json.dumps(asdict(result), indent=2))
    else:
        print(f"{'accepted' if result.accepted else 'refused'}: {result.reason}")
        if result.accepted:
            by_z3 = f", {result.exact} of them by Z3 as well" if exact else ""
            print(f"{result.leaves:,} leaves{by_z3}, in {result.seconds:.1f} s")
    raise Answer(_ACCEPTED if result.accepted else _REFUSED)
