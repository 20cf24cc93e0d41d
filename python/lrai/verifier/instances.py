"""Runs a benchmark's list of instances: in worker processes, resumable, a line of JSON for each.

Every worker has one BLAS thread and stays for many instances. One that dies or overstays costs the
instance that it had, and is replaced.
"""

import csv
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from lrai.errors import ConfigError, LraiError
from lrai.verifier.certificate import Arithmetic
from lrai.verifier.instance import WALL, Instance, Limits, solve
from lrai.verifier.outcomes import Outcome, read_expected, read_results

# What a worker may take beyond the time-out, for reading, writing and checking.
_GRACE_S: Final = 30.0
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_FULL: Final = 0.95
# glibc gives large arrays back to the system one by one, and the faults of their pages cost a third
# of a search.
_KEPT: Final = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
_ENVIRONMENT: Final = {**dict.fromkeys(_THREADS, "1"), **_KEPT}


@dataclass(frozen=True)
class RunSettings:
    """How a list is run."""

    arithmetic: Arithmetic = "float32"
    workers: int = 1
    timeout_s: float | None = None
    """Instead of the list's own."""
    certificates: Path | None = None
    """A folder for a certificate of every `unsat`."""
    check: bool = False
    """Have each certificate checked at once."""
    limits: Limits = WALL
    """What the time-outs count."""
    expected: Path | None = None
    """A file of `network,property,answer` lines under that head."""
    only: tuple[str, ...] = ()
    """Parts of "model property"; where given, others are left out."""
    budget_s: float = float("inf")
    """After that many seconds no instance is started; with 0 none is."""


def read_list(path: Path) -> list[Instance]:
    """Read `model,property,seconds` lines; paths are relative to the list. Raises ConfigError."""
    found = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row:
                    continue
                if len(row) not in {2, 3}:
                    message = f"line {number} of {path} has {len(row)} columns"
                    raise ConfigError(message, "write model,property,seconds")
                model, subject = (path.parent / name.strip() for name in row[:2])
                limit = float(row[2]) if len(row) == 3 else Instance.timeout_s
                found.append(Instance((model,), subject, limit))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"cannot read the list {path}: {error}") from None
    return found


def run(
    path: Path,
    results: Path,
    settings: RunSettings,
    told: Callable[[Outcome, int, int], None] | None = None,
) -> list[Outcome]:
    """Run what a list holds and the results file does not; returns all outcomes, in list order.

    What is `unknown` there under a lower limit is run again. `told` hears of each new outcome, how
    many are known, and of how many. Raises ConfigError.
    """
    if settings.certificates is not None:
        settings.certificates.mkdir(parents=True, exist_ok=True)
    expected = read_expected(settings.expected)
    instances = {
        key: one if settings.timeout_s is None else replace(one, timeout_s=settings.timeout_s)
        for one in read_list(path)
        if _is_wanted(key := _names(one, path.parent), settings.only)
    }
    done = {key: one for key, one in read_results(results).items() if key in instances}
    open_ones = [
        (key, one) for key, one in instances.items() if _is_open(done.get(key), one.timeout_s)
    ]
    with results.open("a", encoding="utf-8") as file:
        for found in _outcomes(open_ones, settings):
            outcome = replace(found, expected=expected.get(found.key, ""))
            done[outcome.key] = outcome
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
            if told is not None:
                told(outcome, len(done), len(instances))
    return [replace(done[key], expected=expected.get(key, "")) for key in instances if key in done]


def _is_wanted(key: tuple[str, str], only: Sequence[str]) -> bool:
    return not only or any(part in " ".join(key) for part in only)


def _is_open(before: Outcome | None, limit_s: float) -> bool:
    """Never tried, or tried for less."""
    return before is None or (before.answer == "unknown" and before.limit_s < limit_s)


def _names(instance: Instance, folder: Path) -> tuple[str, str]:
    model, subject = (
        os.path.relpath(path, folder) for path in (instance.models[0], instance.subject)
    )
    return model, subject


_Task = tuple[tuple[str, str], Instance]


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: _Task | None = None
    deadline: float = field(default=float("inf"))

    def give(self, task: _Task, settings: RunSettings) -> None:
        limit = task[1].timeout_s
        if settings.limits.clock == "cpu":
            limit *= settings.limits.stretch
        self.task = task
        # Checking takes about as long as solving.
        self.deadline = time.monotonic() + limit * (2 if settings.check else 1) + _GRACE_S
        self.pipe.send(task)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _start(settings: RunSettings) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, settings), daemon=True)
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in _ENVIRONMENT}
    # A spawned process takes the environment as it is now, before it imports numpy.
    os.environ.update(_ENVIRONMENT)
    try:
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    theirs.close()
    return _Worker(process, ours)


