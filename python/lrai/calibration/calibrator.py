"""Decides which model is measured when, and lets what is best take it over.

One is measured at a time, when nobody has asked for anything for two seconds, in processes that
give way to everything else; the first request ends them. What is found takes the model over at
once, is kept beyond a restart, and is looked at again when the model no longer takes the times that
were measured, or when the server gets other processors.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lrai.actors.supervisor import Supervisor
from lrai.calibration.measure import BusyMachineError, measure, probe
from lrai.calibration.subject import Subject, shapes_by_rows
from lrai.core.model import Allocation
from lrai.log import get_log
from lrai.machine import available_cpus, free_memory_bytes
from lrai.scheduler.allocation import (
    LIGHT_S,
    Measured,
    Point,
    allocations,
    choose,
    in_words,
)
from lrai.scheduler.drift import Drift
from lrai.scheduler.observation import Window
from lrai.scheduler.store import Store

_IDLE_S: Final = 2.0
_COUNT_S: Final = 30.0
_AGAIN_S: Final = 600.0
_NEVER: Final = float("inf")
_LONGEST_WAIT_S: Final = 86400.0
_BUSY_WAIT_S: Final = 30.0
_MOST_DOUBLINGS: Final = 7
_KEPT_AS: Final = "calibration"
_Found = tuple[Allocation | None, dict[Allocation, Measured]]
_log = get_log("calibration")


@dataclass(eq=False)
class _Case:
    subject: Subject
    current: Allocation
    due_s: float
    words: str = "it is measured when the server is idle"
    table: dict[Allocation, Measured] = field(default_factory=dict)
    wait_s: float = _AGAIN_S
    """From one calibration to the next."""
    done_s: float = 0.0
    tries: int = 0
    """Times that the machine was too busy, since the last calibration."""
    seen_s: float = 0.0
    """A lone row's time in service when it was last off; 0 = it has never been."""
    drift: Drift | None = None

    def __str__(self) -> str:
        return f"model '{self.subject.spec.name}' version {self.subject.spec.version}"


