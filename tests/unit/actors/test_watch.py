import pytest

from lrai.actors.watch import backoff_s, hang_limit_s

BOUNDS_US = (1_000, 100_000, 1_000_000)


@pytest.mark.parametrize(
    ("counts", "limit_s"),
    [
        ((0, 0, 0, 0), 30.0),  # nothing seen
        ((99, 0, 0, 0), 30.0),  # too little seen
        ((1000, 0, 0, 0), 1.0),  # never below the floor
        ((995, 5, 0, 0), 1.0),  # the slowest 1% does not count
        ((900, 100, 0, 0), 2.0),  # 20 times 100 ms
        ((0, 0, 1000, 0), 20.0),
        ((0, 0, 0, 1000), 30.0),  # beyond the last bound nothing is known
    ],
)
def test_a_hang_is_twenty_times_the_p99_within_its_bounds(counts, limit_s):
    assert hang_limit_s(30.0, BOUNDS_US, counts, 8) == limit_s


def test_a_full_batch_may_take_as_long_as_its_rows_one_by_one():
    assert hang_limit_s(30.0, BOUNDS_US, (900, 100, 0, 0), 64) == pytest.approx(12.8)


def test_the_set_time_is_never_exceeded():
    assert hang_limit_s(0.5, BOUNDS_US, (0, 0, 1000, 0), 8) == 0.5


def test_the_wait_doubles_after_the_third_death_up_to_ten_seconds():
    waits = [backoff_s(deaths) for deaths in range(12)]
    assert waits[:6] == [0.0, 0.0, 0.0, 0.1, 0.2, 0.4]
    assert waits[-1] == 10.0
    assert backoff_s(10_000) == 10.0