def _outcomes(tasks: Sequence[_Task], settings: RunSettings) -> Iterator[Outcome]:
    """Yield outcomes as they come."""
    waiting = list(reversed(tasks)) if settings.budget_s > 0 else []
    end = time.monotonic() + settings.budget_s
    workers = [_start(settings) for _ in range(min(settings.workers, len(waiting)))]
    try:
        while waiting or any(worker.task for worker in workers):
            if time.monotonic() > end:
                waiting.clear()
            for worker in workers:
                if worker.task is None and waiting:
                    worker.give(waiting.pop(), settings)
            busy = {worker.pipe: worker for worker in workers if worker.task}
            next_deadline = min((worker.deadline for worker in busy.values()), default=0.0)
            ready = wait(list(busy), timeout=max(next_deadline - time.monotonic(), 0))
            for pipe, worker in busy.items():
                if pipe in ready or time.monotonic() > worker.deadline:
                    outcome, lives = _receive(worker, pipe in ready)
                    if not lives:
                        worker.end()
                        workers[workers.index(worker)] = _start(settings)
                    worker.task = None
                    yield outcome
    finally:
        for worker in workers:
            worker.end()


def _receive(worker: _Worker, is_ready: bool) -> tuple[Outcome, bool]:
    """An outcome, and whether its worker can go on."""
    assert worker.task is not None  # it is asked only while it has one
    key = worker.task[0]
    if not is_ready:
        return _failed(key, "the worker overstayed its time and was ended"), False
    try:
        outcome: Outcome = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        return _failed(key, f"the worker died (exit code {code})"), False
    return outcome, True


def _failed(key: tuple[str, str], reason: str) -> Outcome:
    return Outcome(model=key[0], subject=key[1], answer="error", reason=reason)


def _work(pipe: Connection, settings: RunSettings) -> None:
    """A worker's life, which ends with the run's also where that was killed."""
    threading.Thread(target=_end_with_run, daemon=True).start()
    while True:
        try:
            key, instance = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = _solve(key, instance, settings)
        except LraiError as error:
            outcome = _failed(key, str(error))
        except MemoryError:
            outcome = _failed(key, "out of memory")
        pipe.send(outcome)


def _end_with_run() -> None:
    if run := parent_process():
        run.join()
        os._exit(1)


def _solve(key: tuple[str, str], instance: Instance, settings: RunSettings) -> Outcome:
    start, cpu = time.monotonic(), time.process_time()
    verdict = solve(instance, settings.arithmetic, limits=settings.limits)
    outcome = Outcome(
        model=key[0],
        subject=key[1],
        answer=verdict.answer,
        limit_s=instance.timeout_s,
        boxes=verdict.boxes,
        bound=verdict.bound if abs(verdict.bound) < float("inf") else None,
        reason=verdict.reason,
    )
    if settings.limits.clock == "cpu" and verdict.answer == "unknown":
        spent = time.process_time() - cpu
        if spent < _FULL * instance.timeout_s:
            # The wall ended it: a later run may give it what is left.
            outcome = replace(outcome, limit_s=round(spent, 1))
    certificate, writes = verdict.certificate, settings.certificates is not None or settings.check
    if certificate is None or not writes:
        return _timed(outcome, start, cpu)
    with TemporaryDirectory() as folder:
        stem = "-".join(Path(name).name.removesuffix(".gz").rpartition(".")[0] for name in key)
        path = (settings.certificates or Path(folder)) / f"{stem}.lrai-proof"
        certificate.write(path)
        outcome = _timed(outcome, start, cpu)
        size = path.stat().st_size
        outcome = replace(outcome, leaves=certificate.leaves, certificate_bytes=size)
        return _checked(outcome, instance, path) if settings.check else outcome


def _timed(outcome: Outcome, start: float, cpu: float) -> Outcome:
    seconds, spent = time.monotonic() - start, time.process_time() - cpu
    return replace(outcome, seconds=round(seconds, 3), cpu_seconds=round(spent, 3))


def _checked(outcome: Outcome, instance: Instance, path: Path) -> Outcome:
    from lrai.verifier.checker import check

    cpu = time.process_time()
    found = check(path, instance.models, instance.subject)
    return replace(
        outcome,
        accepted=found.accepted,
        check_seconds=round(found.seconds, 3),
        check_cpu_seconds=round(time.process_time() - cpu, 3),
        reason=outcome.reason if found.accepted else found.reason,
    )
