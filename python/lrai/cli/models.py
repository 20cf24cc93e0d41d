"""`lrai models`: what a server serves and why so; loads and unloads over its repository API."""

import base64
import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from lrai.cli.client import DEFAULT_URL, Client, Url, model_path
from lrai.cli.table import print_table
from lrai.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
_LOAD_TIMEOUT_S: Final = 900.0
_SEEN: Final = (
    *("ago_s", "requests_per_s", "p99_ms", "queue_age_ms", "busy", "late", "refused_late"),
    *("k", "cap", "tau_ms"),
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(
        help="List, show, explain, load and unload the models of a running server.",
        no_args_is_help=True,
    )
    group.command("list")(_list)
    group.command("show")(_show)
    group.command("why")(_why)
    group.command("load")(_load)
    group.command("unload")(_unload)
    app.add_typer(group, name="models")


def _list(url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """List every model of the repository with its state."""
    index = Client(url).post("/v2/repository/index", {})
    if as_json:
        print(json.dumps(index, indent=2))
        return
    columns = ("name", "version", "state", "reason")
    print_table(columns, [[row.get(column, "") for column in columns] for row in index])


def _show(
    model: Name,
    version: Annotated[str, typer.Option("--version", help="Default: the latest.")] = "",
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Show a model's tensors, configuration and statistics."""
    client, path = Client(url), model_path(model, version)
    metadata = client.get(path)
    config = client.get(f"{path}/config")
    stats = client.get(f"{path}/stats")["model_stats"][0]
    if as_json:
        print(json.dumps({"metadata": metadata, "config": config, "stats": stats}, indent=2))
        return
    batching = config.get("dynamic_batching", {})
    print_table(
        ("what", "value"),
        [
            ("name", metadata["name"]),
            ("versions", ", ".join(metadata.get("versions", []))),
            ("platform", metadata["platform"]),
            ("replicas", sum(group["count"] for group in config["instance_group"])),
            ("max batch size", config["max_batch_size"]),
            ("most delay", f"{int(batching.get('max_queue_delay_microseconds', 0))} us"),
            *_statistics(stats),
        ],
    )
    print()
    tensors = [("input", one) for one in metadata["inputs"]]
    tensors += [("output", one) for one in metadata["outputs"]]
    rows = [(kind, one["name"], one["datatype"], one["shape"]) for kind, one in tensors]
    print_table(("", "tensor", "datatype", "shape"), rows)


def _statistics(stats: dict[str, Any]) -> list[tuple[str, object]]:
    times, runs = stats["inference_stats"], int(stats["execution_count"])
    rows: list[tuple[str, object]] = [
        ("requests", f"{times['success']['count']} answered, {times['fail']['count']} failed"),
        ("rows", f"{stats['inference_count']} in {runs} batches"),
    ]
    rows += [
        (f"mean {name}", f"{int(times[name]['ns']) / count / 1e3:.1f} us")
        for name in ("queue", "compute_infer")
        if (count := int(times[name]["count"]))
    ]
    return rows


def _why(
    model: Name,
    version: Annotated[str, typer.Option("--version", help="Default: the latest.")] = "",
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Say what the scheduler has seen of a model, what it has set, and why."""
    told = Client(url).get(f"{model_path(model, version)}/scheduler")
    if as_json:
        print(json.dumps(told, indent=2))
        return
    print(f"{told['name']}/{told['version']} ({told['policy']}): {told['why']}.\n")
    if told["calibration"]:
        print(f"calibration: {told['calibration']}.\n")
    goal, p99, knobs = told["latency_goal_ms"], told["p99_ms"], told["knobs"]
    leaves = "as soon as a replica is free"
    if not knobs["work_conserving"]:
        leaves = f"with {knobs['k'] or knobs['cap']} rows or after {knobs['tau_ms']:g} ms"
    print_table(
        ("what", "value"),
        [
            ("latency goal", "none" if goal is None else f"p99 of {goal:g} ms"),
            ("p99 over 10 s", "no requests" if p99 is None else f"{p99:g} ms"),
            ("a batch leaves", leaves),
            ("most rows", knobs["cap"] or "as many as the model takes"),
        ],
    )
    if told["seen"]:
        print()
        print_table(_SEEN, [[row[column] for column in _SEEN] for row in told["seen"]])


def _load(
    model: Name,
    config: Annotated[
        Path | None, typer.Option("--config", help="Model configuration to use instead, as JSON.")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="PATH=LOCAL", help="1/model.onnx=local.onnx; with --config"),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Load a model, or load it again; needs a server with --model-control-mode explicit."""
    parameters: dict[str, str] = {}
    try:
        if config is not None:
            parameters["config"] = config.read_text(encoding="utf-8")
        for pair in file or []:
            place, separator, local = pair.partition("=")
            if not separator:
                raise ConfigError(f"--file is {pair!r}", hint="write 1/model.onnx=local.onnx")
            parameters[f"file:{place}"] = base64.b64encode(Path(local).read_bytes()).decode()
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    client = Client(url, timeout_s=_LOAD_TIMEOUT_S)
    path = model_path(model).replace("/models/", "/repository/models/")
    client.post(f"{path}/load", {"parameters": parameters} if parameters else {})
    print(f"{model} is loaded")


def _unload(model: Name, url: Url = DEFAULT_URL) -> None:
    """Take a model out of service; needs a server with --model-control-mode explicit."""
    path = model_path(model).replace("/models/", "/repository/models/")
    Client(url).post(f"{path}/unload", {})
    print(f"{model} is unloaded")
