"""`lrai bench`: loads a server and tells how fast it answered; the load itself is native."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from lrai import _native
from lrai.cli import encode, plot
from lrai.cli.table import print_table
from lrai.cli.target import PROTOCOLS, Ask, Target, model_target, plain_target, read_address
from lrai.config import DURATION
from lrai.errors import ConfigError, DataPlaneError, UnavailableError

_CLOSED_LOOPS: Final = "1,8,64"
_OPEN_LOOP_CONNECTIONS: Final = 128
_SEARCH_STEPS, _SEARCH_PRECISION = 12, 0.03
_ENOUGH_OF_RATE: Final = 0.99
_BUSY_CLIENT_PERCENT: Final = 90.0
_COLUMNS: Final = ("load", "answers/s", "p50", "p90", "p99", "p99.9", "max", "errors")
_LATENCIES: Final = ("p50_us", "p90_us", "p99_us", "p999_us", "max_us")
_GOALS: Final = {
    **{name: f"{name}_us" for name in ("mean", "p50", "p90", "p95", "p99", "max")},
    "p99.9": "p999_us",
}
_HELP = """Load a server and print how fast it answers.

URL is http://HOST:PORT, grpc://HOST:PORT or unix:/PATH of a server that speaks the Open Inference
Protocol. With --concurrency each connection sends when it has been answered (closed loop). With
--rate requests leave at their times (open loop), and a latency counts from the time at which the
request was due, also if it had to wait for a free connection.

    lrai bench http://127.0.0.1:8000 --model mlp

    lrai bench http://127.0.0.1:8000 --model mlp --rate 1000,10000 --poisson --plot mlp.svg

    lrai bench grpc://127.0.0.1:8001 --protocol grpc --model bert --shape ids:1,128

    lrai bench http://127.0.0.1:8000 --model mlp --find-rate 'p99<1ms'

    lrai bench http://127.0.0.1:8000 --path /predict --body body.json
"""


@dataclass(frozen=True)
class Timing:
    """How long each load lasts, and when its requests are due."""

    duration_s: float
    warmup_s: float
    timeout_s: float
    poisson: bool
    seed: int


@dataclass(frozen=True)
class Load:
    """One load: a rate at which requests are due, or else as fast as the answers come."""

    connections: int
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is None:
            return f"{self.connections} connection{'s' * (self.connections > 1)}"
        return f"{self.rate:,.0f}/s" if self.rate >= 100 else f"{self.rate:g}/s"


@dataclass(frozen=True)
class Goal:
    """A latency that must not be exceeded."""

    field: str
    limit_us: float

    def is_met_by(self, report: Mapping[str, Any]) -> bool:
        """Tell whether a load had no error, kept its rate, and stayed within the limit."""
        is_kept: bool = report["rate"] >= _ENOUGH_OF_RATE * report["settings"]["rate"]
        is_fast: bool = report["latency"][self.field] <= self.limit_us
        return is_kept and is_fast and report["errors"] == 0


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("bench", help=_HELP)(bench)


def bench(  # noqa: PLR0913 - one parameter per option
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's address.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model's name.")] = "",
    version: Annotated[str, typer.Option("--version", help="Default: the latest.")] = "",
    protocol: Annotated[
        str, typer.Option("--protocol", "-p", help=", ".join(PROTOCOLS))
    ] = PROTOCOLS[0],
    concurrency: Annotated[
        str, typer.Option("--concurrency", "-c", metavar="N,...", help="Closed loops.")
    ] = "",
    rate: Annotated[
        str, typer.Option("--rate", "-r", metavar="R,...", help="Open loops, requests/s.")
    ] = "",
    find_rate: Annotated[
        str, typer.Option("--find-rate", metavar="'p99<1ms'", help="The highest that keeps it.")
    ] = "",
    connections: Annotated[
        int, typer.Option("--connections", min=1, max=10_000, help="Of an open loop.")
    ] = _OPEN_LOOP_CONNECTIONS,
    duration: Annotated[str, typer.Option("--duration", "-d", help="Of each load.")] = "10s",
    warmup: Annotated[str, typer.Option("--warmup", help="Before each, not counted.")] = "1s",
    timeout: Annotated[str, typer.Option("--timeout", help="Of a request, once due.")] = "10s",
    poisson: Annotated[bool, typer.Option("--poisson", help="Random gaps, as of users.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of gaps and data.")] = 0,
    rows: Annotated[int, typer.Option("--rows", min=1, help="In each request.")] = 1,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", metavar="NAME:1,3,224,224[:FP32]")
    ] = None,
    data: Annotated[str, typer.Option("--data", help="random, zero, .npy or .json.")] = "random",
    metadata_url: Annotated[
        str, typer.Option("--metadata-url", help="Default: URL, for gRPC port 8000 there.")
    ] = "",
    path: Annotated[str, typer.Option("--path", help="Not a model: POST --body there.")] = "",
    body: Annotated[Path | None, typer.Option("--body", metavar="FILE")] = None,
    content_type: Annotated[str, typer.Option("--content-type")] = "application/json",
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write all numbers; - = print them.")
    ] = "",
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the latencies.")
    ] = None,
) -> None:
    """Load a server and print how fast it answers."""
    if plot_file is not None and plot_file.suffix != ".svg":
        raise ConfigError(f"--plot {plot_file} is no .svg file", hint="name it FILE.svg")
    goal = _read_goal(find_rate) if find_rate else None
    closed = concurrency or ("" if rate or goal else _CLOSED_LOOPS)
    loads = [Load(int(number)) for number in _read_numbers("--concurrency", closed)]
    loads += [Load(connections, number) for number in _read_numbers("--rate", rate)]
    timing = Timing(
        duration_s=_read_duration("--duration", duration),
        warmup_s=_read_duration("--warmup", warmup),
        timeout_s=_read_duration("--timeout", timeout),
        poisson=poisson,
        seed=seed,
    )
    address = read_address(url, protocol)
    if path:
        target = plain_target(address, path, body, content_type)
    else:
        shapes = tuple(encode.read_shape(text) for text in shape or ())
        ask = Ask(model, version, protocol, shapes, data, rows, seed)
        target = model_target(address, ask, metadata_url)

    reports = {str(load): run_load(target, timing, load) for load in loads}
    found = None
    if goal is not None:
        searched = dict(_search(target, timing, connections, goal))
        found = max((rate for rate, one in searched.items() if goal.is_met_by(one)), default=0.0)
        reports |= {str(Load(connections, rate)): one for rate, one in sorted(searched.items())}
    _tell(reports, json_file == "-", "" if found is None else f"{find_rate}: {found:,.0f}/s")
    document = {"version": _native.__version__, "url": url, "loads": reports, "found_rate": found}
    _write(document, json_file, plot_file)
    if not any(report["answered"] for report in reports.values()):
        raise UnavailableError(f"{url} answered nothing", hint="look at the errors above")


def run_load(target: Target, timing: Timing, load: Load) -> dict[str, Any]:
    """Send one load and return its report; Ctrl-C ends it."""
    config = {
        **asdict(timing),
        **asdict(load),
        "address": target.address.place,
        "protocol": target.address.scheme,
        "path": target.path,
    }

    def show(answered: int, errors: int) -> None:
        text = f"{load}: {answered:,} answered, {errors:,} errors"
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)

    is_watched = sys.stderr.isatty()
    try:
        text = _native.run_load(
            json.dumps(config), list(target.requests), show if is_watched else None
        )
    except _native.NativeError as error:
        raise DataPlaneError(str(error)) from error
    finally:
        if is_watched:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    report: dict[str, Any] = json.loads(text)
    return report


def _search(
    target: Target, timing: Timing, connections: int, goal: Goal
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Try what a closed loop reaches; double a rate that meets the goal, then halve the gap."""
    rate = run_load(target, timing, Load(connections))["rate"]
    low, high = 0.0, float("inf")
    for _ in range(_SEARCH_STEPS):
        if rate < 1.0 or high - low <= _SEARCH_PRECISION * high < float("inf"):
            return
        rate = float(f"{rate:.3g}")
        report = run_load(target, timing, Load(connections, rate))
        if not goal.is_met_by(report):
            # Once more: something else on the machine may have been the reason.
            report = run_load(target, timing, Load(connections, rate))
        yield rate, report
        low, high = (rate, high) if goal.is_met_by(report) else (low, rate)
        rate = min((low + high) / 2, 2 * rate)


