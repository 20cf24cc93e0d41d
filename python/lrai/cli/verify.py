"""`lrai verify`: does a property hold of a model, and how far is a variant from its original?"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from lrai.cli.answer import Answer
from lrai.errors import ConfigError

if TYPE_CHECKING:
    from lrai.verifier.instance import Instance
    from lrai.verifier.verdict import Progress, Verdict

_EXIT: Final = {"unsat": 0, "sat": 1, "unknown": 2}
_HELP: Final = """Prove or refute a property of ONNX models.

The property says in VNN-LIB 1.0 or 2.0 what must never happen, or in TOML what must hold.

    lrai verify model.onnx property.vnnlib

    lrai verify model.onnx property.vnnlib --certificate proof.lrai-proof --html proof.html

    lrai verify --instances acasxu_instances.csv --workers 2 --results acasxu.jsonl

    lrai verify quantized.onnx --against original.onnx --region region.toml --epsilon 0.01

    lrai verify quantized.onnx --against original.onnx --region region.toml --cases 10000000

Exit code: 0 it holds (proved), 1 it does not (this input shows it), 2 unknown, 3 wrong usage.
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("verify", help=_HELP, no_args_is_help=True)(_verify)


_Arithmetic = Annotated[
    Literal["float32", "real"],
    typer.Option(help="float32 covers the deployed network's rounding in any order of summation."),
]


def _verify(  # noqa: PLR0913 - every option of a command is an argument
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL... PROPERTY", help="ONNX models, then the property."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds; default 300, or the list's own.")
    ] = None,
    arithmetic: _Arithmetic = "float32",
    certificate: Annotated[
        Path | None, typer.Option(help="Write the proof here; `lrai check` proves it again.")
    ] = None,
    witness: Annotated[
        Path | None, typer.Option(help="Write the counterexample here, in VNN-COMP's format.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page about the verdict.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    instances: Annotated[
        Path | None, typer.Option(help="Run a list of `model,property,seconds` lines instead.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes for a list.")] = 1,
    results: Annotated[
        Path | None,
        typer.Option(help="Results of a list, a line of JSON each; what it holds is not repeated."),
    ] = None,
    certificates: Annotated[
        Path | None, typer.Option(help="A folder for the proofs of a list.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check each proof of a list.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="The original that MODEL shall be close to.")
    ] = None,
    region: Annotated[
        Path | None, typer.Option(help="Where they shall be close: VNN-LIB, TOML or CSV.")
    ] = None,
    epsilon: Annotated[float, typer.Option(min=0, help="Largest allowed difference.")] = 0.01,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Epsilon in the output's own units.")
    ] = False,
    cases: Annotated[
        int, typer.Option(min=0, help="Run so many random cases instead: statistics, no proof.")
    ] = 0,
    alpha: Annotated[
        float, typer.Option(min=1e-12, max=0.5, help="How probably --cases may mislead.")
    ] = 0.001,
    vnnlib: Annotated[
        Path | None, typer.Option(help="Write the property in VNN-LIB, as it is proved.")
    ] = None,
    guard: Annotated[
        Path | None,
        typer.Option(
            help="Write the proved region here; beside a model, the server marks the rest."
        ),
    ] = None,
) -> None:
    from lrai.verifier.instance import Instance, solve

    if instances is not None:
        from lrai.cli.instances import run_list
        from lrai.verifier.instances import RunSettings

        settings = RunSettings(arithmetic, workers, timeout, certificates, check)
        raise Answer(run_list(instances, results, settings, as_json))
    models = files or []
    if against is not None:
        if region is None or len(models) != 1:
            raise ConfigError("--against compares one model over a --region")
        from lrai.cli.closeness import Comparison, compare, sample
        from lrai.verifier.closeness import ClosenessSettings

        limit = timeout or ClosenessSettings.timeout_s
        how = ClosenessSettings(epsilon, absolute, arithmetic, limit)
        both = Comparison(against, models[0], region, how, as_json, certificate)
        raise Answer(sample(both, cases, alpha, workers) if cases else compare(both))
    if guard is not None and certificate is None:
        raise ConfigError("a guard names its certificate", "give --certificate too")
    if len(models) < 2:
        raise ConfigError("give a model and a property", "lrai verify MODEL.onnx PROPERTY.vnnlib")
    instance = Instance(tuple(models[:-1]), models[-1], timeout or Instance.timeout_s)
    with _Bar(as_json) as bar:
        verdict = solve(instance, arithmetic, bar.show)
    _Files(certificate, guard, vnnlib, witness, html).write(instance, verdict, arithmetic)
    if as_json:
        print(json.dumps(as_values(verdict, arithmetic), indent=2))
    else:
        _say(verdict, arithmetic, certificate)
    raise Answer(_EXIT[verdict.answer])


