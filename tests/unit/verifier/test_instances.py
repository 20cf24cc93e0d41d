"""Lists of instances: what is run again, what is known, and which clock a limit counts."""

import json
import os
import select
import subprocess
import sys

import pytest

from lrai.errors import ConfigError
from lrai.verifier.instance import Limits
from lrai.verifier.instances import RunSettings, run

TEXT = """(declare-const X_0 Real) (declare-const Y_0 Real)
(assert (>= X_0 -1.0)) (assert (<= X_0 1.0)) (assert (>= Y_0 LIMIT))"""


@pytest.fixture
def folder(relu):
    """y = relu(x), a property that holds and one that does not, and a list of both."""
    for name, limit in (("safe", "2.5"), ("unsafe", "0.5")):
        (relu / f"{name}.vnnlib").write_text(TEXT.replace("LIMIT", limit))
    (relu / "list.csv").write_text("m.onnx,safe.vnnlib,30\nm.onnx,unsafe.vnnlib,30\n")
    return relu


def start(folder, **settings):
    """All outcomes, and the names of those that were run."""
    fresh = []
    told = lambda outcome, _done, _total: fresh.append(outcome.subject)  # noqa: E731
    found = run(folder / "list.csv", folder / "r.jsonl", RunSettings(**settings), told)
    return found, fresh


def line(folder, **values):
    text = json.dumps({"model": "m.onnx", "subject": "safe.vnnlib", "limit_s": 30, **values})
    with (folder / "r.jsonl").open("a") as file:
        file.write(text + "\n")


def test_processor_seconds_are_a_limit_and_certificates_are_checked_without_a_folder(folder):
    found, fresh = start(folder, check=True, limits=Limits("cpu", stretch=10))
    assert [one.answer for one in found] == ["unsat", "sat"]
    assert [one.accepted for one in found] == [True, None]
    assert all(0 < one.cpu_seconds <= one.limit_s == 30 for one in found)
    assert fresh == ["safe.vnnlib", "unsafe.vnnlib"]
    assert found[0].certificate_bytes > 0
    assert start(folder) == (found, [])


@pytest.mark.parametrize(
    ("answer", "limit_s", "is_run"),
    [("unknown", 10, True), ("unknown", 30, False), ("unsat", 10, False), ("error", 10, False)],
)
def test_what_is_unknown_under_a_lower_limit_is_run_again(folder, answer, limit_s, is_run):
    line(folder, answer=answer, limit_s=limit_s)
    _, fresh = start(folder, only=("safe.vnnlib",))
    assert ("safe.vnnlib" in fresh) == is_run


def test_a_decision_is_not_forgotten_for_a_later_unknown(folder):
    line(folder, answer="unsat")
    line(folder, answer="unknown")
    found, fresh = start(folder, budget_s=0)
    assert [one.answer for one in found] == ["unsat"]
    assert not fresh


def test_an_answer_against_the_known_one_is_wrong(folder):
    (folder / "e.csv").write_text("network,property,answer\nm.onnx,safe.vnnlib,sat\n")
    line(folder, answer="unsat")
    (wrong,), _ = start(folder, budget_s=0, expected=folder / "e.csv")
    assert wrong.is_wrong
    (unknown,), _ = start(folder, budget_s=0)
    assert not unknown.is_wrong


def test_a_file_of_answers_without_its_head_is_refused(folder):
    (folder / "e.csv").write_text("m.onnx,safe.vnnlib,sat\nm.onnx,unsafe.vnnlib,sat\n")
    with pytest.raises(ConfigError, match=r"e\.csv"):
        start(folder, expected=folder / "e.csv")


BUSY = """
import multiprocessing
import time

from lrai.verifier.instances import RunSettings, _work


class Busy:
    def recv(self):
        time.sleep(60)


if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=_work, args=(Busy(), RunSettings()))
    worker.start()
    print(worker.pid, flush=True)
    worker.join()
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as run:
        worker = os.pidfd_open(int(run.stdout.readline()))
        run.kill()
        assert select.select([worker], [], [], 30) == ([worker], [], [])
        os.close(worker)
