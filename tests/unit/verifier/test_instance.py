"""Instances: a time-out ends the search wherever it stands."""

import signal
import threading

import pytest

from lrai.verifier import search
from lrai.verifier.deadline import ElapsedError, deadline
from lrai.verifier.instance import Instance, Limits, solve
from lrai.verifier.verdict import Progress

TEXT = """(declare-const X_0 Real) (declare-const Y_0 Real)
(assert (>= X_0 -1.0)) (assert (<= X_0 1.0)) (assert (>= Y_0 2.5))"""


@pytest.fixture
def instance(relu):
    (relu / "p.vnnlib").write_text(TEXT)
    return Instance((relu / "m.onnx",), relu / "p.vnnlib", 0.3)


def stand_still(_network, _subject, _settings, progress):
    """A search that looks at no clock after its first word."""
    progress(Progress(boxes=7, bound=-2.0, share=0.25, seconds=0.0))
    threading.Event().wait(60)
    raise AssertionError("nobody ended the search")


def burn(_network, _subject, _settings, progress):
    """The same without rest."""
    progress(Progress(boxes=7, bound=-2.0, share=0.25, seconds=0.0))
    for _ in range(10**9):
        pass
    raise AssertionError("nobody ended the search")


@pytest.mark.parametrize(
    ("verify", "limits"), [(stand_still, Limits()), (burn, Limits("cpu", stretch=100))]
)
def test_a_search_that_overstays_is_ended_with_what_it_had(instance, verify, limits, monkeypatch):
    monkeypatch.setattr(search, "verify", verify)
    verdict = solve(instance, limits=limits)
    assert (verdict.answer, verdict.boxes, verdict.bound) == ("unknown", 7, -2.0)
    assert "time ran out; 25.00% of the region is proved" in verdict.reason


def test_a_deadline_that_is_kept_leaves_no_timer():
    with deadline(60, "wall"):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_deadline_is_no_exception_that_a_search_could_catch():
    def search_with_care():
        try:
            threading.Event().wait(60)
        except Exception:  # noqa: BLE001 - what a search might do
            pytest.fail("the search took the deadline for its own")

    with pytest.raises(ElapsedError), deadline(0.05, "wall"):
        search_with_care()