@dataclass(frozen=True)
class _Files:
    """What a verdict may leave; None: not wanted."""

    certificate: Path | None
    guard: Path | None
    vnnlib: Path | None
    witness: Path | None
    html: Path | None

    def write(self, instance: "Instance", verdict: "Verdict", arithmetic: str) -> None:
        """Write those that there is something for."""
        from lrai.verifier.instance import read

        if self.certificate is not None and verdict.certificate is not None:
            verdict.certificate.write(self.certificate)
            if self.guard is not None:
                from lrai.verifier.guard import guard_of_certificate

                claim = f"{instance.subject.name} holds under {arithmetic} arithmetic"
                network = read(instance)[0]
                guard_of_certificate(network, self.certificate, claim).write(self.guard)
        if self.vnnlib is not None:
            self.vnnlib.write_text(read(instance)[1].text, encoding="utf-8")
        if self.witness is not None and verdict.witness is not None:
            self.witness.write_text(witness_text(verdict), encoding="utf-8")
        if self.html is not None:
            from lrai.verifier.report import page

            self.html.write_text(page(instance, verdict, arithmetic), encoding="utf-8")


class _Bar:
    """The state of a search on one line of the terminal; silent elsewhere."""

    def __init__(self, is_silent: bool) -> None:
        self._shows = sys.stderr.isatty() and not is_silent

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_error: object) -> None:
        if self._shows:
            print("\r\033[K", end="", file=sys.stderr)

    def show(self, progress: "Progress") -> None:
        if self._shows:
            text = (
                f"{progress.seconds:6.1f} s  {progress.boxes} boxes  "
                f"{progress.share:.1%} proved  best bound {progress.bound:.3g}"
            )
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _say(verdict: "Verdict", arithmetic: str, certificate: Path | None) -> None:
    spent = f"in {verdict.seconds:.1f} s with {verdict.boxes} boxes"
    if verdict.answer == "unsat":
        print(
            f"unsat: safe for every input in the region: proved {spent} ({arithmetic} arithmetic)"
        )
        if certificate is not None:
            print(f"the proof is in {certificate}; `lrai check` proves it again")
    elif verdict.answer == "sat" and verdict.witness is not None:
        print(f"sat: unsafe, this input shows it (found {spent}):")
        print(f"  x = {_numbers(verdict.witness.x)}")
        print(f"  y = {_numbers(verdict.witness.y)}")
    else:
        print(f"unknown: {verdict.reason or 'no decision'} ({spent})")
        return
    if verdict.reason:
        print(verdict.reason)


def _numbers(values: Any, most: int = 12) -> str:
    shown = ", ".join(f"{value:.9g}" for value in values[:most])
    return f"[{shown}{f', ... {len(values)} in all' if len(values) > most else ''}]"


def as_values(verdict: "Verdict", arithmetic: str) -> dict[str, Any]:
    """A verdict as JSON."""
    witness = verdict.witness
    finite = abs(verdict.bound) < float("inf")
    return {
        "answer": verdict.answer,
        "arithmetic": arithmetic,
        "reason": verdict.reason,
        "seconds": round(verdict.seconds, 3),
        "boxes": verdict.boxes,
        "bound": verdict.bound if finite else None,
        "leaves": verdict.certificate.leaves if verdict.certificate else 0,
        "witness": witness and {"x": witness.x.tolist(), "y": witness.y.tolist()},
    }


def witness_text(verdict: "Verdict") -> str:
    """The first word and the values in VNN-COMP's format; floats in their shortest exact form."""
    assert verdict.witness is not None  # the caller has looked
    x, y = verdict.witness.x, verdict.witness.y
    lines = [f"(X_{index} {float(value)!r})" for index, value in enumerate(x)]
    lines += [f"(Y_{index} {float(value)!r})" for index, value in enumerate(y)]
    return "sat\n(" + "\n ".join(lines) + ")\n"
