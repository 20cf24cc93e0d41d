"""`lrai radius`: how far each row of a data set may move before its class changes."""

import json
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from lrai.cli.table import print_table
from lrai.errors import ConfigError
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.radius import RadiusSettings, certified_radii, draw

_SHARES: Final = 6
_HINT: Final = "an .npz with x and y, or a .csv whose last column is the class"


_HELP: Final = """Certify how far each row of a data set may move before its class changes.

    lrai radius model.onnx rows.npz --greatest 0.1 --plot radius.svg

The rows are an .npz with x and y, or a .csv whose last column is the class. No input within a
row's radius, in any element, gets another class; a true radius may be larger.
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("radius", help=_HELP, no_args_is_help=True)(_radius)


def _radius(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX classifier.")],
    rows: Annotated[Path, typer.Argument(metavar="ROWS", help="Labelled rows.")],
    greatest: Annotated[float, typer.Option(min=0, help="No radius above is tried.")] = 0.5,
    arithmetic: Annotated[
        Literal["float32", "real"], typer.Option(help="float32 covers the deployed network.")
    ] = "float32",
    plot: Annotated[Path | None, typer.Option(help="Draw them here, as SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    network = read_onnx(model)
    x, labels = _read(rows)
    started = time.monotonic()
    radii = certified_radii(network, x, labels, RadiusSettings(greatest, arithmetic=arithmetic))
    seconds = time.monotonic() - started
    if plot is not None:
        plot.write_text(draw(radii), encoding="utf-8")
    if as_json:
        values: dict[str, Any] = {
            "rows": len(x),
            "seconds": round(seconds, 3),
            "correct": radii.correct.tolist(),
            "certified": radii.certified.tolist(),
        }
        print(json.dumps(values))
        return
    shares = [greatest * step / _SHARES for step in range(_SHARES + 1)]
    lines = [(f"{radius:.4g}", f"{radii.share(radius):.2%}") for radius in shares]
    print_table(("radius", f"right all over the ball, of {len(x)} rows"), lines)
    print(
        f"median certified radius {float(np.median(radii.certified)):.5g}, {seconds:.1f} s, "
        f"{arithmetic} arithmetic"
    )


def _read(path: Path) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                x, y = file["x"], file["y"]
        else:
            table = np.loadtxt(path, delimiter=",", ndmin=2)
            x, y = table[:, :-1], table[:, -1]
        return x.reshape(len(x), -1).astype(np.float64), y.reshape(-1).astype(np.intp)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} holds no labelled rows: {error}", _HINT) from None
