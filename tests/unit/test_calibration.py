"""The calibrator with trials that only pretend to run: what is measured when, and what follows."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lrai.actors.actor import End
from lrai.actors.messages import ActorSpec
from lrai.actors.trial_messages import TrialMessage, TrialResult
from lrai.backends.base import BackendSpec
from lrai.calibration.calibrator import Calibrator
from lrai.calibration.subject import Subject
from lrai.core.model import Allocation, TensorInfo
from lrai.errors import ModelLoadError
from lrai.scheduler.store import Store

from .scheduler.fakes import FakeWindow

SPEC = ActorSpec("net", "1", "onnxruntime", BackendSpec("net.onnx"))
SUBJECT = Subject(
    spec=SPEC,
    inputs=(TensorInfo("x", "FP32", (-1, 4)),),
    max_rows=8,
    current=Allocation(1, 2),
    fixed=Allocation(0, 0),
    goal_s=None,
    replica_memory_bytes=256 << 20,
    identity="files of today",
)
MIB = 1 << 20


@dataclass
class FakeActor:
    """A trial, or an actor in service."""

    machine: "Machine"
    threads: int = 1
    shapes: tuple[tuple[int, ...], ...] = ()
    used_bytes: int = 10 * MIB
    measured: Any = None
    answering: asyncio.Future[None] | None = None
    gone: asyncio.Future[End] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def link(self) -> "FakeActor":
        """It takes messages itself."""
        return self

    def send(self, text: bytes) -> None:
        self.answering = asyncio.ensure_future(self.answer(TrialMessage.decode(text)))

    async def answer(self, asked: TrialMessage) -> None:
        await self.machine.gate.wait()
        rows = asked.shapes[0][0]
        self.machine.asked.append((self.threads, asked.shapes))
        batch_s = self.machine.single_s * rows / (1 + (self.threads - 1) * self.machine.gain)
        result = TrialResult(
            batch_s, batch_s * self.threads, 10 * MIB, 9, 0 if self.machine.is_busy else 9
        )
        self.measured.set_result(asdict(result))

    def dismiss(self) -> None:
        if self.answering:
            self.answering.cancel()
        self.machine.trials.remove(self)
        self.gone.set_result(End("", "was ended"))


class Machine:
    """A supervisor whose trials take invented times, with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s, self.cpus = 100.0, 2
        self.single_s, self.gain, self.is_busy = 0.02, 0.0, False
        self.free_bytes = 1 << 30
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[Any] = []
        self.trials: list[FakeActor] = []
        self.served = [FakeActor(self)]
        self.applied: list[tuple[int, Allocation]] = []
        self.fault: Exception | None = None

    async def load(self, spec: ActorSpec, _number: int = 0) -> FakeActor:
        assert spec.is_trial
        if self.fault:
            raise self.fault
        self.trials.append(FakeActor(self, spec.model.threads))
        return self.trials[-1]

    async def reallocate(self, key: int, allocation: Allocation) -> None:
        self.applied.append((key, allocation))

    def actors_of(self, _key: int) -> list[FakeActor]:
        return self.served

    def calibrator(self, store: Store | None = None) -> Calibrator:
        return Calibrator(
            self,  # type: ignore[arg-type]
            store,
            lambda: self.cpus,
            lambda: self.free_bytes,
            lambda: self.now_s,
        )


