"""`lrai infer`: sends rows from the shell to a model and prints its answer."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from lrai.backends.tensors import Array
from lrai.cli.client import DEFAULT_URL, Client, Url, model_path
from lrai.cli.encode import Tensor, binary_body
from lrai.cli.table import print_table
from lrai.cli.tensors import decode_tensor, plain_values, read_array
from lrai.errors import ConfigError

_MOST_SHOWN: Final = 8

_HELP = """Send one request and print the answer.

INPUT is name=VALUE, or VALUE alone if the model has one input. VALUE is JSON text, a .json or .npy
file, or an image, which is resized to the model's height and width (0 to 1 for float inputs). A
missing batch dimension is added.

    lrai infer mlp --input '[[5.1, 3.5, 1.4, 0.2]]'

    lrai infer resnet --input cat.png

    lrai infer bert --input ids=ids.npy --input mask=mask.npy --npy answers/
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("infer", help=_HELP)(_infer)


def _infer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    given: Annotated[
        list[str], typer.Option("--input", "-i", metavar="INPUT", help="May be repeated.")
    ],
    version: Annotated[str, typer.Option("--version", help="Default: the latest.")] = "",
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--npy", metavar="DIR", help="Save outputs as .npy files.")
    ] = None,
) -> None:
    client, path = Client(url), model_path(model, version)
    metadata = client.get(path)
    tensors = _read_inputs(given, metadata)
    started = time.perf_counter()
    head, outputs = _ask(client, f"{path}/infer", tensors)
    took_ms = (time.perf_counter() - started) * 1e3
    if folder is not None:
        _save(outputs, folder)
    if as_json:
        print(_as_json(head, outputs))
        return
    rows = [
        (one["name"], one["datatype"], one["shape"], _shorten(outputs[one["name"]]))
        for one in head["outputs"]
    ]
    print_table(("output", "datatype", "shape", "values"), rows)
    print(f"answered in {took_ms:.1f} ms, connection included", file=sys.stderr)


def _read_inputs(given: list[str], metadata: dict[str, Any]) -> list[Tensor]:
    known = {tensor["name"]: tensor for tensor in metadata["inputs"]}
    described = ", ".join(
        f"{one['name']} {one['datatype']}{one['shape']}" for one in known.values()
    )
    tensors = []
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or name not in known:
            if len(known) > 1 or (separator and name.isidentifier()):
                raise ConfigError(f"--input {text!r} names no input", hint=f"it has {described}")
            name, value = next(iter(known)), text
        datatype, shape = known[name]["datatype"], known[name]["shape"]
        tensors.append(Tensor(name, datatype, read_array(value, datatype, shape)))
    return tensors


def _ask(
    client: Client, path: str, tensors: list[Tensor]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Send the tensors in binary and return the answer's JSON head and its arrays."""
    answer = client.call("POST", path, *binary_body(tensors))
    at = len(answer.body) if answer.head_bytes is None else answer.head_bytes
    told = json.loads(answer.body[:at])
    outputs = {}
    for tensor in told["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size", 0)
        blob = answer.body[at : at + size] if "data" not in tensor else tensor["data"]
        outputs[tensor["name"]] = decode_tensor(blob, tensor["datatype"], tensor["shape"])
        at += size
    return told, outputs


def _as_json(head: dict[str, Any], outputs: dict[str, Array]) -> str:
    """The answer as if it had been asked for in JSON."""
    for tensor in head["outputs"]:
        tensor["data"] = plain_values(outputs[tensor["name"]])
        tensor.pop("parameters", None)
    return json.dumps(head)


def _save(outputs: dict[str, Array], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in outputs.items():
        file = folder / f"{name.replace('/', '_')}.npy"
        np.save(file, array.astype(str) if array.dtype == object else array)


def _shorten(array: Array) -> str:
    values = plain_values(array.reshape(-1)[:_MOST_SHOWN])
    texts = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]
    left = array.size - len(texts)
    return ", ".join(texts) + (f", ... {left} more" if left > 0 else "")
