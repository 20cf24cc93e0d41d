"""Decides a benchmark's instances: a line of JSON for each, which a later run takes up again.

Every instance runs in a process of its own with one thread. The official limit counts the process's
CPU seconds, reading included, so that other work on the machine takes nothing from the verifier;
`--stretch` says how much longer than its limit an instance may take on the clock meanwhile.

    python -m benchmarks.verify --data DIR/vnncomp --set mnistfc --workers 2
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks.report import Goal, Section, Table, environment, write

RESULTS = Path(__file__).parent / "results"
GOALS = {"acasxu": 186, "mnistfc": 65}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """An instance, and how it is to be run."""

    folder: Path
    model: str
    subject: str
    limit_s: float
    official_s: float
    stretch: float
    check: bool


@dataclass(frozen=True)
class Answer:
    """A line of the results."""

    model: str
    subject: str
    answer: str
    cpu_s: float
    wall_s: float
    limit_s: float
    official_s: float
    boxes: int
    leaves: int
    certificate_kib: int
    accepted: bool | None
    check_cpu_s: float
    reason: str


def decide(task: Task) -> Answer:
    """Run one instance in this process; an answer beyond the limit is none."""
    from lrai.verifier.instance import Instance, solve

    model, subject = task.folder / task.model, task.folder / task.subject
    cpu, wall = time.process_time(), time.monotonic()
    verdict = solve(Instance((model,), subject, task.limit_s * task.stretch))
    cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - wall
    answer, reason = verdict.answer, verdict.reason
    if cpu_s > task.official_s and answer != "unknown":
        answer, reason = "unknown", f"{answer} came after {cpu_s:.0f} s of CPU"
    leaves, size, accepted, check_s = 0, 0, None, 0.0
    if verdict.certificate is not None:
        leaves = verdict.certificate.leaves
        size, accepted, check_s = _checked(task, verdict.certificate)
    return Answer(
        task.model, task.subject, answer, round(cpu_s, 2), round(wall_s, 2), task.limit_s,
        task.official_s, verdict.boxes, leaves, size, accepted, round(check_s, 2), reason,
    )  # fmt: skip


def _checked(task: Task, certificate: object) -> tuple[int, bool | None, float]:
    """The certificate's size in KiB, and what the checker says if it is asked."""
    from tempfile import TemporaryDirectory

    from lrai.verifier.certificate import Certificate
    from lrai.verifier.checker.check import check

    assert isinstance(certificate, Certificate)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "certificate"
        certificate.write(path)
        size = path.stat().st_size // 1024
        if not task.check:
            return size, None, 0.0
        cpu = time.process_time()
        found = check(path, [task.folder / task.model], task.folder / task.subject)
        return size, found.accepted, time.process_time() - cpu


def known(path: Path) -> dict[tuple[str, str], Answer]:
    """The answers that a results file holds; the best line of an instance counts."""
    found: dict[tuple[str, str], Answer] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        answer = Answer(**json.loads(line))
        key = answer.model, answer.subject
        if key not in found or found[key].answer == "unknown":
            found[key] = answer
    return found


def tasks(arguments: argparse.Namespace, done: dict[tuple[str, str], Answer]) -> Iterator[Task]:
    """What is still to be run: never tried, or tried with a lower limit."""
    folder = arguments.data / arguments.set
    for model, subject, seconds in csv.reader((folder / f"{arguments.set}_instances.csv").open()):
        if arguments.only and not any(name in f"{model} {subject}" for name in arguments.only):
            continue
        official = float(seconds)
        limit = min(official, arguments.limit or official)
        before = done.get((model, subject))
        if before is None or (before.answer == "unknown" and before.limit_s < limit):
            yield Task(folder, model, subject, limit, official, arguments.stretch, arguments.check)


def run(arguments: argparse.Namespace, path: Path) -> None:
    """Run what is open until all is done or no time is left for another instance."""
    for name in THREADS:
        os.environ[name] = "1"
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.minutes * 60
    waiting = list(tasks(arguments, known(path)))
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, max_tasks_per_child=1) as pool:
        running = {}
        while waiting or running:
            while waiting and len(running) < arguments.workers and time.monotonic() < end:
                task = waiting.pop(0)
                running[pool.submit(decide, task)] = task
            if not running:
                break
            future = next(as_completed(running))
            running.pop(future)
            answer = future.result()
            with path.open("a") as file:
                file.write(json.dumps(asdict(answer)) + "\n")
            print(
                f"{answer.model} {answer.subject} {answer.answer} {answer.cpu_s} s CPU, "
                f"{answer.wall_s} s, accepted {answer.accepted} {answer.reason}",
                flush=True,
            )


