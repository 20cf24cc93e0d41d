import json
import random

import pytest

from lrai.scheduler.cost_model import ServiceModel

from .fakes import samples


def affine_s(rows: int) -> float:
    return 80e-6 + 13e-6 * rows


def learnt(sizes: list[int], times_s: list[float], max_rows: int = 32) -> ServiceModel:
    model = ServiceModel(max_rows)
    for tick in range(20):
        model.update(samples(dict(zip(sizes, times_s, strict=True)), 10), tick / 10)
    model.fit(2.0)
    return model


def test_line_predicts_sizes_that_were_never_seen() -> None:
    model = learnt([1, 2, 5], [affine_s(rows) for rows in (1, 2, 5)])
    for rows in (1, 3, 16, 32):
        mean_s, std_s = model.predict(rows)
        assert mean_s == pytest.approx(affine_s(rows), rel=0.03)
        assert std_s > 0
    assert model.predict(32)[1] > model.predict(3)[1]


def test_noise_is_the_spread_of_single_batches() -> None:
    rng, model = random.Random(3), ServiceModel(32)
    for tick in range(50):
        for rows in (1, 4, 8):
            times = [affine_s(rows) * rng.gauss(1, 0.05) for _ in range(20)]
            model.update(samples({rows: times}, 0), tick / 10)
    model.fit(5.0)
    assert model.noise() == pytest.approx(0.05, rel=0.2)


def test_step_is_kept_as_a_table() -> None:
    sizes = list(range(1, 17))
    model = learnt(sizes, [affine_s(rows) * (1 if rows < 9 else 1.6) for rows in sizes])
    assert model.predict(8)[0] == pytest.approx(affine_s(8), rel=0.03)
    assert model.predict(9)[0] == pytest.approx(1.6 * affine_s(9), rel=0.03)


def test_linear_model_has_no_fixed_part() -> None:
    model = learnt([1, 2, 3], [420e-6, 840e-6, 1260e-6])
    alpha_s, beta_s = model.line()
    assert alpha_s < 0.05 * beta_s
    assert model.predict(32)[0] == pytest.approx(32 * 420e-6, rel=0.05)


def test_follows_a_machine_that_slows_down() -> None:
    model = learnt([1, 4, 8], [affine_s(rows) for rows in (1, 4, 8)])
    slower = samples({rows: 2 * affine_s(rows) for rows in (1, 4)}, 30)
    assert model.update(slower, 60.0), "batches that take twice as long are a surprise"
    for tick in range(1, 20):
        model.update(slower, 60.0 + tick / 10)
    model.fit(62.0)
    assert not model.update(slower, 62.1)
    assert model.predict(4)[0] == pytest.approx(2 * affine_s(4), rel=0.05)
    assert model.predict(8)[0] == pytest.approx(2 * affine_s(8), rel=0.1), "though it never ran"
    assert model.update(samples({1: affine_s(1)}, 300), 62.2)
    assert model.predict(8)[0] == pytest.approx(affine_s(8), rel=0.1), "and is quick again"


def test_buckets_are_learnt_apart() -> None:
    model = ServiceModel(8)
    model.update(samples({1: 1e-3, 4: 2e-3}, 5, edge=64) + samples({1: 4e-3}, 5, edge=256), 0.0)
    model.fit(0.0)
    assert model.edges == [64, 256]
    assert model.predict(1, 64)[0] < model.predict(1, 256)[0]
    assert {point.edge for point in model.points()} == {64, 256}
    with pytest.raises(KeyError):
        model.predict(1, 128)


def test_points_rise_and_span_the_batch_sizes() -> None:
    points = learnt([1, 8], [affine_s(1), affine_s(8)], max_rows=64).points()
    assert (points[0].rows, points[-1].rows) == (1, 64)
    assert len(points) < 25
    assert sorted(points) == list(points)


def test_survives_a_restart() -> None:
    model = learnt([1, 4], [affine_s(1), affine_s(4)])
    again = ServiceModel(32)
    again.from_plain(json.loads(json.dumps(model.to_plain())), 0.0)
    assert again.predict(16)[0] == pytest.approx(model.predict(16)[0], rel=0.05)


def test_nonsense_is_not_learnt() -> None:
    model = ServiceModel(8)
    assert not model.update(samples({1: 0.0}, 3), 0.0)
    assert model.edges == []


def test_busiest_bucket_is_where_the_time_goes() -> None:
    model = ServiceModel(8)
    model.update(samples({4: 1e-3}, 30, edge=64) + samples({2: 9e-3}, 10, edge=256), 0.0)
    edge, share = model.busiest()
    assert edge == 256
    assert share == pytest.approx(20 / 140)
    for tick in range(100):
        model.update(samples({4: 1e-3}, 30, edge=64), tick / 10)
    assert model.busiest()[0] == 64
    assert model.busiest()[1] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("one_in", "expected_s"), [(1_000, 300e-6), (50_000, 0.0), (0, 0.0)])
def test_batches_that_are_held_up_now_and_then_are_told(one_in: int, expected_s: float) -> None:
    model, rng, batches = ServiceModel(32), random.Random(4), 0
    for tick in range(200):
        times = {rows: [rng.gauss(1, 0.05) * affine_s(rows) for _ in range(100)] for rows in (1, 4)}
        for row in times.values():
            batches += len(row)
            if one_in and batches % one_in == 0:
                row[0] += 300e-6
        model.update(samples(times, 0), tick / 10)
        if tick % 10 == 0:
            model.fit(tick / 10)
    assert model.held_up_s() == pytest.approx(expected_s, rel=0.1)


def test_what_was_not_run_stays_near_to_what_it_took() -> None:
    model = ServiceModel(64)
    rng = random.Random(1)
    learn = lambda sizes, now_s: model.update(samples(sizes, 0), now_s)  # noqa: E731
    learn({rows: [40e-6 + 1e-6 * rows] * 50 for rows in (1, 8, 64)}, 0.0)
    for tick in range(2000):
        # One row at a time, some of them held up by a busy machine.
        held_up = [4e-3] * rng.choice([0, 0, 1, 5, 20])
        learn({1: [rng.uniform(30e-6, 50e-6) for _ in range(100)] + held_up}, tick / 10)
        model.fit(tick / 10)
    assert 10e-6 < model.predict(1)[0] < 400e-6
    assert 20e-6 < model.predict(64)[0] < 1e-3


def test_buckets_that_no_request_falls_into_are_forgotten() -> None:
    model = ServiceModel(8)
    model.update(samples({1: 1e-3}, 5, edge=64), 0.0)
    model.update(samples({1: 2e-3}, 5, edge=96), 10.0)
    model.fit(3_000.0)
    assert model.edges == [64, 96]
    model.update(samples({1: 2e-3}, 5, edge=96), 3_700.0)
    model.fit(3_700.0)
    assert model.edges == [96]
    later = ServiceModel(8)
    later.from_plain(model.to_plain(), 0.0)
    later.fit(1e6)
    assert later.edges == [96], "idleness and restarts are no reason"
