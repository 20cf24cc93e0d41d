"""How far may an input move before the class changes? A certified radius for rows of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.errors import InvalidInputError
from lrai.verifier.bounds import Arithmetic, Bounds
from lrai.verifier.network import Array, Network
from lrai.verifier.operators.base import Box
from lrai.verifier.regions import Regions

_ROWS: Final = 2**15
"""Bounds computed at once, times the widest layer: what keeps the memory small."""


@dataclass(frozen=True)
class RadiusSettings:
    """What a radius is and how finely it is looked for."""

    greatest: float = 0.5
    """No radius above this one is tried."""
    halvings: int = 12
    """A radius is found to within `greatest / 2**halvings`."""
    least_value: float = -np.inf
    """The ball is cut to inputs in [least_value, greatest_value], for example to pixels."""
    greatest_value: float = np.inf
    arithmetic: Arithmetic = "float32"


@dataclass(frozen=True)
class Radii:
    """For each row: no input within `certified` of it in every element gets another class."""

    certified: Array
    """`(N,)`; 0 where not even the smallest radius could be proved, or the row is misclassified."""
    classes: NDArray[np.intp]
    """`(N,)`: the class that the network gives to the row itself."""
    correct: NDArray[np.bool_]
    """`(N,)`: whether that is the wanted class."""
    settings: RadiusSettings

    def share(self, radius: float) -> float:
        """The certified accuracy: the share of rows whose class is right all over that ball."""
        if radius == 0:
            return float(self.correct.mean())
        return float((self.correct & (self.certified >= radius)).mean())


def certified_radii(
    network: Network, x: Array, labels: NDArray[np.intp], settings: RadiusSettings
) -> Radii:
    """Bisect the L-infinity radius of each row of `x` `(N, n_in)` with linear bounds.

    The bounds are those of CROWN (Zhang et al. 2018) on all margins between the wanted class
    `labels` `(N,)` and the others: sound and cheap; not complete: the true radius may be larger.
    Raises `InvalidInputError` where shapes, classes or settings do not fit.
    """
    _check(network, x, labels, settings)
    classes = network.evaluate(x).argmax(axis=1)
    low = np.zeros(len(x))
    high = np.full(len(x), settings.greatest)
    correct = classes == labels
    high[~correct] = 0
    whole = _proved(network, x, labels, high, settings) & correct
    low[whole] = high[whole]
    for _ in range(settings.halvings):
        open_rows = np.flatnonzero(low < high)
        middle = (low[open_rows] + high[open_rows]) / 2
        proved = _proved(network, x[open_rows], labels[open_rows], middle, settings)
        low[open_rows[proved]] = middle[proved]
        high[open_rows[~proved]] = middle[~proved]
    return Radii(low, classes, correct, settings)


def _proved(
    network: Network, x: Array, labels: NDArray[np.intp], radius: Array, settings: RadiusSettings
) -> NDArray[np.bool_]:
    """`(N,)`: whether all margins are positive everywhere in the balls."""
    bounds = Bounds(network, settings.arithmetic)
    proved = np.zeros(len(x), dtype=bool)
    size = max(1, _ROWS // max(node.size for node in network.nodes))
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        down = np.nextafter(x[part] - radius[part, None], -np.inf)
        up = np.nextafter(x[part] + radius[part, None], np.inf)
        ends = settings.least_value, settings.greatest_value
        regions = bounds.regions(Box(np.clip(down, *ends), np.clip(up, *ends)))
        proved[part] = _margins(bounds, regions, labels[part]) > 0
    return proved


def _margins(bounds: Bounds, regions: Regions, labels: NDArray[np.intp]) -> Array:
    """`(N,)`: a lower bound of the wanted output minus each other one; nan proves nothing."""
    count, size = len(labels), bounds.network.output_size
    others = np.arange(size - 1) + (np.arange(size - 1) >= labels[:, None])
    rows = np.zeros((count, size - 1, size))
    rows[np.arange(count), :, labels] = 1
    np.put_along_axis(rows, others[:, :, None], -1.0, axis=2)
    margins: Array = bounds.lower(rows, regions).min(axis=1)
    return margins


def _check(network: Network, x: Array, labels: NDArray[np.intp], settings: RadiusSettings) -> None:
    if x.ndim != 2 or x.shape[1] != network.input_size or len(labels) != len(x) or not len(x):
        raise InvalidInputError(
            f"rows of shape {x.shape} with {len(labels)} labels do not fit the model",
            f"give rows of {network.input_size} elements and a label for each",
        )
    if network.output_size < 2 or labels.min() < 0 or labels.max() >= network.output_size:
        raise InvalidInputError(
            f"labels lie in [{labels.min()}, {labels.max()}], the model has "
            f"{network.output_size} outputs",
            "number the classes as the outputs",
        )
    if not (0 < settings.greatest < np.inf and 0 <= settings.halvings <= 60):
        raise InvalidInputError(
            f"radii up to {settings.greatest} in {settings.halvings} halvings cannot be tried",
            "greatest > 0, halvings from 0 to 60",
        )


_WIDTH, _HEIGHT, _MARGIN = 560, 320, 60


def draw(radii: Radii, steps: int = 100) -> str:
    """Certified accuracy over the radius, as an SVG picture."""
    limit = max(float(radii.certified.max()), 1e-12)
    marks = [limit * index / 5 for index in range(6)]
    curve = [limit * index / steps for index in range(steps + 1)]
    points = " ".join(f"{_along(r, limit):.1f},{_up(radii.share(r)):.1f}" for r in curve)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{_MARGIN}" y="24" font-weight="bold">certified accuracy by L-infinity radius, '
        f"{len(radii.certified)} inputs</text>{_lines()}{_labels(marks, limit)}"
        f'<polyline points="{points}" fill="none" stroke="#1f6fb4" stroke-width="1.5"/></svg>\n'
    )


def _lines() -> str:
    return "".join(
        f'<path d="M{_MARGIN} {_up(share / 100):.1f}H{_WIDTH - 20}" stroke="#ddd"/>'
        f'<text x="{_MARGIN - 6}" y="{_up(share / 100) + 4:.1f}" text-anchor="end">{share}%</text>'
        for share in range(0, 101, 25)
    )


def _labels(marks: Sequence[float], limit: float) -> str:
    return "".join(
        f'<text x="{_along(mark, limit):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">'
        f"{mark:.3g}</text>"
        for mark in marks
    )


def _along(radius: float, limit: float) -> float:
    return _MARGIN + radius / limit * (_WIDTH - 20 - _MARGIN)


def _up(share: float) -> float:
    return _HEIGHT - 30 - share * (_HEIGHT - 70)
