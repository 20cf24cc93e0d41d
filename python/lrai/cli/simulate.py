"""`lrai simulate`: which policy would serve a model best, found on a fake clock."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from lrai.cli.table import print_table
from lrai.config import DURATION
from lrai.errors import ConfigError
from lrai.scheduler.lab import report, traces
from lrai.scheduler.lab.service import read_service
from lrai.scheduler.lab.simulator import Scene

_MOST_S: Final = 1e6
_TRACES: Final = "poisson-0.2,mmpp,drift,step"
_POLICIES: Final = "greedy,static-32,fixed-delay,aimd,model-based,hindsight"
_HELP: Final = """Find out, without a server, how policies would batch a model's requests.

The server's own waiting line runs on a fake clock, fed with arrivals and service times. Every
policy is tuned on arrivals of one seed and judged on those of another; `hindsight` is the best
fixed setting for the very arrivals that it is judged on. Misses are answers after the goal and
refusals; busy is the replicas' share of the time; cost is 20 x misses + cpu-cost x busy + 0.2 x
mean latency / goal, and without a goal the mean latency in seconds.

    lrai simulate --service 80,13 --goal 1ms

    lrai simulate --service http://127.0.0.1:8000 --model mlp --goal 20ms --plot policies.svg

    lrai simulate --service times.json --goal 5ms --trace mine.csv --policies greedy,model-based

A service of ALPHA,BETA takes ALPHA + BETA x rows us per batch; a .json file lists [edge, rows, us],
edge 0 for a model without lengths; a URL asks a running server for what it has measured. A trace is
a name (TRACES) or a .csv file whose lines are the arrival in s[,rows[,length]].
""".replace("TRACES", ", ".join(traces.TRACES))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("simulate", help=_HELP, no_args_is_help=True)(_simulate)


def _simulate(  # noqa: PLR0913 - one parameter per option
    service: Annotated[
        str, typer.Option("--service", "-s", metavar="ALPHA,BETA|FILE.json|URL", help="In us.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="At the URL of --service.")] = "",
    goal: Annotated[str, typer.Option("--goal", "-g", help="Latency goal; default: none.")] = "",
    trace: Annotated[str, typer.Option("--trace", "-t", metavar="NAME|FILE.csv,...")] = _TRACES,
    lengths: Annotated[
        str, typer.Option(metavar="MEDIAN,SIGMA,MOST", help="Log-normal, of made requests.")
    ] = "",
    policies: Annotated[str, typer.Option("--policies", "-p", metavar="NAME,...")] = _POLICIES,
    max_batch_size: Annotated[int, typer.Option(min=1, max=4096, help="In rows.")] = 32,
    replicas: Annotated[int, typer.Option(min=1, max=64)] = 1,
    duration: Annotated[str, typer.Option("--duration", "-d", help="Of a trace.")] = "60s",
    warmup: Annotated[str, typer.Option(help="Of it, not counted.")] = "10s",
    cpu_cost: Annotated[float, typer.Option(min=0, help="Of a busy replica.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Judged on; tuned on the next.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if plot is not None and plot.suffix != ".svg":
        raise ConfigError(f"--plot {plot} is no .svg file", "name it FILE.svg")
    scene = Scene(
        read_service(service, model),
        _seconds("--goal", goal) if goal else None,
        max_batch_size,
        replicas,
        _seconds("--warmup", warmup),
        cpu_cost,
        seed,
    )
    names = [name.strip() for name in policies.split(",")]
    report.check_names(names)
    pair = partial(_pair, scene, _seconds("--duration", duration), _read_lengths(lengths))
    judged = [
        one for name in trace.split(",") for one in report.judge(names, *pair(name.strip()), scene)
    ]
    if as_json:
        print(json.dumps([asdict(one) for one in judged], indent=1))
    else:
        print_table(report.COLUMNS, [one.cells() for one in judged])
        print("simulated; misses, busy and cost without the warm-up")
    if plot is not None:
        try:
            plot.write_text(report.draw(judged), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{plot} cannot be written: {error.strerror}") from error


def _pair(
    scene: Scene, seconds: float, lengths: tuple[float, float, int] | None, name: str
) -> tuple[traces.Trace, traces.Trace]:
    """Return the arrivals to tune on, and those to judge on: the halves of a file."""
    if name.endswith(".csv"):
        return traces.halves(traces.read(Path(name)))
    if name not in traces.TRACES:
        raise ConfigError(f"there is no trace {name!r}", f"FILE.csv or {', '.join(traces.TRACES)}")
    edge = round(lengths[0]) if lengths else 0
    capacity = scene.service.capacity(scene.max_rows, edge) * scene.replicas

    def made(seed: int) -> traces.Trace:
        trace = traces.make(name, capacity, seconds, seed)
        return traces.with_lengths(trace, *lengths, seed) if lengths else trace

    return made(scene.seed + 1), made(scene.seed)


def _read_lengths(text: str) -> tuple[float, float, int] | None:
    if not text:
        return None
    try:
        median, sigma, most = map(float, text.split(","))
        if not (1 <= median <= most <= 2**31 and 0 <= sigma < 10):
            raise ValueError(text)
    except ValueError:
        raise ConfigError(f"--lengths is {text!r}", "write MEDIAN,SIGMA,MOST: 64,0.8,512") from None
    return median, sigma, int(most)


def _seconds(option: str, text: str) -> float:
    try:
        seconds = float(str(DURATION.read(text)))
        if seconds > _MOST_S:
            raise ValueError(text)
    except (ValueError, KeyError) as error:
        hint = f"write {DURATION.example}, up to {_MOST_S:g} s"
        raise ConfigError(f"{option} is {text!r}", hint) from error
    return seconds
