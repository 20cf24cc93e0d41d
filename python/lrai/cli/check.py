"""`lrai check`: proves a certificate again, with a program that shares nothing with the search."""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer

from lrai.cli.answer import Answer
from lrai.errors import ConfigError

_ACCEPTED, _REFUSED = 0, 1
_HELP: Final = """Prove a certificate of `lrai verify` again, independently of the search.

The models and the property must be the files that the certificate was made for, to the byte.

    lrai check proof.lrai-proof model.onnx property.vnnlib

    lrai check proof.lrai-proof model.onnx property.vnnlib --exact 3

A property in TOML is first written in VNN-LIB, by the same code that `lrai verify` uses; what is
proved again is that text, which --vnnlib FILE keeps for reading.

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
    vnnlib: Annotated[
        Path | None, typer.Option(help="Write the text that was proved, of a property in TOML.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from lrai.verifier.checker import check

    if len(files) < 2:
        raise ConfigError(
            "give a certificate, a model and a property", "lrai check PROOF MODEL.onnx PROPERTY"
        )
    models, subject = files[:-1], files[-1]
    is_translated = subject.suffix.lower() == ".toml"
    try:
        with TemporaryDirectory() as folder:
            if is_translated:
                text = _translated(subject, models)
                subject = vnnlib or Path(folder) / "property.vnnlib"
                subject.write_text(text, encoding="utf-8")
            result = check(certificate, models, subject, exact)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    if as_json:
        print(json.dumps({**asdict(result), "translated": is_translated}, indent=2))
    else:
        print(f"{'accepted' if result.accepted else 'refused'}: {result.reason}")
        if is_translated:
            where = f"the text in {vnnlib}" if vnnlib else "a VNN-LIB text (see --vnnlib)"
            print(f"what was compared is {where}, written from {files[-1].name} as verify does")
        if result.accepted:
            by_z3 = f", {result.exact} of them by Z3 as well" if exact else ""
            print(f"{result.leaves:,} leaves{by_z3}, in {result.seconds:.1f} s")
    raise Answer(_ACCEPTED if result.accepted else _REFUSED)


def _translated(subject: Path, models: list[Path]) -> str:
    """A TOML property as VNN-LIB; the one part of the search's code that a check may use."""
    from lrai.verifier.terms import read_toml

    return read_toml(subject, models)[1].text
