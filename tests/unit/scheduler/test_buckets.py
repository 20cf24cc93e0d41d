"""Edges of length buckets, held against every possible choice."""

import random
from itertools import combinations

import pytest

from lrai.scheduler.buckets import LengthModel, learn_edges, padded_positions


def best(histogram, count):
    """The least padded positions with so many edges, by trying all of them."""
    *lengths, last = [length for length, _ in histogram]
    choices = combinations(lengths, count - 1)
    return min(padded_positions(histogram, (*choice, last)) for choice in choices)


def log_normal(seed, count, sigma=0.8, scale=60):
    rng = random.Random(seed)
    return [min(512, max(1, round(scale * rng.lognormvariate(0, sigma)))) for _ in range(count)]


def histogram_of(lengths):
    return [(length, lengths.count(length)) for length in sorted(set(lengths))]


@pytest.mark.parametrize("seed", range(20))
def test_edges_are_the_best_of_their_number(seed):
    rng = random.Random(seed)
    lengths = sorted(rng.sample(range(1, 200), 9))
    histogram = [(length, rng.randint(1, 50)) for length in lengths]
    for most in range(1, 7):
        edges = learn_edges(histogram, most)
        assert len(edges) <= most
        assert edges[-1] == lengths[-1]
        assert padded_positions(histogram, edges) == best(histogram, len(edges))


def test_no_more_edges_than_lengths_and_none_without():
    assert learn_edges([(7, 3)]) == (7,)
    assert learn_edges([]) == ()
    assert learn_edges([(10, 5), (1000, 5)]) == (10, 1000)


def test_lengths_that_differ_little_share_one_bucket():
    assert learn_edges([(100, 1), (103, 1), (105, 1)]) == (105,)


def test_log_normal_lengths_are_padded_by_less_than_powers_of_two():
    histogram = histogram_of(log_normal(1, 4000))
    useful = sum(length * rows for length, rows in histogram)
    edges = learn_edges(histogram)
    assert len(edges) <= 8
    assert padded_positions(histogram, edges) < 1.25 * useful
    assert padded_positions(histogram, (16, 32, 64, 128, 256, 512)) > 1.3 * useful


def test_a_model_learns_edges_from_enough_rows_and_keeps_room_for_longer_ones():
    model = LengthModel(512)
    lengths = [33, 130] * 600
    assert not model.update(histogram_of(lengths[:500]))
    assert model.edges == ()
    assert model.update(histogram_of(lengths[500:]))
    assert model.edges == (33, 130, 192, 256, 384, 512)


def test_edges_stay_as_long_as_others_would_be_little_better():
    model = LengthModel(512)
    assert model.update(histogram_of(log_normal(3, 1500, sigma=0.3, scale=70)))
    edges = model.edges
    for seed in range(4, 8):
        assert not model.update(histogram_of(log_normal(seed, 1500, sigma=0.3, scale=70)))
    assert model.edges == edges


def test_edges_follow_when_the_lengths_change():
    model = LengthModel(512)
    model.update(histogram_of(log_normal(3, 1500)))
    changes = [model.update([(450, 1500), (30, 1500)]) for _ in range(6)]
    assert any(changes)
    assert {30, 450} <= set(model.edges)
