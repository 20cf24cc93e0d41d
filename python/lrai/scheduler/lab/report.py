"""Judges policies side by side on the same traces, and tells what was found: table and picture."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from lrai.errors import ConfigError
from lrai.scheduler.lab.simulator import Outcome, Scene, simulate
from lrai.scheduler.lab.traces import Trace
from lrai.scheduler.lab.tuning import hindsight, tuned
from lrai.scheduler.policies import POLICIES

HINDSIGHT: Final = "hindsight"
COLUMNS: Final = ("trace", "policy", "p50 ms", "p99 ms", "misses", "busy", "rows", "cost", "tuned")
_PANEL, _LEFT, _BAR, _TOP = 210, 150, 16, 46


@dataclass(frozen=True)
class Judged:
    """One policy on one trace."""

    trace: str
    policy: str
    setting: str
    """What tuning chose, on another trace."""
    outcome: Outcome

    def cells(self) -> tuple[str, ...]:
        """Return what stands under COLUMNS."""
        one = self.outcome
        return (
            self.trace,
            self.policy,
            f"{one.p50_s * 1e3:.3g}",
            f"{one.p99_s * 1e3:.3g}",
            f"{one.miss_share:.2%}",
            f"{one.busy:.1%}",
            f"{one.rows_per_batch:.1f}",
            f"{one.cost:.4g}",
            self.setting,
        )


def check_names(names: Iterable[str]) -> None:
    """Refuse names that are no policy; raises ConfigError."""
    for name in names:
        stem, _, rows = name.partition("-")
        is_static = stem == "static" and rows.isdecimal() and 0 < int(rows) <= 65_536
        if not is_static and name not in (HINDSIGHT, "one", *POLICIES):
            hint = f"there are {', '.join((*POLICIES, 'one', 'static-32', HINDSIGHT))}"
            raise ConfigError(f"there is no policy {name!r}", hint)


def judge(names: Sequence[str], tuning: Trace, judging: Trace, scene: Scene) -> list[Judged]:
    """Tune every policy on one trace and run it on the other; HINDSIGHT is tuned on the other.

    Raises ConfigError for a trace without requests, and what `simulate` raises.
    """
    if not (len(tuning.times_ns) and len(judging.times_ns)):
        raise ConfigError(f"no request arrives in {judging.name}", "let it last longer")
    found = []
    for name in names:
        if name == HINDSIGHT:
            setting, outcome = hindsight(judging, scene)
        else:
            setting, choice = tuned(name, tuning, scene)
            outcome = simulate(choice, judging, scene)
        found.append(Judged(judging.name, name, setting, outcome))
    return found


def draw(judged: Iterable[Judged]) -> str:
    """Return an SVG picture: p50, p99, busy and misses of every policy, one row per trace."""
    by_trace: dict[str, list[Judged]] = {}
    for one in judged:
        by_trace.setdefault(one.trace, []).append(one)
    parts, top = [], 0
    for trace, rows in by_trace.items():
        labels = "".join(
            f'<text x="{_LEFT - 8}" y="{_TOP + _BAR * at + 12}" text-anchor="end">'
            f"{escape(one.policy)}</text>"
            for at, one in enumerate(rows)
        )
        panels = "".join(
            _panel(title, _LEFT + _PANEL * at, [read(one.outcome) for one in rows], tell)
            for at, (title, (read, tell)) in enumerate(_MEASURES.items())
        )
        head = f'<text x="8" y="18" font-weight="bold">{escape(trace)}</text>'
        parts.append(f'<g transform="translate(0,{top})">{head}{labels}{panels}</g>')
        top += _TOP + _BAR * len(rows) + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + 4 * _PANEL} {top}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )


_Read = Callable[[Outcome], float]
_MEASURES: Final[Mapping[str, tuple[_Read, Callable[[float], str]]]] = {
    "p50 (ms)": (lambda one: one.p50_s * 1e3, "{:.3g}".format),
    "p99 (ms)": (lambda one: one.p99_s * 1e3, "{:.3g}".format),
    "busy": (lambda one: one.busy, "{:.1%}".format),
    "misses": (lambda one: one.miss_share, "{:.2%}".format),
}


def _panel(title: str, left: int, values: Sequence[float], tell: Callable[[float], str]) -> str:
    """Draw bars; one more than five times the median is cut, its number tells how long it is."""
    longest = min(max(values), 5 * statistics.median(values) or max(values)) or 1.0
    bars = [f'<text x="{left}" y="{_TOP - 8}">{title}</text>']
    for at, value in enumerate(values):
        width, y = (_PANEL - 70) * min(1.0, value / longest), _TOP + _BAR * at
        bars.append(
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{_BAR - 4}" fill="#1f6fb4"/>'
            f'<text x="{left + width + 4:.1f}" y="{y + 11}">{tell(value)}</text>'
        )
    return "".join(bars)