def _tell(reports: Mapping[str, Mapping[str, Any]], is_quiet: bool, found: str) -> None:
    if is_quiet:
        return
    rows, kinds, notes = [], [], []
    for label, report in reports.items():
        latency, machine = report["latency"], report["environment"]
        times = (_milliseconds(latency[field]) for field in _LATENCIES)
        rows.append((label, f"{report['rate']:,.0f}", *times, f"{report['errors']:,}"))
        for kind, errors in report["errors_by_kind"].items():
            kinds.append((label, kind, f"{errors['count']:,}", errors["first"]))
        if machine["client_cpu_percent"] > _BUSY_CLIENT_PERCENT:
            notes.append(f"{label}: the client used a whole core and may have been the limit")
        if machine["steal_percent"] > 1:
            notes.append(f"{label}: {machine['steal_percent']:.1f}% of the cores were stolen")
    print_table(_COLUMNS, rows)
    if kinds:
        print_table(("load", "error", "times", "the first one"), kinds)
    machine = next(iter(reports.values()))["environment"]
    where = f"{machine['cpu_model']}, {machine['cores']} cores, Linux {machine['kernel']}"
    print(f"latencies in ms; {where}")
    for note in notes:
        print(f"note: {note}")
    if found:
        print(f"highest rate with {found}")


def _write(document: Mapping[str, Any], json_file: str, plot_file: Path | None) -> None:
    text = json.dumps(document, indent=2) + "\n"
    if json_file == "-":
        print(text, end="")
    try:
        if json_file not in ("", "-"):
            Path(json_file).write_text(text, encoding="utf-8")
        if plot_file is not None:
            plot_file.write_text(plot.draw(document["loads"]), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from error


def _read_goal(text: str) -> Goal:
    match = re.fullmatch(r"\s*(\S+?)\s*<=?\s*(\S+)\s*", text)
    if match is None or match[1] not in _GOALS:
        hint = f"write it as 'p99<1ms', with one of {', '.join(_GOALS)}"
        raise ConfigError(f"--find-rate {text!r} is no goal", hint=hint)
    return Goal(_GOALS[match[1]], _read_duration("--find-rate", match[2]) * 1e6)


def _read_numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",") if number.strip()]
        if any(not 0 < number < float("inf") for number in numbers):
            raise ValueError(text)
    except ValueError as error:
        raise ConfigError(f"{option} is {text!r}", hint="write numbers such as 1,8,64") from error
    return numbers


def _read_duration(option: str, text: str) -> float:
    try:
        return float(str(DURATION.read(text)))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{option} is {text!r}", hint=f"write {DURATION.example}") from error


def _milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1e3:,.3g}" if microseconds < 1e5 else f"{microseconds / 1e3:,.0f}"
