import random

import pytest

from lrai.scheduler.arrival_model import ArrivalModel

from .fakes import seen


def fed(counts: list[int], rows_each: int = 1) -> ArrivalModel:
    model = ArrivalModel()
    for tick, count in enumerate(counts):
        model.update(seen(tick / 10, rows=count * rows_each, requests=count))
    return model


def poisson(rng: random.Random, mean: float) -> int:
    return round(max(0.0, rng.gauss(mean, mean**0.5)))


def test_rate_settles_on_a_steady_stream() -> None:
    rng = random.Random(1)
    model = fed([poisson(rng, 200) for _ in range(100)], rows_each=3)
    assert model.rate == pytest.approx(2000, rel=0.05)
    assert model.rows_per_request == pytest.approx(3, rel=0.01)
    assert not model.is_bursty
    assert model.rates() == [(1.0, model.rate)]


def test_rate_jumps_with_the_stream() -> None:
    model = fed([100] * 50 + [1000])
    assert model.rate == pytest.approx(10_000)


def test_bursts_are_told_as_two_rates() -> None:
    model = fed([50, 50, 50, 50, 800] * 6)
    assert model.is_bursty
    (low_share, low), (high_share, high) = model.rates()
    assert (low, high) == (pytest.approx(500), pytest.approx(8000))
    assert (low_share, high_share) == (pytest.approx(0.8), pytest.approx(0.2))


def test_silence_is_no_rate_of_zero() -> None:
    ((_, rate),) = fed([0, 0, 0]).rates()
    assert rate > 0


def test_no_time_is_no_news() -> None:
    model = fed([100] * 10)
    observation = seen(1.0, rows=5)
    object.__setattr__(observation, "interval_s", 0.0)
    model.update(observation)
    assert model.rate == pytest.approx(1000)
