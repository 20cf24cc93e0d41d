"""Which rows and age should close a batch: the least expected cost among what meets the goal.

A batch opens with its first request and closes with the k-th, or at age tau. With Poisson arrivals
all means follow from the probabilities that more than j requests come within tau. Where service
takes longer than that, the batch goes on growing until a replica is free. Batches served when k
requests wait are optimal for a weighted sum of latency and power (Xu, Zhou, Niu, SMDP-based dynamic
batching, arXiv 2301.12865); tau bounds the tail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, exp, hypot, inf, sqrt
from typing import Final, NamedTuple

# A mean latency of one goal costs a fifth of a busy processor, each missed goal in 20 a whole one.
LATENCY_COST: Final = 0.2
MISS_COST: Final = 20.0
_AGES: Final = (1.0, 0.5)
_NEGLIGIBLE: Final = 1e-4
_ROUNDS: Final = 3
# A search along k ends where the cost is so much above the least.
_HOPELESS: Final = 1.05
# Batches that take much longer than usual are rare, but not as rare as noise would have them.
_OUTLIERS: Final = 0.15
_SQRT_2: Final = sqrt(2)


@dataclass(frozen=True, slots=True)
class Load:
    """What a plan is made for."""

    rates: Sequence[tuple[float, float]]
    """Pairs of probability and requests per second."""
    rows_per_request: float
    table_s: Sequence[float]
    """Service time by rows, from 0 rows."""
    noise: float
    """Standard deviation of a batch's time, relative to its mean."""
    replicas: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A setting and what it is expected to do."""

    k: int
    """Requests that close a batch."""
    tau_s: float
    cost: float
    busy: float
    """Expected share of the replicas' time."""
    mean_s: float
    """Expected mean latency."""


class _Outcome(NamedTuple):
    busy: float
    mean_s: float
    late: float
    """Share of requests that miss the goal because replicas are busy."""


class _Batches:
    """The batches of one rate and one tau, for k = 1, 2, 3 ... in turn."""

    def __init__(self, load: Load, goal_s: float, rate: float, tau_s: float) -> None:
        self._load, self._goal_s, self._rate = load, goal_s, rate
        self._mean = rate * tau_s
        self._term = exp(-self._mean)
        self._joined = 0
        self._times_s = _time_s(load, 1), _time_s(load, 2)
        self.more = 1.0 - self._term
        """Probability that one more request comes in time."""
        self._size, self._waits_s = 1.0, 0.0
        self._service_s = self._work_s = self._times_s[0]

    def step(self) -> None:
        """Let batches close with one request more."""
        more, joined = self.more, self._joined + 1
        now_s, then_s = self._times_s
        self._waits_s += joined * more / self._rate
        self._service_s += more * (then_s - now_s)
        self._work_s += more * ((joined + 1) * then_s - joined * now_s)
        self._size += more
        self._joined = joined
        self._times_s = then_s, _time_s(self._load, joined + 2)
        self._term *= self._mean / joined
        self.more = max(0.0, more - self._term)

    def outcome(self) -> _Outcome:
        """Return what such batches do, with what waiting for a replica adds.

        A batch opens an exponential time after the last one left, and cannot leave before a replica
        is free.
        """
        load, rate, size, time_s = self._load, self._rate, self._size, self._service_s
        gap_s, extra_s = (size - 1) / rate, 0.0
        base_s = _time_s(load, size)
        for _ in range(_ROUNDS):
            late_s = time_s / load.replicas - gap_s
            if late_s <= 0:
                break
            extra_s = late_s - (1 - exp(-rate * late_s)) / rate
            size = self._size + rate * extra_s
            time_s = self._service_s + _time_s(load, size) - base_s
        waits_s, work_s = self._waits_s, self._work_s
        if extra_s:
            waits_s += extra_s * (self._size + rate * extra_s / 2)
            work_s += size * time_s - self._size * self._service_s
        busy = rate / size * time_s / load.replicas
        return _Outcome(min(1.0, busy), (waits_s + work_s) / size, self._late(size, time_s))

    def _late(self, size: float, time_s: float) -> float:
        """Return the share of requests that wait for a batch, are served in the next, and are late.

        Both times vary with the noise, and with the rows where batches grow while none is free.
        """
        load, rate = self._load, self._rate
        per_row_s = max(0.0, _time_s(load, size + 1) - _time_s(load, size)) / load.replicas
        growth = min(0.95, rate * per_row_s)
        crowd = 1 - self._size / size
        wobble_s = (1 + growth) * per_row_s * sqrt(size / (1 - growth * growth)) * crowd
        spread_s = hypot(load.noise * time_s * _SQRT_2, wobble_s, _OUTLIERS * self._goal_s)
        spare_s = self._goal_s - time_s * (1 + 1 / load.replicas)
        return 0.25 * erfc(spare_s / spread_s / _SQRT_2)


def choose(load: Load, goal_s: float, longest_s: float, most: int, cpu_cost: float) -> Plan:
    """Return the cheapest plan of at most `most` requests that wait at most `longest_s`."""
    ages = _AGES if most > 1 and longest_s > 0 else (0.0,)
    plans = [_along_k(load, goal_s, age * longest_s, most, cpu_cost) for age in ages]
    return min(plans, key=lambda plan: plan.cost)


def _along_k(load: Load, goal_s: float, tau_s: float, most: int, cpu_cost: float) -> Plan:
    """Return the cheapest plan with this tau."""
    runs = [(share, rate, _Batches(load, goal_s, rate, tau_s)) for share, rate in load.rates]
    total = sum(share * rate for share, rate, _ in runs)
    best, k, wanted = Plan(1, tau_s, inf, 1.0, inf), 0, 1
    while k < most:
        k += 1
        if k == min(wanted, most):
            wanted = k + max(1, k // 5)
            busy = mean_s = late = 0.0
            for share, rate, batches in runs:
                one, weight = batches.outcome(), share * rate / total
                busy += share * one.busy
                mean_s += weight * one.mean_s
                late += weight * one.late
            cost = cpu_cost * busy + LATENCY_COST * mean_s / goal_s + MISS_COST * late
            if cost < best.cost:
                best = Plan(k, tau_s, cost, busy, mean_s)
            elif cost > _HOPELESS * best.cost:
                break
        if all(batches.more < _NEGLIGIBLE for _, _, batches in runs):
            break
        for _, _, batches in runs:
            batches.step()
    return best


def _time_s(load: Load, requests: float) -> float:
    """Return the time of a number of requests, broken or not; past the table in several batches."""
    rows, table_s = requests * load.rows_per_request, load.table_s
    last = len(table_s) - 1
    if rows >= last:
        return table_s[last] * (rows / last)
    low = int(rows)
    return table_s[low] + (table_s[low + 1] - table_s[low]) * (rows - low)
