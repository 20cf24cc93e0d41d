"""Decides a set of VNN-COMP instances with `lrai.verifier.instances` and writes a page about it.

Limits count processor seconds with `--clock cpu`, so that other work on the machine takes nothing
from the verifier; `--stretch` says how much longer an instance may take on the wall meanwhile. A
later run takes up what an earlier one left open.

    python -m benchmarks.verify --data DIR/vnncomp --set mnistfc --workers 2 --check
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.report import Goal, Section, Table, environment, write
from lrai.verifier.instance import Limits
from lrai.verifier.instances import RunSettings, read_list, run
from lrai.verifier.outcomes import DECIDED, Outcome

RESULTS = Path(__file__).parent / "results"
GOALS = {"acasxu": 186, "mnistfc": 65}
CLOCKS = {"cpu": "processor seconds, reading included; other work shared the cores", "wall": "time"}
WHOLE_RUN_S = 60.0
"""The goal of the ACAS Xu set, on two cores."""


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """Counts, every instance, and why the open ones are open."""
    counts = Counter((one.model, one.answer) for one in outcomes)
    counts.update(("all", one.answer) for one in outcomes)
    models = sorted({one.model for one in outcomes})
    # Many networks with a few instances each are no table that tells anything.
    named = models if len(models) <= 10 else []
    kinds = ("unsat", "sat", "unknown", "error")
    return [
        Table(
            "Answers",
            ["model", *kinds],
            [[name, *(str(counts[name, kind]) for kind in kinds)] for name in (*named, "all")],
        ),
        Table(
            "Instances",
            ["model", "property", "answer", "CPU s", "clock s", "limit s", "boxes", "leaves",
             "checked", "check CPU s"],
            [_line(one) for one in outcomes],
        ),
        Table(
            "Open",
            ["model", "property", "why"],
            [[x.model, x.subject, x.reason] for x in outcomes if x.answer not in DECIDED],
        ),
    ]  # fmt: skip


def _line(one: Outcome) -> list[str]:
    return [
        one.model, one.subject, one.answer, f"{one.cpu_seconds:.1f}", f"{one.seconds:.1f}",
        f"{one.limit_s:g}", str(one.boxes), str(one.leaves),
        {True: "yes", False: "no", None: "-"}[one.accepted], f"{one.check_cpu_seconds:.1f}",
    ]  # fmt: skip


def goals(name: str, total: int, outcomes: Sequence[Outcome], whole_s: float | None) -> list[Goal]:
    """What the set is measured by; `whole_s` where all of it ran at once."""
    decided = [one for one in outcomes if one.answer in DECIDED]
    proved = [one for one in decided if one.answer == "unsat"]
    checked = [one for one in proved if one.accepted is not None]
    known = [one for one in decided if one.expected]
    wrong = sum(one.is_wrong for one in outcomes)
    measured = f"{len(decided)} of {total}; {len(outcomes)} tried"
    found = [Goal(f"at least {GOALS[name]} decided", measured, len(decided) >= GOALS[name])]
    if known:
        found.append(Goal("none wrong", f"{wrong} of {len(known)} with a known answer", not wrong))
    accepted = sum(bool(one.accepted) for one in checked)
    found.append(
        Goal(
            "the checker accepts the certificate of every proof",
            f"{accepted} of {len(proved)}",
            accepted == len(proved),
        )
    )
    if checked:
        solving = sum(one.cpu_seconds for one in checked)
        checking = sum(one.check_cpu_seconds for one in checked)
        found.append(
            Goal(
                "checking takes no longer than solving, in processor seconds",
                f"{checking:.1f} s for {solving:.1f} s",
                checking <= solving,
            )
        )
    if name == "acasxu" and whole_s is not None:
        text = f"the whole list in at most {WHOLE_RUN_S:.0f} s"
        found.append(Goal(text, f"{whole_s:.1f} s, with checking", whole_s <= WHOLE_RUN_S))
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--set", choices=sorted(GOALS), required=True)
    parser.add_argument("--expected", type=Path, help="known answers; default: the set's own")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu", help="what limits count")
    parser.add_argument("--limit", type=float, help="seconds, instead of the list's")
    parser.add_argument("--stretch", type=float, default=1.5, help="clock seconds per CPU second")
    parser.add_argument("--minutes", type=float, default=1e6, help="start nothing after that")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    parser.add_argument("--check", action="store_true", help="check each certificate at once")
    parser.add_argument("--note", nargs="*", default=[], help="sentences for the results")
    parser.add_argument("--lines", type=Path, help="the file of lines that a later run takes up")
    return parser.parse_args()


def main() -> None:
    """Run, then write `results/verify-SET.md` and `.json`."""
    asked = arguments()
    name, folder = asked.set, asked.data / asked.set
    lines = asked.lines or Path.home() / f".cache/lrai-benchmarks/verify-{name}.jsonl"
    lines.parent.mkdir(parents=True, exist_ok=True)
    instances = folder / f"{name}_instances.csv"
    answers = asked.expected or folder / "expected.csv"
    where = environment("none", {}, {"clock": asked.clock, "workers": asked.workers})
    command = f"python -m benchmarks.verify --data DIR --set {name} --workers {asked.workers}"
    settings = RunSettings(
        workers=asked.workers,
        timeout_s=asked.limit,
        check=asked.check,
        limits=Limits(asked.clock, asked.stretch),
        expected=answers if answers.exists() else None,
        only=tuple(asked.only),
        budget_s=asked.minutes * 60,
    )
    total, start, fresh = len(read_list(instances)), time.monotonic(), []

    def told(one: Outcome, done: int, count: int) -> None:
        fresh.append(one)
        seconds = f"{one.cpu_seconds:.1f} s CPU, {one.seconds:.1f} s"
        said = f"{one.model} {one.subject} {one.answer} {seconds}, accepted {one.accepted}"
        print(f"{done}/{count} {said} {one.reason}", flush=True)

    run(instances, lines, settings, told)
    whole_s = time.monotonic() - start if len(fresh) == total else None
    # The page is about all lines, whatever this run was asked for.
    outcomes = run(instances, lines, replace(settings, only=(), budget_s=0))
    section = Section(
        f"verify-{name}",
        f"VNN-COMP instances: {name}",
        f"Worker processes with one thread each, arithmetic float32. Limits count "
        f"{CLOCKS[asked.clock]}. A witness counts only if the reference evaluator and onnxruntime "
        "confirm it.",
        tables(outcomes),
        goals(name, total, outcomes, whole_s),
        notes=[
            "An open row with less than the list's limit is taken up again by a run with more.",
            *asked.note,
        ],
        data=[asdict(one) for one in outcomes],
    )
    write(RESULTS, section, replace(where, command=f"{command} --clock {asked.clock}"))


if __name__ == "__main__":
    main()
