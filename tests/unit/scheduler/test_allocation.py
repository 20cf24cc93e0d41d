import pytest

from lrai.core.model import Allocation
from lrai.scheduler.allocation import (
    Measured,
    Point,
    allocations,
    batch_sizes,
    choose,
    expected_s,
    in_words,
    rows_per_s,
)

FREE = Allocation(0, 0)
ONE, THREADS, REPLICAS = Allocation(1, 1), Allocation(1, 2), Allocation(2, 1)


def measured(
    single_ms: float, batch_ms: float, busy: float = 1.0, together_ms: float = 0.0
) -> Measured:
    """Times of one row, alone and `together`, and of a batch of eight on so many processors."""
    points = [
        Point(rows, time_ms * 1e-3, busy * time_ms * 1e-3)
        for rows, time_ms in ((1, together_ms or single_ms), (8, batch_ms))
    ]
    return Measured(single_ms * 1e-3, tuple(points))


def test_every_number_of_threads_is_measured_alone_and_with_as_many_replicas_as_fit() -> None:
    assert allocations(2, FREE, 8) == [ONE, THREADS, REPLICAS]
    assert allocations(6, FREE, 8) == [
        *(Allocation(1, threads) for threads in (1, 2, 4, 6)),
        *(Allocation(3, 2), Allocation(6, 1)),
    ]


@pytest.mark.parametrize("cpus", [1, 2, 3, 7, 16, 96])
def test_no_more_threads_run_than_there_are_processors(cpus: int) -> None:
    found = allocations(cpus, FREE, 1000)
    assert all(one.replicas * one.threads <= cpus for one in found)
    assert len(found) == len(set(found))
    assert Allocation(cpus, 1) in found
    assert Allocation(1, cpus) in found


def test_memory_bounds_the_replicas() -> None:
    assert max(one.replicas for one in allocations(16, FREE, 3)) == 3
    assert allocations(16, FREE, 1) == [Allocation(1, t) for t in (1, 2, 4, 8, 16)]


def test_what_somebody_has_set_stays() -> None:
    assert allocations(4, Allocation(2, 0), 8) == [Allocation(2, 1), Allocation(2, 2)]
    assert allocations(4, Allocation(0, 2), 8) == [Allocation(1, 2), Allocation(2, 2)]
    assert allocations(2, Allocation(3, 0), 8) == [Allocation(3, 1)]
    assert allocations(2, Allocation(0, 8), 8) == [Allocation(1, 8)]


def test_sizes_of_batches_end_with_the_largest() -> None:
    assert batch_sizes(0) == [1]
    assert batch_sizes(5) == [1, 4, 5]
    assert batch_sizes(64) == [1, 4, 16, 64]


def test_threads_win_where_they_make_a_lone_row_faster_and_cost_few_rows() -> None:
    table = {ONE: measured(20, 160), THREADS: measured(11, 84), REPLICAS: measured(20, 165)}
    assert choose(table, None) == THREADS


def test_replicas_win_where_threads_gain_little() -> None:
    table = {ONE: measured(20, 160), THREADS: measured(17, 135), REPLICAS: measured(20, 168)}
    assert choose(table, None) == REPLICAS


def test_what_is_hardly_better_is_not_worth_a_processor() -> None:
    table = {
        ONE: measured(20, 160),
        THREADS: measured(19.6, 156),
        REPLICAS: measured(20, 300, together_ms=38),
    }
    assert choose(table, None) == ONE


def test_with_a_goal_threads_that_waste_processor_time_are_not_taken() -> None:
    table = {
        ONE: measured(20, 160),
        THREADS: measured(14, 112, busy=2),
        REPLICAS: measured(20, 320, together_ms=40),
    }
    assert choose(table, 1.0) == ONE
    assert choose(table, None) == THREADS


def test_a_goal_that_one_thread_misses_needs_more() -> None:
    table = {
        ONE: measured(20, 160),
        THREADS: measured(14, 112, busy=2),
        REPLICAS: measured(20, 165),
    }
    # A row may have to wait for the one before it.
    assert choose(table, 0.029) == THREADS
    assert choose(table, 0.031) == REPLICAS


def test_batches_beyond_the_goal_do_not_count() -> None:
    thrifty_in_batches = Measured(0.010, (Point(1, 0.010, 0.010), Point(8, 0.060, 0.012)))
    table = {ONE: measured(10, 80), THREADS: thrifty_in_batches}
    assert choose(table, 0.2) == THREADS
    assert choose(table, 0.022) == ONE


def test_the_fastest_is_taken_where_no_goal_can_be_kept() -> None:
    table = {ONE: measured(20, 160), THREADS: measured(11, 84), REPLICAS: measured(20, 165)}
    assert choose(table, 0.005) == THREADS


def test_words_name_what_was_measured() -> None:
    table = {ONE: measured(20, 160), THREADS: measured(17, 135), REPLICAS: measured(20, 168)}
    assert in_words(REPLICAS, table) == (
        "2 replicas x 1 thread: measured 100 rows/s and 20 ms alone against 50.0 rows/s and 20 ms"
        " alone for 1 x 1, 59.3 rows/s and 17 ms alone for 1 x 2"
    )
    assert in_words(ONE, {ONE: table[ONE]}) == (
        "1 replica x 1 thread: a lone row takes 20 ms, more would only cost processors and memory"
    )


def test_rows_per_second_are_those_of_the_best_batch() -> None:
    assert rows_per_s(REPLICAS, measured(20, 160).points) == pytest.approx(100)
    assert rows_per_s(ONE, measured(20, 40).points) == pytest.approx(200)


def test_expected_times_are_linear_between_the_sizes_and_beyond() -> None:
    points = [Point(1, 1.0, 1.0), Point(5, 3.0, 3.0)]
    assert [expected_s(points, rows) for rows in (1, 3, 5, 9)] == [1.0, 2.0, 3.0, 5.0]
    assert expected_s(points[:1], 4) == 4.0