async def until(is_true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not is_true():
            await asyncio.sleep(0)


async def pass_idle(machine: Machine, calibrator: Calibrator, seconds: float = 3.0) -> None:
    """Let time pass without a request, and what is begun then end."""
    machine.now_s += seconds
    calibrator.look([])
    await until(lambda: not calibrator.is_measuring)


@pytest.fixture
async def machine() -> Machine:
    return Machine()


async def test_nothing_is_measured_before_the_server_was_idle_for_two_seconds(
    machine: Machine,
) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    machine.now_s += 1.9
    calibrator.look([])
    assert not calibrator.is_measuring
    calibrator.look([FakeWindow()])
    machine.now_s += 1.9
    calibrator.look([])
    assert not calibrator.is_measuring
    await pass_idle(machine, calibrator)
    assert machine.asked


async def test_what_is_best_takes_over_and_is_said(machine: Machine) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    await pass_idle(machine, calibrator)
    # Threads gain nothing here, so two replicas do.
    assert machine.applied == [(7, Allocation(2, 1))]
    words = calibrator.why("net", "1")
    assert words.startswith("2 replicas x 1 thread: measured 100 rows/s and 20 ms alone against")
    assert "50.0 rows/s and 20 ms alone for 1 x 2" in words
    assert machine.trials == []
    machine.asked.clear()
    await pass_idle(machine, calibrator, 1000.0)
    assert machine.asked == []


async def test_inputs_have_the_shapes_of_the_model_for_every_size(machine: Machine) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    await pass_idle(machine, calibrator)
    assert {shapes for _, shapes in machine.asked} == {((rows, 4),) for rows in (1, 4, 8)}


async def test_free_dimensions_are_those_of_a_request_that_was_seen(machine: Machine) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, replace(SUBJECT, inputs=(TensorInfo("x", "FP32", (-1, 3, -1)),)))
    await pass_idle(machine, calibrator)
    assert machine.asked == []
    assert "after its first requests" in calibrator.why("net", "1")
    machine.served[0].shapes = ((2, 3, 77),)
    await pass_idle(machine, calibrator, 40.0)
    assert {shapes for _, shapes in machine.asked} == {((rows, 3, 77),) for rows in (1, 4, 8)}


async def test_a_model_whose_first_dimension_is_fixed_is_measured_as_it_is(
    machine: Machine,
) -> None:
    calibrator = machine.calibrator()
    inputs = (TensorInfo("x", "FP32", (2, 3)),)
    calibrator.add(7, replace(SUBJECT, inputs=inputs, max_rows=0))
    await pass_idle(machine, calibrator)
    assert {shapes for _, shapes in machine.asked} == {((2, 3),)}


async def test_a_light_model_gets_one_thread_even_on_a_busy_machine(machine: Machine) -> None:
    machine.single_s, machine.is_busy = 0.0001, True
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    await pass_idle(machine, calibrator)
    assert machine.applied == [(7, Allocation(1, 1))]
    assert len(machine.asked) == 1
    assert "0.1 ms, more would only cost processors and memory" in calibrator.why("net", "1")


async def test_a_busy_machine_is_measured_later(machine: Machine) -> None:
    machine.is_busy = True
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    await pass_idle(machine, calibrator)
    assert machine.applied == []
    assert "when the machine has time" in calibrator.why("net", "1")
    machine.is_busy = False
    await pass_idle(machine, calibrator)
    assert machine.applied == []
    await pass_idle(machine, calibrator, 60.0)
    assert machine.applied == [(7, Allocation(2, 1))]


async def test_requests_end_the_measurement_and_what_was_measured_counts(machine: Machine) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    machine.now_s += 3
    calibrator.look([])
    await until(lambda: (2, ((1, 4),)) in machine.asked)
    machine.gate.clear()
    calibrator.look([FakeWindow()])
    await until(lambda: not calibrator.is_measuring)
    assert machine.trials == []
    assert machine.applied == []
    of_one_thread = machine.asked.count((1, ((8, 4),)))
    machine.gate.set()
    machine.asked.clear()
    await pass_idle(machine, calibrator)
    assert machine.applied == [(7, Allocation(2, 1))]
    # Eight rows on one thread are asked for again only of the two replicas.
    assert of_one_thread == 1
    assert machine.asked.count((1, ((8, 4),))) == 2


async def test_a_model_that_cannot_be_measured_is_left_as_it_is_with_one_line(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.fault = ModelLoadError("its process was ended by SIGSEGV while loading it")
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    calibrator.add(8, replace(SUBJECT, spec=replace(SPEC, name="other")))
    await pass_idle(machine, calibrator)
    machine.fault = None
    await pass_idle(machine, calibrator)
    assert machine.applied == [(8, Allocation(2, 1))]
    (record,) = [one for one in caplog.records if "net" in one.message]
    assert "was ended by SIGSEGV" in record.message
    assert "SIGSEGV" in calibrator.why("net", "1")


async def test_replicas_and_threads_that_were_set_stay(machine: Machine) -> None:
    machine.gain = 0.9
    calibrator = machine.calibrator()
    fixed = Allocation(0, 1)
    calibrator.add(7, replace(SUBJECT, fixed=fixed, current=Allocation(1, 1)))
    await pass_idle(machine, calibrator)
    assert {threads for threads, _ in machine.asked} == {1}
    assert machine.applied == [(7, Allocation(2, 1))]


async def test_replicas_stay_within_their_memory(machine: Machine) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, replace(SUBJECT, replica_memory_bytes=10 * MIB - 1))
    await pass_idle(machine, calibrator)
    assert machine.applied == [(7, Allocation(1, 1))]


