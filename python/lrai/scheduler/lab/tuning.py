"""Chooses a policy's parameters on one trace, and finds the best fixed knobs in hindsight."""

from collections.abc import Iterable
from functools import partial
from typing import Final

from lrai.scheduler.aimd import Aimd
from lrai.scheduler.knobs import Knobs
from lrai.scheduler.lab.simulator import Choice, Outcome, Scene, simulate
from lrai.scheduler.lab.traces import Trace
from lrai.scheduler.policies import POLICIES
from lrai.scheduler.static import FixedDelay, Static

_SHARES: Final = (0.15, 0.3, 0.45, 0.6, 0.75)
_DELAYS_S: Final = (100e-6, 200e-6, 500e-6)
_WITHOUT_GOAL_S: Final = 0.01


def candidates(name: str, scene: Scene) -> dict[str, Choice]:
    """Return the settings of a policy that tuning tries, by a label.

    Besides the names of POLICIES: `one` (never batches) and `static-K`, whose ages alone are tuned.
    """
    if name == "one":
        return _labelled([Knobs(cap=1)])
    if name.startswith("static"):
        rows = [int(name.partition("-")[2])] if "-" in name else _powers(scene.max_rows)
        return _labelled(_static(rows, scene))
    if name == "fixed-delay":
        return {f"{tau * 1e6:g} us": partial(FixedDelay, tau_s=tau) for tau in _DELAYS_S}
    if name == "aimd":
        return {f"x{share:g}": partial(Aimd, decrease=share) for share in (0.5, 0.75, 0.9)}
    return {"-": POLICIES[name]}


def tuned(name: str, trace: Trace, scene: Scene) -> tuple[str, Choice]:
    """Return the setting of least cost on a trace that nothing is judged on."""
    choices = candidates(name, scene)
    if len(choices) == 1:
        return next(iter(choices.items()))
    best = min(choices, key=lambda label: simulate(choices[label], trace, scene).cost)
    return best, choices[best]


def hindsight(trace: Trace, scene: Scene) -> tuple[str, Outcome]:
    """Return the fixed knobs of least cost on the very trace that they are judged on.

    A coarse grid over rows, ages and caps, then one of half its steps around the best.
    """
    rows = _powers(scene.max_rows)
    found: dict[Knobs, Outcome] = {}
    best = _try([*(Knobs(cap=cap) for cap in rows), *_static(rows, scene)], trace, scene, found)
    if not best.work_conserving:
        best = _try(_around(best, scene), trace, scene, found)
    return _label(best), found[best]


def _try(
    settings: Iterable[Knobs], trace: Trace, scene: Scene, found: dict[Knobs, Outcome]
) -> Knobs:
    for knobs in settings:
        if knobs not in found:
            found[knobs] = simulate(partial(Static, knobs=knobs), trace, scene)
    return min(found, key=lambda knobs: found[knobs].cost)


def _powers(most: int) -> list[int]:
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def _static(rows: Iterable[int], scene: Scene) -> list[Knobs]:
    goal_s = scene.goal_s or _WITHOUT_GOAL_S
    return [
        Knobs(k=k, tau_s=share * goal_s, work_conserving=False) for k in rows for share in _SHARES
    ]


def _around(knobs: Knobs, scene: Scene) -> list[Knobs]:
    step_s = 0.07 * (scene.goal_s or _WITHOUT_GOAL_S)
    rows = {min(scene.max_rows, max(1, round(knobs.k * share))) for share in (0.75, 1, 1.25, 1.5)}
    return [
        Knobs(k=k, tau_s=knobs.tau_s + at * step_s, work_conserving=False)
        for k in sorted(rows)
        for at in (-1, 0, 1)
    ]


def _labelled(settings: Iterable[Knobs]) -> dict[str, Choice]:
    return {_label(knobs): partial(Static, knobs=knobs) for knobs in settings}


def _label(knobs: Knobs) -> str:
    if knobs.work_conserving:
        return f"greedy, at most {knobs.cap}"
    return f"k={knobs.k}, tau={knobs.tau_s * 1e6:.0f} us"
