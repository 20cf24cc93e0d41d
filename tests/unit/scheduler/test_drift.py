from lrai.scheduler.allocation import Point
from lrai.scheduler.drift import Drift

from .fakes import FakeWindow

ALONE = (Point(1, 0.010, 0.010), Point(11, 0.110, 0.110))
TOGETHER = (Point(1, 0.015, 0.015), Point(11, 0.165, 0.165))


def window(times: float, rows: int = 4, batches: int = 5) -> FakeWindow:
    """Batches that take so many times what one replica takes alone."""
    took_us = times * rows * 10_000 * batches
    return FakeWindow(service=[(0, rows, batches, took_us, 0.0)])


def fires(drift: Drift, times: float, seconds: int = 60) -> bool:
    return any(drift.note(window(times), float(at)) for at in range(1, seconds))


def test_times_as_measured_are_no_drift() -> None:
    assert not fires(Drift(ALONE, TOGETHER), 1.0)
    # More replicas may run at the same time, or not.
    assert not fires(Drift(ALONE, TOGETHER), 1.5)


def test_times_that_are_off_for_half_a_minute_are() -> None:
    assert fires(Drift(ALONE, TOGETHER), 2.1)
    assert fires(Drift(ALONE, TOGETHER), 0.7)
    assert not fires(Drift(ALONE, TOGETHER), 2.1, seconds=20)


def test_a_good_moment_begins_the_half_minute_anew() -> None:
    drift = Drift(ALONE, TOGETHER)
    told = [drift.note(window(1.2 if at == 20 else 3.0), float(at)) for at in range(1, 45)]
    assert not any(told)


def test_what_is_known_of_the_model_in_service_counts() -> None:
    drift = Drift(ALONE, TOGETHER)
    fires(drift, 3.0)
    assert 1.9 < drift.ratio < 2.0
    assert not fires(Drift(ALONE, TOGETHER, drift.ratio), 3.0)
    assert fires(Drift(ALONE, TOGETHER, drift.ratio), 1.2)


def test_windows_without_batches_say_nothing() -> None:
    drift = Drift(ALONE, TOGETHER)
    assert not any(drift.note(FakeWindow(), float(at)) for at in range(100))
