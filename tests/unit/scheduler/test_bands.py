"""Batches of a ragged model: shared where that pays, by what was measured, and else not."""

import random

import pytest

from lrai.scheduler.bands import BandModel, band_of
from lrai.scheduler.model_based import ModelBased
from lrai.scheduler.observation import ServiceSample
from lrai.scheduler.policy import Target

from .fakes import samples, seen

# Milliseconds: what every batch of a text recogniser takes, and each pixel of its rows. Above
# some hundred pixels a batch outgrows the cache.
FIXED, PIXEL, LARGE = 2.0, 0.065, 0.0075


def took_s(rows: int, edge: int, rng: random.Random) -> float:
    """A batch of rows that are all as long as the edge, except that one row alone is shorter."""
    length = edge - 8 if rows == 1 else edge
    outgrown = max(0, rows * length - 600)
    ideal = FIXED + PIXEL * rows * length + LARGE * outgrown
    return ideal * rng.lognormvariate(0, 0.1) / 1000


def served(policy: ModelBased, seconds: int, sizes: tuple[int, ...] = (1, 2, 4)) -> None:
    """Batches of all lengths from 48 to 768, in buckets of 16, of sizes within the caps."""
    rng = random.Random(7)
    caps = dict(policy.first().caps)
    for tick in range(seconds * 10):
        found: list[ServiceSample] = []
        for edge in (rng.randrange(48, 769, 16) for _ in range(4)):
            most = next((cap for upper, cap in sorted(caps.items()) if upper >= edge), 128)
            rows = min(rng.choice(sizes), most)
            found += samples({rows: took_s(rows, edge, rng)}, 1, edge)
        knobs = policy.decide(seen(tick / 10, rows=10, service=tuple(found)))
        caps = dict(knobs.caps)


@pytest.mark.parametrize(
    ("edge", "band"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (16, 16), (17, 24), (25, 32), (48, 48), (49, 64)],
)
def test_bands_are_two_to_an_octave(edge: int, band: int) -> None:
    assert band_of(edge) == band


def test_buckets_of_about_one_length_learn_together() -> None:
    model = BandModel(8)
    for tick in range(20):
        found = [*samples({1: 0.0112}, 2, 112), *samples({2: 0.0256}, 2, 128)]
        model.update(found, tick / 10)
    ((band, (table_s, doubt_s)),) = model.curves(2.0).items()
    assert band == 128
    assert doubt_s < 0, "both sizes are known"
    assert table_s[1] == pytest.approx(0.0128, rel=0.02)
    assert table_s[2] == pytest.approx(0.0256, rel=0.02)


def test_what_is_not_padded_has_no_band() -> None:
    model = BandModel(8)
    assert not model.update(samples({1: 0.01}, 5), 0.0)
    assert model.curves(0.1) == {}


def test_short_rows_share_batches_and_long_ones_are_served_alone() -> None:
    policy = ModelBased(Target(None, 128))
    served(policy, 9)
    knobs = policy.decide(seen(9.0))
    caps = dict(knobs.caps)
    assert [edge for edge, _ in knobs.caps] == sorted(caps)
    assert min(caps[48], caps[64], caps[96]) > 1
    assert caps[384] == caps[512] == caps[768] == 1
    assert knobs.cap == max(caps.values())
    assert "1 up to length 768" in policy.why()


def test_what_is_served_alone_is_tried_together_again() -> None:
    policy = ModelBased(Target(None, 128))
    rng = random.Random(3)
    caps = []
    for tick in range(600):
        rows = min(2, caps[-1]) if caps else 2
        found = samples({rows: took_s(rows, 512, rng)}, 2, 512)
        if tick < 10:
            found += samples({1: took_s(1, 512, rng)}, 2, 512)
        caps.append(dict(policy.decide(seen(tick / 10, rows=2, service=found)).caps)[512])
    assert caps[0] > 1
    tried = [at for at, cap in enumerate(caps) if cap > 1 and at > 100]
    assert 4 <= len(tried) <= 6, "one tick every ten seconds"


def test_lengths_that_were_not_compared_are_no_more_together_than_shorter_ones() -> None:
    policy = ModelBased(Target(None, 128))
    rng = random.Random(9)
    for tick in range(30):
        times = {rows: took_s(rows, 384, rng) for rows in (1, 2)}
        found = [*samples(times, 1, 384), *samples({1: took_s(1, 768, rng)}, 1, 768)]
        caps = dict(policy.decide(seen(tick / 10, rows=3, service=tuple(found))).caps)
    assert caps == {384: 1, 768: 1}


def test_a_batch_of_long_rows_is_kept_small_for_the_goal() -> None:
    policy = ModelBased(Target(0.2, 128))
    rng = random.Random(5)
    for tick in range(100):
        found = []
        for edge in (32, 512):
            times = {rows: 0.01 + edge * rows * 2e-5 * rng.uniform(0.95, 1.05) for rows in (1, 4)}
            found += samples(times, 2, edge)
        policy.decide(seen(tick / 10, rows=20, service=tuple(found)))
    knobs = policy.decide(seen(10.0, rows=20))
    caps = dict(knobs.caps)
    assert 1 < caps[512] < caps[32] <= 128
    assert 0.01 + 512 * caps[512] * 2e-5 < 0.2


def test_bands_are_kept() -> None:
    policy, other = (ModelBased(Target(None, 128)) for _ in range(2))
    served(policy, 9)
    other.from_plain(policy.to_plain())
    wanted = dict(policy.decide(seen(9.0)).caps)
    assert dict(other.decide(seen(0.0)).caps).keys() == wanted.keys()
    assert dict(other.decide(seen(0.1)).caps)[768] == wanted[768] == 1
