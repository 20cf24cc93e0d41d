"""Actors are real processes here; only the data plane is a fake that speaks the wire format."""

import asyncio
import errno
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lrai.actors.messages import ActorSpec
from lrai.actors.supervisor import Supervisor
from lrai.actors.trial_messages import TrialMessage
from lrai.backends.base import BackendSpec
from lrai.calibration.measure import ask, probe
from lrai.core.model import Allocation
from lrai.errors import ModelLoadError

NULL = ActorSpec("copy", "1", "null", BackendSpec(""))
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
PAIR = np.ones((1, 2), np.float32)


async def serve(supervisor, data_plane, spec, replicas=1):
    loaded = await supervisor.load(spec)
    await supervisor.adopt(loaded, key=7, replicas=replicas, most_rows=8)
    await data_plane.ready(replicas)
    return loaded


def title(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0 ")


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_loaded_actor_reports_its_signature_and_answers(supervisor, data_plane):
    loaded = await serve(supervisor, data_plane, NULL)
    assert [str(tensor) for tensor in loaded.signature.inputs] == ["input FP32[-1, 4]"]
    (output,) = await data_plane.run(1, [ROWS])
    assert (output == ROWS).all()


async def test_the_process_is_named_after_its_model_and_is_our_child(supervisor, data_plane):
    loaded = await serve(supervisor, data_plane, NULL)
    pid = loaded.pid
    assert title(pid) == "lrai: copy/1 #0"
    parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
    assert int(parent) == os.getpid()
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 500


async def test_all_replicas_are_started_and_numbered(supervisor, data_plane):
    await serve(supervisor, data_plane, NULL, replicas=3)
    for replica in (1, 2, 3):
        await data_plane.ready(replica)
        assert (await data_plane.run(replica, [ROWS]))[0].shape == (2, 4)


async def test_a_killed_actor_is_replaced_without_evidence_against_its_batch(
    supervisor, data_plane, python_model
):
    loaded = await serve(supervisor, data_plane, python_model("time.sleep(60)"))
    batch = data_plane.submit(1, [PAIR])
    os.kill(loaded.pid, signal.SIGKILL)
    with pytest.raises(ConnectionError):
        await batch
    assert await data_plane.settled_once() == ""
    await data_plane.ready(2)


@pytest.mark.parametrize(
    ("fatal", "fault"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal"),
        ("ctypes.string_at(0)", "signal"),
        ("os._exit(3)", "signal"),
        ("sys.exit(0)", "signal"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ""),
    ],
)
async def test_how_an_actor_ends_decides_what_is_said_of_its_batch(
    supervisor, data_plane, python_model, fatal, fault
):
    await serve(supervisor, data_plane, python_model(fatal))
    with pytest.raises(ConnectionError):
        await data_plane.submit(1, [PAIR])
    assert await data_plane.settled_once() == fault
    await data_plane.ready(2)


async def test_an_actor_that_allocates_without_end_meets_its_limit(
    supervisor, data_plane, python_model, caplog
):
    hungry = "kept = []\nwhile True: kept.append(np.ones(1 << 20))"
    await serve(supervisor, data_plane, python_model(hungry, memory_limit_bytes=64 << 20))
    with pytest.raises(ConnectionError):
        await data_plane.submit(1, [PAIR])
    assert await data_plane.settled_once() == "memory"
    assert "met its memory limit of 64 MiB; a successor starts at once" in caplog.text


async def test_an_actor_without_a_limit_of_the_kernel_is_ended_when_it_is_too_large(
    supervisor, data_plane, python_model, caplog
):
    # Devices need more address space than memory, so that only looking tells.
    hungry = python_model("kept = np.ones(1 << 24)\ntime.sleep(60)", memory_limit_bytes=64 << 20)
    spec = replace(hungry, model=replace(hungry.model, provider="cuda"))
    await serve(supervisor, data_plane, spec)
    batch = asyncio.ensure_future(data_plane.submit(1, [PAIR]))
    async with asyncio.timeout(20):
        while not data_plane.settled:
            supervisor.check(data_plane.windows())
            await asyncio.sleep(0.05)
    with pytest.raises(ConnectionError):
        await batch
    assert data_plane.settled == [(1, "memory")]
    assert "its memory limit is 64 MiB" in caplog.text


async def test_an_actor_that_loops_for_ever_is_ended_as_a_hang(
    supervisor, data_plane, python_model, caplog
):
    spec = python_model("while True: pass", execution_timeout_s=1.2)
    await serve(supervisor, data_plane, spec)
    batch = asyncio.ensure_future(data_plane.submit(1, [PAIR]))
    while not data_plane.settled:
        supervisor.check(data_plane.windows())
        await asyncio.sleep(0.05)
    with pytest.raises(ConnectionError):
        await batch
    assert data_plane.settled == [(1, "hang")]
    assert "the limit is 1.2 s" in caplog.text


async def test_the_hang_limit_is_learnt_from_the_batches_that_were_seen(
    supervisor, data_plane, python_model
):
    await serve(supervisor, data_plane, python_model("time.sleep(60)", execution_timeout_s=30.0))
    batch = asyncio.ensure_future(data_plane.submit(1, [PAIR]))
    started = time.monotonic()
    while not data_plane.settled:
        supervisor.check(data_plane.windows(bounds=(1000, 10_000), counts=(1000, 5, 0)))
        await asyncio.sleep(0.05)
    with pytest.raises(ConnectionError):
        await batch
    assert 1.0 <= time.monotonic() - started < 5.0


async def test_where_shapes_are_free_quick_batches_limit_no_long_one(
    supervisor, data_plane, python_model, caplog
):
    spec = python_model("time.sleep(60)", columns=-1, execution_timeout_s=1.5)
    await serve(supervisor, data_plane, spec)
    batch = asyncio.ensure_future(data_plane.submit(1, [PAIR]))
    while not data_plane.settled:
        supervisor.check(data_plane.windows(bounds=(1000, 10_000), counts=(1000, 5, 0)))
        await asyncio.sleep(0.05)
    with pytest.raises(ConnectionError):
        await batch
    assert "the limit is 1.5 s" in caplog.text


async def test_a_supervisor_that_stood_still_blames_nobody(supervisor, data_plane):
    loaded = await serve(supervisor, data_plane, NULL)
    supervisor.check([])
    loaded.heard_s -= 60
    supervisor._checked_s -= 60
    supervisor._slow_checked_s -= 60
    supervisor.check([])
    assert (await data_plane.run(1, [ROWS]))[0].shape == (2, 4)
    assert data_plane.settled == []


async def test_a_silent_idle_actor_is_ended(supervisor, data_plane):
    loaded = await serve(supervisor, data_plane, NULL)
    os.kill(loaded.pid, signal.SIGSTOP)
    supervisor.check([])
    loaded.heard_s -= 60
    supervisor._slow_checked_s -= 60
    supervisor.check([])
    assert await data_plane.settled_once() == "hang"
    await data_plane.ready(2)


async def test_a_refused_model_is_told_in_a_sentence(supervisor):
    with pytest.raises(ModelLoadError, match="there is no backend 'nothing' hint: "):
        await supervisor.load(ActorSpec("m", "1", "nothing", BackendSpec("")))


async def test_an_exception_in_load_is_told_in_a_sentence(supervisor, python_model):
    with pytest.raises(ModelLoadError, match="KeyError: 'weights'"):
        await supervisor.load(python_model(load="raise KeyError('weights')"))


async def test_an_actor_that_dies_while_loading_costs_only_itself(
    supervisor, data_plane, python_model
):
    await serve(supervisor, data_plane, NULL)
    fatal = python_model(load="os.kill(os.getpid(), signal.SIGILL)")
    with pytest.raises(ModelLoadError, match="was ended by SIGILL while loading"):
        await supervisor.load(fatal)
    assert (await data_plane.run(1, [ROWS]))[0].shape == (2, 4)


async def test_a_model_that_does_not_fit_its_limit_is_refused(supervisor, python_model):
    large = python_model(load="global kept; kept = np.ones(1 << 24)", memory_limit_bytes=32 << 20)
    with pytest.raises(
        ModelLoadError, match="met its memory limit of 32 MiB while .* memory_limit"
    ):
        await supervisor.load(large)


async def test_a_small_limit_is_enough_for_a_small_model(supervisor, data_plane, python_model):
    await serve(supervisor, data_plane, python_model(memory_limit_bytes=4 << 20))
    assert (await data_plane.run(1, [PAIR]))[0].tolist() == [[2.0, 2.0]]


async def test_a_load_that_takes_too_long_is_ended(supervisor, python_model):
    with pytest.raises(ModelLoadError, match="within 0.5 s"):
        await supervisor.load(python_model(load="time.sleep(60)", load_timeout_s=0.5))


async def test_a_killed_template_is_replaced_and_its_actors_go_on(supervisor, data_plane):
    await serve(supervisor, data_plane, NULL)
    template = supervisor._spawner.pids["null"]
    os.kill(template, signal.SIGKILL)
    assert (await data_plane.run(1, [ROWS]))[0].shape == (2, 4)
    loaded = await supervisor.load(NULL)
    assert supervisor._spawner.pids["null"] != template
    await loaded.leave()


async def test_a_template_killed_while_it_is_asked_is_asked_again(supervisor):
    await (await supervisor.load(NULL)).leave()
    template = supervisor._spawner.pids["null"]
    os.kill(template, signal.SIGSTOP)
    loading = asyncio.ensure_future(supervisor.load(NULL))
    await asyncio.sleep(0)
    os.kill(template, signal.SIGKILL)
    loaded = await loading
    assert title(loaded.pid).startswith("lrai: copy/1")
    await loaded.leave()


async def test_an_engine_that_cannot_fork_gets_a_fresh_process(supervisor, data_plane):
    fresh = ActorSpec("copy", "1", "null", BackendSpec("", provider="cuda"))
    await serve(supervisor, data_plane, fresh)
    assert (await data_plane.run(1, [ROWS]))[0].shape == (2, 4)
    assert supervisor._spawner.pids == {}


async def test_an_actor_that_dies_before_it_is_attached_has_a_successor(supervisor, data_plane):
    loaded = await supervisor.load(NULL)
    attach, calls = data_plane.attach, []

    def refuse_first(key, link_fd):
        calls.append(key)
        if len(calls) > 1:
            return attach(key, link_fd)
        os.close(link_fd)
        raise BrokenPipeError

    data_plane.attach = refuse_first
    await supervisor.adopt(loaded, key=7, replicas=1, most_rows=8)
    assert (await data_plane.run(1, [ROWS]))[0].shape == (2, 4)


async def test_unload_leaves_no_process_and_no_descriptor(supervisor, data_plane):
    await (await supervisor.load(NULL)).leave()
    before = len(os.listdir("/proc/self/fd"))
    loaded = await serve(supervisor, data_plane, NULL)
    data_plane.close(7)
    await supervisor.unload(7)
    assert not Path(f"/proc/{loaded.pid}").exists()
    # ZeroMQ closes the ended actor's connection in its own thread.
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert data_plane.settled == []


async def test_unload_ends_an_actor_that_does_not_leave(supervisor, data_plane, python_model):
    loaded = await serve(supervisor, data_plane, python_model("while True: pass"))
    batch = asyncio.ensure_future(data_plane.submit(1, [PAIR]))
    await asyncio.sleep(0.05)
    data_plane.close(7)
    await supervisor.unload(7)
    assert not Path(f"/proc/{loaded.pid}").exists()
    with pytest.raises(ConnectionError):
        await batch


async def test_a_changed_file_keeps_the_successor_out(
    supervisor, data_plane, python_model, tmp_path, caplog
):
    spec = python_model()
    loaded = await serve(supervisor, data_plane, spec)
    good = (tmp_path / "model.py").read_text()
    (tmp_path / "model.py").write_text(good.replace("[-1, 2]", "[-1, 3]"))
    os.kill(loaded.pid, signal.SIGKILL)
    await until(lambda: "has changed to" in caplog.text)
    (tmp_path / "model.py").write_text(good)
    await data_plane.ready(2)
    assert (await data_plane.run(2, [PAIR]))[0].tolist() == [[2.0, 2.0]]


async def test_samples_of_outputs_reach_the_listener(supervisor, data_plane):
    samples = []
    supervisor._on_sample = lambda key, body: samples.append((key, body))
    await serve(supervisor, data_plane, NULL)
    await data_plane.run(1, [ROWS])
    await until(lambda: samples)
    key, body = samples[0]
    assert key == 7
    assert body["outputs"][0] == {
        "name": "input_copy", "rows": 2, "nan": 0, "mean": 3.5, "min": 0.0, "max": 7.0,
    }  # fmt: skip
    assert body["shapes"] == [[2, 4]]
    assert [actor.shapes for actor in supervisor.actors_of(7)] == [((2, 4),)]


async def test_actors_ignore_the_signals_of_their_group(supervisor, data_plane):
    loaded = await serve(supervisor, data_plane, NULL)
    os.kill(loaded.pid, signal.SIGTERM)
    os.kill(loaded.pid, signal.SIGINT)
    assert (await data_plane.run(1, [ROWS]))[0].shape == (2, 4)


async def test_restarts_come_at_once_until_three_have_died_without_an_answer(
    supervisor, data_plane, python_model, caplog
):
    await serve(supervisor, data_plane, python_model("os._exit(1)"))
    for replica in (1, 2, 3):
        await data_plane.ready(replica)
        with pytest.raises(ConnectionError):
            await data_plane.submit(replica, [PAIR])
    await data_plane.ready(4)
    assert caplog.text.count("a successor starts at once") == 2
    assert caplog.text.count("a successor starts in 0.1 s") == 1


async def test_a_model_that_dies_three_times_before_it_is_ready_is_given_up(supervisor, data_plane):
    loaded = await supervisor.load(NULL)

    def refuse(key, link_fd):
        os.close(link_fd)
        raise BrokenPipeError

    data_plane.attach = refuse
    with pytest.raises(ModelLoadError, match="died 3 times before it was ready"):
        await supervisor.adopt(loaded, key=7, replicas=1, most_rows=8)
    await supervisor.unload(7)
    assert supervisor._actors == {}


async def test_a_link_that_stays_open_after_the_end_keeps_no_successor_out(
    supervisor, data_plane, python_model
):
    child = "if os.fork(): os._exit(1)\ntime.sleep(5)\nos._exit(0)"
    await serve(supervisor, data_plane, python_model(child))
    batch = asyncio.ensure_future(data_plane.submit(1, [PAIR]))
    await data_plane.ready(2)
    assert data_plane.settled == [(1, "signal")]
    batch.cancel()


async def test_the_end_of_the_server_ends_all_at_once_and_raises_no_successor(
    data_plane, tmp_path, caplog
):
    supervisor = data_plane.supervisor = Supervisor(data_plane, tmp_path)
    await supervisor.start()
    loaded = await serve(supervisor, data_plane, NULL, replicas=3)
    others = [actor.pid for actor in supervisor._actors.values()]
    assert loaded.pid in others
    await supervisor.stop()
    assert [pid for pid in others if Path(f"/proc/{pid}").exists()] == []
    assert "a successor starts" not in caplog.text
    data_plane.close(7)


async def spare_of_a_busy_model(supervisor, data_plane, batches=1000):
    """Let the supervisor look twice at a model that has run so many batches between the looks."""
    for seen in (0, batches):
        supervisor._slow_checked_s -= 2
        supervisor.check([data_plane.window(7, batches=seen)])
    (place,) = supervisor._replicas.values()
    return await place.spare if place.spare else None


async def test_a_busy_models_spare_takes_over_when_its_actor_dies(supervisor, data_plane):
    loaded = await serve(supervisor, data_plane, NULL)
    spare = await spare_of_a_busy_model(supervisor, data_plane)
    assert title(spare.pid) == "lrai: copy/1 #0 standby"
    os.kill(loaded.pid, signal.SIGKILL)
    await data_plane.ready(2)
    assert title(spare.pid) == "lrai: copy/1 #0"
    assert list(supervisor._actors.values()) == [spare]
    assert (await data_plane.run(2, [ROWS]))[0].shape == (2, 4)


async def test_a_spare_that_has_died_is_no_hindrance(supervisor, data_plane):
    loaded = await serve(supervisor, data_plane, NULL)
    spare = await spare_of_a_busy_model(supervisor, data_plane)
    os.kill(spare.pid, signal.SIGKILL)
    await spare.gone
    os.kill(loaded.pid, signal.SIGKILL)
    await data_plane.ready(2)


async def test_a_successor_for_which_there_is_no_descriptor_is_tried_again(
    supervisor, data_plane, monkeypatch
):
    loaded, fork, refused = await serve(supervisor, data_plane, NULL), supervisor._fork, []

    async def fork_later(spec, number):
        if not refused:
            refused.append(spec)
            raise OSError(errno.EMFILE, "Too many open files")
        return await fork(spec, number)

    monkeypatch.setattr(supervisor, "_fork", fork_later)
    os.kill(loaded.pid, signal.SIGKILL)
    await data_plane.ready(2)
    assert refused


async def test_a_quiet_model_has_no_spare_and_one_that_falls_quiet_loses_it(supervisor, data_plane):
    await serve(supervisor, data_plane, NULL)
    assert await spare_of_a_busy_model(supervisor, data_plane, batches=10) is None
    spare = await spare_of_a_busy_model(supervisor, data_plane)
    supervisor._busy_s[7] -= 90
    supervisor._slow_checked_s -= 2
    supervisor.check([])
    await spare.gone


async def test_unloading_ends_the_spare(supervisor, data_plane):
    await serve(supervisor, data_plane, NULL)
    spare = await spare_of_a_busy_model(supervisor, data_plane)
    data_plane.close(7)
    await supervisor.unload(7)
    await spare.gone


def as_trial(spec):
    return replace(spec, is_trial=True)


async def test_a_trial_measures_in_time_that_nobody_else_wants(supervisor, python_model):
    trial = await supervisor.load(
        as_trial(python_model("time.sleep(0.02)\nreturn {'y': inputs['x']}"))
    )
    assert title(trial.pid) == "lrai: double/1 #0 trial"
    assert os.sched_getscheduler(trial.pid) == os.SCHED_IDLE
    result = await ask(trial, TrialMessage(((3, 2),), seconds=0.05))
    assert result.batch_s >= 0.02
    assert result.cpu_s < result.batch_s
    assert result.error == ""
    await trial.leave()


async def test_a_trial_that_dies_or_refuses_says_why(supervisor, python_model):
    trial = await supervisor.load(as_trial(python_model("os.kill(os.getpid(), signal.SIGSEGV)")))
    with pytest.raises(ModelLoadError, match="was ended by SIGSEGV"):
        await ask(trial, TrialMessage(((1, 2),), seconds=0.05))
    trial = await supervisor.load(as_trial(python_model("raise ValueError('not so')")))
    with pytest.raises(ModelLoadError, match="it refuses made-up inputs: .*not so"):
        await ask(trial, TrialMessage(((1, 2),), seconds=0.05))
    await trial.leave()
    assert supervisor._actors == {}


async def test_what_is_measured_leaves_no_process(supervisor):
    result = await probe(supervisor, NULL, Allocation(1, 1), ((1, 4),))
    assert result.batch_s > 0
    assert supervisor._actors == {}


async def test_actors_with_another_allocation_take_over(supervisor, data_plane, caplog):
    loaded = await serve(supervisor, data_plane, NULL)
    await supervisor.reallocate(7, Allocation(2, 3))
    await data_plane.ready(3)
    assert data_plane.settled == [(1, "retired")]
    assert loaded.gone.done()
    actors = supervisor.actors_of(7)
    assert [actor.spec.model.threads for actor in actors] == [3, 3]
    for replica in (2, 3):
        assert (await data_plane.run(replica, [ROWS]))[0].shape == (2, 4)
    assert "died" not in caplog.text
    os.kill(actors[0].pid, signal.SIGKILL)
    await data_plane.ready(4)
    assert [actor.spec.model.threads for actor in supervisor.actors_of(7)] == [3, 3]


async def test_former_actors_stay_where_the_new_ones_cannot_start(
    supervisor, data_plane, python_model
):
    spec = python_model()
    loaded = await serve(supervisor, data_plane, spec)
    python_model(load="raise ValueError('not now')")
    with pytest.raises(ModelLoadError, match="not now"):
        await supervisor.reallocate(7, Allocation(2, 1))
    assert supervisor.actors_of(7) == [loaded]
    assert (await data_plane.run(1, [PAIR]))[0].tolist() == [[2.0, 2.0]]
    assert data_plane.settled == []


async def test_former_actors_stay_where_the_new_ones_die(supervisor, data_plane):
    loaded = await serve(supervisor, data_plane, NULL)
    attach = data_plane.attach

    def refuse(key, link_fd):
        os.close(link_fd)
        raise BrokenPipeError

    data_plane.attach = refuse
    with pytest.raises(ModelLoadError, match="died 3 times before it was ready"):
        await supervisor.reallocate(7, Allocation(2, 1))
    data_plane.attach = attach
    assert supervisor.actors_of(7) == [loaded]
    assert (await data_plane.run(1, [ROWS]))[0].shape == (2, 4)


async def test_a_model_that_is_unloaded_while_others_take_over_leaves_no_process(
    supervisor, data_plane
):
    await serve(supervisor, data_plane, NULL)
    taking = asyncio.ensure_future(supervisor.reallocate(7, Allocation(2, 1)))
    await asyncio.sleep(0)
    data_plane.close(7)
    await supervisor.unload(7)
    with pytest.raises(ModelLoadError, match="unloaded meanwhile"):
        await taking
    assert supervisor._actors == {}