class Calibrator:
    """Calibrates all models; one that is done costs nothing."""

    def __init__(
        self,
        supervisor: Supervisor,
        store: Store | None = None,
        count_cpus: Callable[[], int] = available_cpus,
        free_bytes: Callable[[], int] = free_memory_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Measure nothing yet; what is found is kept in `store`."""
        self._free_bytes = free_bytes
        self._supervisor, self._store = supervisor, store
        self._count_cpus, self._clock = count_cpus, clock
        self.cpus = count_cpus()
        self._cases: dict[int, _Case] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_applying = False
        self._next_s = _NEVER
        self._busy_s = self._counted_s = clock()

    def recall(self, name: str, version: str, identity: str) -> Allocation | None:
        """Return what an earlier run has found for the same model on as many processors."""
        allocation, _ = self._kept(name, version, identity)
        return allocation

    def _kept(self, name: str, version: str, identity: str) -> _Found:
        if self._store is None:
            return None, {}
        import sqlite3  # only where something is kept: 1 MB

        try:
            plain = self._store.learnt(name, version, _KEPT_AS)
            if plain.get("for") != [self.cpus, identity]:
                return None, {}
            allocation, table = Allocation(*plain["allocation"]), _table(plain["table"])
        except (sqlite3.Error, LookupError, TypeError, ValueError):
            # What is unreadable, or was written in another form, is measured again.
            return None, {}
        return (allocation, table) if allocation in table else (None, {})

    def add(self, key: int, subject: Subject) -> None:
        """Calibrate a model at the next occasion, unless an earlier run has."""
        self._busy_s = self._clock()
        case = self._cases[key] = _Case(subject, subject.current, self._busy_s)
        spec = subject.spec
        allocation, table = self._kept(spec.name, spec.version, subject.identity)
        if allocation == subject.current:
            case.table = table
            self._settle(case, subject.current)
        self._plan()

    def remove(self, key: int) -> None:
        """Forget a model; what was found is kept."""
        self._cases.pop(key, None)
        self._plan()

    @property
    def is_measuring(self) -> bool:
        """Whether something is measured now, which a request ends at the next `look`."""
        return self._task is not None

    def why(self, name: str, version: str) -> str:
        """Say what a model's replicas and threads are and why; empty where they are not ours."""
        found = (
            case.words
            for case in self._cases.values()
            if (case.subject.spec.name, case.subject.spec.version) == (name, version)
        )
        return next(found, "")

    def look(self, windows: Sequence[Window]) -> None:
        """Take notice of the models that had traffic: none for two seconds is the occasion."""
        now_s = self._clock()
        if now_s - self._counted_s >= _COUNT_S and not self._task:
            self._recount(now_s)
        if windows:
            self._busy_s = now_s
            if self._task and not self._is_applying:
                self._task.cancel()
            self._watch(windows, now_s)
        elif not self._task and self._next_s <= now_s and now_s - self._busy_s >= _IDLE_S:
            key = next(key for key, case in self._cases.items() if case.due_s <= now_s)
            self._task = asyncio.get_running_loop().create_task(self._calibrate(key))

    async def stop(self) -> None:
        """End what is measured now, and begin nothing more."""
        self._cases.clear()
        if task := self._task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _plan(self) -> None:
        self._next_s = min((case.due_s for case in self._cases.values()), default=_NEVER)

    def _recount(self, now_s: float) -> None:
        self._counted_s = now_s
        if (cpus := self._count_cpus()) != self.cpus:
            self.cpus = cpus
            for case in self._cases.values():
                case.table.clear()
                case.drift, case.due_s = None, now_s
            self._plan()

    def _watch(self, windows: Sequence[Window], now_s: float) -> None:
        """Plan to measure a model again that takes other times than it did."""
        for window in windows:
            case = self._cases.get(window.key)
            if case and case.drift and case.drift.note(window, now_s):
                case.seen_s = case.drift.ratio * case.table[case.current].single_s
                case.drift = None
                case.table.clear()
                case.due_s = max(now_s, case.done_s + case.wait_s)
                self._plan()

    async def _calibrate(self, key: int) -> None:
        """Measure one model, and let what is best take it over."""
        case = self._cases[key]
        try:
            chosen = await self._find(key, case)
            self._is_applying = True
            if chosen and key in self._cases:
                await self._apply(key, case, chosen)
        except BusyMachineError:
            case.tries += 1
            case.words = "it is measured when the machine has time and memory for that"
            case.due_s = self._clock() + _BUSY_WAIT_S * 2 ** min(case.tries, _MOST_DOUBLINGS)
        except Exception as error:  # noqa: BLE001, one model's measurement fails alone
            case.words = f"it could not be measured: {str(error) or repr(error)}"
            case.due_s = _NEVER
            _log.warning("calibration_failed", f"{case} keeps {case.current}, {case.words}")
        finally:
            self._task, self._is_applying = None, False
            self._plan()

    async def _find(self, key: int, case: _Case) -> Allocation | None:
        """Return the best allocation; None if the model is not to be measured, or not yet."""
        subject, actors = case.subject, self._supervisor.actors_of(key)
        sizes = shapes_by_rows(subject, next((one.shapes for one in actors if one.shapes), ()))
        if not sizes or not actors:
            case.words = "it is measured after its first requests, which tell the inputs' sizes"
            case.due_s = self._clock() + _BUSY_WAIT_S
            return None
        used_bytes, free_bytes = max(actor.used_bytes for actor in actors), self._free_bytes()
        if used_bytes > free_bytes // 2:
            raise BusyMachineError
        least, *_ = allocations(self.cpus, subject.fixed, 1)
        single = await probe(self._supervisor, subject.spec, least, sizes[1])
        if single.cpu_s <= LIGHT_S:
            point = Point(1, single.cpu_s, single.cpu_s)
            case.table = {least: Measured(single.cpu_s, (point,))}
            return least
        budget_bytes = min(subject.replica_memory_bytes, free_bytes // 2)
        most = 1 + budget_bytes // max(single.used_bytes, 1)
        for one in allocations(self.cpus, subject.fixed, most):
            # What was measured before a request came still counts.
            if one not in case.table:
                case.table[one] = await measure(self._supervisor, subject.spec, one, sizes)
        return choose(case.table, subject.goal_s)

    async def _apply(self, key: int, case: _Case, chosen: Allocation) -> None:
        does = "keeps" if chosen == case.current else "gets"
        if chosen != case.current:
            await self._supervisor.reallocate(key, chosen)
        elif case.done_s:
            case.wait_s = min(2 * case.wait_s, _LONGEST_WAIT_S)
        self._settle(case, chosen)
        _log.info("calibrated", f"{case} {does} {case.words}", **chosen._asdict())
        if self._store:
            spec = case.subject.spec
            plain = {
                "for": [self.cpus, case.subject.identity],
                "allocation": chosen,
                "table": list(case.table.items()),
            }
            self._store.keep(spec.name, spec.version, _KEPT_AS, plain)

    def _settle(self, case: _Case, chosen: Allocation) -> None:
        """Take what was measured as known, and watch whether it stays so."""
        case.current, case.due_s, case.done_s, case.tries = chosen, _NEVER, self._clock(), 0
        case.words = in_words(chosen, case.table)
        together = case.table[chosen]
        is_fixed = not any(-1 in tensor.shape[1:] for tensor in case.subject.inputs)
        if is_fixed and together.single_s > LIGHT_S:
            alone = case.table.get(chosen._replace(replicas=1), together)
            scale = case.seen_s / together.single_s if case.seen_s else 1.0
            case.drift = Drift(alone.points, together.points, scale)


def _table(plain: list[Any]) -> dict[Allocation, Measured]:
    return {
        Allocation(*one): Measured(single_s, tuple(Point(*point) for point in points))
        for one, (single_s, points) in plain
    }
