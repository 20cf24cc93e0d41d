"""How many replicas and threads suit a model, decided from measured times alone."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from lrai.core.model import Allocation

LIGHT_S: Final = 0.5e-3
"""A model that takes no longer for a row keeps one thread and one replica: one answers 2,000 single
rows a second, and far more in batches, while a second one would take processors and memory."""
_SIZES: Final = (1, 4, 16, 64)
# Differences that a repetition may bring are none.
_EQUAL: Final = 1.1


class Point(NamedTuple):
    """Batches of one size, run by all replicas at once."""

    rows: int
    batch_s: float
    """Median time of a batch."""
    cpu_s: float
    """Processor time of a batch."""


class Measured(NamedTuple):
    """What was measured of one allocation."""

    single_s: float
    """Median time of a lone row while all other replicas have nothing to do."""
    points: tuple[Point, ...]
    """By ascending rows; one row is among them."""


Table = Mapping[Allocation, Measured]


def batch_sizes(max_rows: int) -> list[int]:
    """Return the numbers of rows to measure."""
    most = max(1, max_rows)
    return [*(size for size in _SIZES if size < most), most]


def allocations(cpus: int, fixed: Allocation, most_replicas: int) -> list[Allocation]:
    """Return what is worth measuring on `cpus` processors, that for the fewest first.

    What is not 0 in `fixed` stays. Beside each number of threads alone stand as many replicas of
    it as there are processors for.
    """
    threads = [1 << power for power in range(cpus.bit_length())]
    counts = [fixed.threads] if fixed.threads else sorted({*threads, cpus})
    found = set()
    for count in counts:
        fitting = min(most_replicas, max(1, cpus // count))
        found |= {
            Allocation(number, count)
            for number in ([fixed.replicas] if fixed.replicas else (1, fitting))
        }
    # What somebody has set may be more than there is.
    limit = max(cpus, max(1, fixed.replicas) * max(1, fixed.threads))
    return sorted((one for one in found if one.replicas * one.threads <= limit), key=_cost)


def _cost(one: Allocation) -> tuple[int, int]:
    """Processors first, then memory."""
    return one.replicas * one.threads, one.replicas


def rows_per_s(one: Allocation, points: Iterable[Point]) -> float:
    """Return the most rows per second of all replicas together, over the sizes of a batch."""
    return max(one.replicas * at.rows / at.batch_s for at in points)


def expected_s(points: Sequence[Point], rows: int) -> float:
    """Return the time of a batch of any size: linear between the sizes, and beyond them."""
    at = min(max(1, bisect_left(points, rows, key=_rows)), len(points) - 1)
    if not at:
        return points[0].batch_s * rows / points[0].rows
    low, high = points[at - 1 : at + 1]
    return low.batch_s + (high.batch_s - low.batch_s) * (rows - low.rows) / (high.rows - low.rows)


def _rows(point: Point) -> int:
    return point.rows


def choose(table: Table, goal_s: float | None) -> Allocation:
    """Return the best allocation; of those that are within 10% of it, the one for the fewest.

    With a goal: the one that takes the least processor time per row, then the most rows per
    second, of those that answer a row within the goal even if it has to wait for a replica. If
    none does, the fastest. Without a goal: the least quotient of the time of a lone row and the
    rows per second, so that one request at a time and a crowd count the same.
    """
    if goal_s is None:
        return _least_of(
            {one: at.single_s / rows_per_s(one, at.points) for one, at in table.items()}
        )
    able = {one: _within(goal_s / (1 + 1 / one.replicas), at) for one, at in table.items()}
    able = {one: points for one, points in able.items() if points}
    if not able:
        return _least_of({one: at.single_s for one, at in table.items()})
    cpu_s = {one: min(at.cpu_s / at.rows for at in points) for one, points in able.items()}
    thrifty = [one for one in able if cpu_s[one] <= _EQUAL * min(cpu_s.values())]
    return _least_of({one: 1 / rows_per_s(one, able[one]) for one in thrifty})


def _within(limit_s: float, measured: Measured) -> list[Point]:
    return [point for point in measured.points if point.batch_s <= limit_s]


def _least_of(scores: Mapping[Allocation, float]) -> Allocation:
    best = min(scores.values())
    return min((one for one, score in scores.items() if score <= _EQUAL * best), key=_cost)


def in_words(chosen: Allocation, table: Table) -> str:
    """Say what was chosen and what was measured."""
    replicas = "1 replica" if chosen.replicas == 1 else f"{chosen.replicas} replicas"
    threads = "1 thread" if chosen.threads == 1 else f"{chosen.threads} threads"
    what, measured = f"{replicas} x {threads}", table[chosen]
    others = [f"{_figures(one, at)} for {one}" for one, at in table.items() if one != chosen]
    if not others:
        only = "more would only cost processors and memory"
        return f"{what}: a lone row takes {measured.single_s * 1e3:.3g} ms, {only}"
    return f"{what}: measured {_figures(chosen, measured)} against {', '.join(others)}"


def _figures(one: Allocation, measured: Measured) -> str:
    rate, single_ms = rows_per_s(one, measured.points), measured.single_s * 1e3
    return f"{rate:,.{0 if rate >= 100 else 1}f} rows/s and {single_ms:.3g} ms alone"
