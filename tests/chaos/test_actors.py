"""Actors that die, hang and hoard: each costs itself only, and leaves a sentence in the log."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lrai.testing import ServerProcess, start_server

ROW = [0.5] * 30


def sentences(server: ServerProcess) -> str:
    return "\n".join(str(row["message"]) for row in server.events())


def test_killed_actors_cost_no_request_and_no_other_model_notices(
    server: ServerProcess, traffic: Any, wait_until: Any
) -> None:
    with traffic("mlp", ROW) as stream, traffic("fickle", [1.0, 2.0]) as other:
        for _ in range(5):
            (before,) = server.actors("mlp")
            done = stream.answered
            os.kill(before, signal.SIGKILL)
            wait_until(lambda before=before: before not in server.actors("mlp"))
            wait_until(lambda done=done: stream.answered > done + 20)
        survivor = server.actors("fickle")
    assert stream.failures == []
    assert other.failures == []
    assert server.actors("fickle") == survivor
    assert sentences(server).count("SIGKILL") == 5


def test_a_killed_template_is_replaced_and_nothing_fails(
    server: ServerProcess, traffic: Any, wait_until: Any
) -> None:
    with traffic("mlp", ROW) as stream:
        os.kill(server.template(), signal.SIGKILL)
        (actor,) = server.actors("mlp")
        os.kill(actor, signal.SIGKILL)
        done = stream.answered
        wait_until(lambda: stream.answered > done + 50)
    assert stream.failures == []


@pytest.mark.parametrize(
    ("value", "word"),
    [(666.0, "SIGSEGV"), (667.0, "hang"), (668.0, "memory")],
    ids=["segfault", "endless loop", "endless allocation"],
)
def test_a_poisonous_request_is_refused_alone(
    server: ServerProcess, fickle: Any, traffic: Any, value: float, word: str
) -> None:
    with traffic("mlp", ROW) as other:
        status, body = fickle.infer([[value, 0.0]])
        assert status == 400
        assert "refused for ten minutes" in body["error"]
        again, _ = fickle.infer([[value, 0.0]])
        assert again == 400
        assert fickle.infer([[2.0, 3.0]]) == (200, fickle.infer([[2.0, 3.0]])[1])
    assert other.failures == []
    assert word.lower() in sentences(server).lower()


def test_one_poison_among_63_good_requests(server: ServerProcess, client: Any) -> None:
    # The first row makes the others wait in the queue, so that they share a batch.
    rows = [[669.0, 0.0]] + [[float(n), 1.0] for n in range(63)]
    rows.insert(30, [666.0, 0.0])
    answers: dict[int, tuple[int, Any]] = {}

    def ask(index: int) -> None:
        answers[index] = client("fickle").infer([rows[index]])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(rows))]
    threads[0].start()
    time.sleep(0.05)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [index for index, (status, _) in answers.items() if status != 200]
    assert refused == [30]
    for index in set(range(len(rows))) - {30}:
        (output,) = answers[index][1]["outputs"]
        assert output["data"] == [2 * value for value in rows[index]]


def test_a_model_that_must_not_run_twice_answers_unavailable(
    repository: Path, client_of: Any
) -> None:
    settings = repository / "fickle" / "lrai.toml"
    settings.write_text(settings.read_text() + "retry = false\n")
    with start_server(repository) as server:
        status, body = client_of(server, "fickle").infer([[666.0, 0.0]])
        assert status == 503
        assert "must not be run twice" in body["error"]
        assert client_of(server, "fickle").infer([[1.0, 1.0]])[0] == 200


def test_a_model_that_dies_while_loading_costs_only_itself(
    repository: Path, client_of: Any
) -> None:
    (repository / "fickle" / "1" / "die").touch()
    with start_server(repository) as server:
        assert client_of(server, "mlp").infer([ROW])[0] == 200
        status, _ = client_of(server, "fickle").infer([[1.0, 1.0]])
        assert status == 503
        assert "SIGABRT" in sentences(server)


def test_an_actor_that_truncates_or_overwrites_its_slab_costs_only_itself(
    repository: Path, client_of: Any
) -> None:
    vandal = repository / "vandal" / "1" / "model.py"
    vandal.parent.mkdir(parents=True)
    vandal.write_text("""
import os
INPUTS = [("x", "FP32", [-1, 2])]
OUTPUTS = [("y", "FP32", [-1, 2])]

def load(context):
    pass

def predict(inputs):
    x = inputs["x"]
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "memfd:lrai" in os.readlink(f"/proc/self/fd/{fd}"):
                os.ftruncate(int(fd), 0)
        except OSError:
            pass
    if x[0, 0] == 1:
        x.setflags(write=True)
    return {"y": x * 2}
""")
    with start_server(repository) as server:
        client = client_of(server, "vandal")
        assert client.infer([[3.0, 4.0]])[1]["outputs"][0]["data"] == [6.0, 8.0]
        status, body = client.infer([[1.0, 0.0]])
        assert status in (400, 500), body
        assert client.infer([[3.0, 4.0]])[0] == 200
        assert client_of(server, "mlp").infer([ROW])[0] == 200


@pytest.mark.parametrize(
    "stall_s", [3.0, pytest.param(10.0, marks=[pytest.mark.slow, pytest.mark.timeout(90)])]
)
def test_a_stalled_control_plane_leaves_the_data_plane_answering(
    repository: Path, client_of: Any, traffic_of: Any, tmp_path: Path, stall_s: float
) -> None:
    """The asyncio loop is blocked under load, and nobody is blamed for it afterwards."""
    stall = repository.parent / "sitecustomize.py"
    stall.write_text(f"""
import signal, time
def stall(*_):
    time.sleep({stall_s})
signal.signal(signal.SIGUSR2, stall)
""")
    env = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{stall.parent}:{env}"
    try:
        with start_server(repository) as server, traffic_of(server, "mlp", ROW) as stream:
            actors = server.actors()
            server.process.send_signal(signal.SIGUSR2)
            start, done = time.monotonic(), stream.answered
            while time.monotonic() - start < stall_s + 2.0:
                time.sleep(0.5)
                assert stream.answered > done
                done = stream.answered
            assert server.actors() == actors
        assert stream.failures == []
        assert max(stream.latencies_s) < 1.0
    finally:
        os.environ["PYTHONPATH"] = env