def section(
    name: str, total: int, answers: Sequence[Answer], expected: dict[tuple[str, str], str]
) -> Section:
    """The results as tables."""
    decided = [one for one in answers if one.answer != "unknown"]
    wrong = [
        one for one in decided
        if expected.get((one.model, one.subject), one.answer) != one.answer
    ]  # fmt: skip
    proved = [one for one in decided if one.answer == "unsat"]
    checked = [one for one in proved if one.accepted is not None]
    counts = Counter((one.model, one.answer) for one in answers)
    models = sorted({one.model for one in answers}) if name == "mnistfc" else []
    rows = [
        [model, *(str(counts[model, answer]) for answer in ("unsat", "sat", "unknown"))]
        for model in models
    ]
    sums = Counter(one.answer for one in answers)
    rows.append(["all", *(str(sums[answer]) for answer in ("unsat", "sat", "unknown"))])
    lines = [
        [
            one.model, one.subject, one.answer, f"{one.cpu_s:.1f}", f"{one.wall_s:.1f}",
            f"{one.limit_s:.0f} of {one.official_s:.0f}", str(one.boxes), str(one.leaves),
            {True: "yes", False: "no", None: "-"}[one.accepted], f"{one.check_cpu_s:.1f}",
        ]
        for one in answers
    ]  # fmt: skip
    return Section(
        f"verify-{name}",
        f"VNN-COMP instances: {name}",
        "Each instance in a process of its own with one thread, arithmetic float32. Limits count "
        "CPU seconds, reading included; other work shared the cores. A witness counts only if the "
        "reference evaluator and onnxruntime confirm it.",
        [
            Table("Answers", ["model", "unsat", "sat", "unknown"], rows),
            Table(
                "Instances",
                ["model", "property", "answer", "CPU s", "clock s", "limit s", "boxes", "leaves",
                 "checked", "check CPU s"],
                lines,
            ),
        ],
        [
            Goal(f"at least {GOALS[name]} decided",
                 f"{len(decided)} of {total}; {len(answers)} tried",
                 len(decided) >= GOALS[name]),
            *([Goal("none wrong", f"{len(wrong)} of {len(expected)}", not wrong)] * bool(expected)),
            Goal("the checker accepts every certificate that it was given",
                 f"{sum(bool(one.accepted) for one in checked)} of {len(checked)}; "
                 f"{len(proved)} proofs",
                 all(one.accepted for one in checked)),
        ],
        notes=[
            "An unknown row may have had less than the official limit; a higher --limit resumes it."
        ],
        data=[asdict(one) for one in answers],
    )  # fmt: skip


def main() -> None:
    """Run, then write `results/verify-SET.md` and `.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--set", choices=sorted(GOALS), required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0.0, help="seconds, where below the list's")
    parser.add_argument("--stretch", type=float, default=1.0, help="clock seconds per CPU second")
    parser.add_argument("--minutes", type=float, default=1e6, help="start nothing after that")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    parser.add_argument("--check", action="store_true", help="check each certificate at once")
    parser.add_argument("--note", nargs="*", default=[], help="sentences for the results")
    parser.add_argument("--lines", type=Path, help="the file of lines that a later run takes up")
    arguments = parser.parse_args()
    path = arguments.lines or Path.home() / f".cache/lrai-benchmarks/verify-{arguments.set}.jsonl"
    settings = {"stretch": arguments.stretch, "workers": arguments.workers}
    where = replace(
        environment("none", {}, settings),
        command=f"python -m benchmarks.verify --data DIR --set {arguments.set} "
        f"--workers {arguments.workers} --stretch {arguments.stretch:g}",
    )
    run(arguments, path)
    reference = arguments.data / arguments.set / "expected.csv"
    expected = {}
    if reference.exists():
        rows = csv.DictReader(reference.open())
        expected = {(row["network"], row["property"]): row["answer"] for row in rows}
    answers = sorted(known(path).values(), key=lambda one: (one.model, one.subject))
    listed = (arguments.data / arguments.set / f"{arguments.set}_instances.csv").read_text()
    total = len(listed.split())
    found = section(arguments.set, total, answers, expected)
    write(RESULTS, replace(found, notes=[*found.notes, *arguments.note]), where)


if __name__ == "__main__":
    main()
