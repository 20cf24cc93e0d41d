"""Draws what a load test found as an SVG picture, with nothing but text."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

_Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _MARGIN = 560, 320, 60
_COLOURS: Final = ("#1f6fb4", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#5f3dc4", "#846200")
_TAILS: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


def draw(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a picture of labelled reports: latency by percentile, and p99 second by second."""
    curves = {label: _curve(report["latency"]["curve"]) for label, report in reports.items()}
    seconds = {
        label: [(float(at), row["p99_us"]) for at, row in enumerate(report["series"], start=1)]
        for label, report in reports.items()
    }
    last = max((points[-1][0] for points in seconds.values() if points), default=1.0)
    step = max(1, math.ceil(last / 8))
    time_marks = [(float(second), f"{second} s") for second in range(step, int(last) + 1, step)]
    tail_marks = [(_stretch(percent), f"{percent:g}%") for percent in _TAILS]
    panels = [
        _panel("latency by percentile", curves, tail_marks),
        _panel("p99 in each second", seconds, time_marks),
    ]
    legend = "".join(
        f'<text x="{_MARGIN + 180 * (index % 6)}" y="{_HEIGHT + 30 + 18 * (index // 6)}" '
        f'fill="{_colour(index)}">{escape(label)}</text>'
        for index, label in enumerate(reports)
    )
    height = _HEIGHT + 45 + 18 * ((len(reports) - 1) // 6)
    placed = "".join(
        f'<g transform="translate({index * _WIDTH},0)">{panel}</g>'
        for index, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH} {height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{placed}{legend}</svg>\n"
    )


def _panel(title: str, lines: Mapping[str, _Points], marks: _Points | Sequence[Any]) -> str:
    """One diagram; its values grow tenfold from line to line."""
    points = [(x, y) for line in lines.values() for x, y in line if y > 0]
    if not points:
        return f'<text x="{_MARGIN}" y="30">{title}: no answers</text>'
    low = math.floor(min(math.log10(y) for _, y in points))
    high = max(math.ceil(max(math.log10(y) for _, y in points)), low + 1)
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    along = _scale(left, max(right, left + 1e-9), _MARGIN, _WIDTH - 20)
    up = _scale(low, high, _HEIGHT - 30, 40)
    parts = [f'<text x="{_MARGIN}" y="24" font-weight="bold">{title}</text>']
    for power in range(low, high + 1):
        y = up(power)
        parts.append(
            f'<path d="M{_MARGIN} {y:.1f}H{_WIDTH - 20}" stroke="#ddd"/>'
            f'<text x="{_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{_time(10.0**power)}</text>'
        )
    parts += [
        f'<text x="{along(x):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{text}</text>'
        for x, text in marks
        if left <= x <= right
    ]
    for index, line in enumerate(lines.values()):
        path = " ".join(f"{along(x):.1f},{up(math.log10(y)):.1f}" for x, y in line if y > 0)
        style = f'fill="none" stroke="{_colour(index)}" stroke-width="1.5"'
        parts.append(f'<polyline points="{path}" {style}/>')
    return "".join(parts)


def _curve(curve: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(_stretch(percent), value) for percent, value in curve]


def _stretch(percent: float) -> float:
    """Give each tenfold rarer latency the same width."""
    return -math.log10(max(1.0 - percent / 100.0, 1e-9))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _time(microseconds: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:g} {unit}"
    return f"{microseconds:g} µs"