async def test_a_model_is_not_doubled_where_memory_is_short(machine: Machine) -> None:
    machine.free_bytes = 20 * MIB - 1
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    await pass_idle(machine, calibrator)
    assert machine.asked == []
    machine.free_bytes = 60 * MIB
    await pass_idle(machine, calibrator, 70.0)
    assert machine.applied == [(7, Allocation(2, 1))]


async def test_a_restart_takes_what_was_found_for_the_same_files_and_processors(
    machine: Machine, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    calibrator = machine.calibrator(store)
    assert calibrator.recall("net", "1", SUBJECT.identity) is None
    calibrator.add(7, SUBJECT)
    await pass_idle(machine, calibrator)
    store.close()
    store = Store(tmp_path)
    again = machine.calibrator(store)
    assert again.recall("net", "1", SUBJECT.identity) == Allocation(2, 1)
    again.add(7, replace(SUBJECT, current=Allocation(2, 1)))
    assert again.why("net", "1") == calibrator.why("net", "1")
    machine.asked.clear()
    await pass_idle(machine, again)
    assert machine.asked == []
    assert again.recall("net", "1", "other files") is None
    machine.cpus = 4
    assert machine.calibrator(store).recall("net", "1", SUBJECT.identity) is None
    store.close()


async def test_what_was_kept_in_another_form_is_measured_again(
    machine: Machine, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    mark = {"for": [2, SUBJECT.identity]}
    for plain in (mark, {**mark, "allocation": [1], "table": []}, {**mark, "allocation": 3}):
        store.keep("net", "1", "calibration", plain)
        calibrator = machine.calibrator(store)
        assert calibrator.recall("net", "1", SUBJECT.identity) is None
        calibrator.add(7, SUBJECT)
        assert "when the server is idle" in calibrator.why("net", "1")
    store.close()


async def test_other_processors_are_noticed_and_all_is_measured_again(machine: Machine) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    await pass_idle(machine, calibrator)
    machine.cpus = 4
    await pass_idle(machine, calibrator, 31.0)
    assert machine.applied[-1] == (7, Allocation(4, 1))


def slow(times: float) -> list[FakeWindow]:
    """A window in which batches of four took so many times 80 ms."""
    return [FakeWindow(key=7, service=[(0, 4, 5, times * 80_000 * 5, 0.0)])]


async def serve(machine: Machine, calibrator: Calibrator, times: float) -> None:
    for _ in range(40):
        machine.now_s += 1
        calibrator.look(slow(times))


async def test_a_model_that_has_become_slower_is_measured_again_but_not_all_the_time(
    machine: Machine,
) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    await pass_idle(machine, calibrator)
    machine.asked.clear()
    await serve(machine, calibrator, 2.0)
    await pass_idle(machine, calibrator)
    assert machine.asked == [], "ten minutes have not passed"
    await pass_idle(machine, calibrator, 600.0)
    assert machine.asked
    machine.asked.clear()
    # It is as slow as it was: its neighbours are, and nothing new has happened.
    machine.now_s += 5000
    await serve(machine, calibrator, 2.0)
    await pass_idle(machine, calibrator, 5000.0)
    assert machine.asked == []
    await serve(machine, calibrator, 4.0)
    await pass_idle(machine, calibrator, 5000.0)
    assert machine.asked


async def test_a_model_that_has_gone_is_forgotten(machine: Machine) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    calibrator.remove(7)
    await pass_idle(machine, calibrator)
    assert machine.asked == []
    assert calibrator.why("net", "1") == ""


async def test_the_end_of_the_server_ends_the_measurement(machine: Machine) -> None:
    calibrator = machine.calibrator()
    calibrator.add(7, SUBJECT)
    machine.now_s += 3
    machine.gate.clear()
    calibrator.look([])
    await until(lambda: machine.trials)
    await calibrator.stop()
    assert machine.trials == []
    calibrator.look([])
    assert not calibrator.is_measuring
