"""Arrivals of requests: made from a seed, or read from a file."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lrai.errors import ConfigError

_BURST, _CALM = (0.1, 0.8), (0.5, 0.05)
_DRIFT_S: Final = 2.0
_MOST_S: Final = 1e6
_MOST_REQUESTS: Final = 50_000_000


@dataclass(frozen=True)
class Trace:
    """Requests in the order in which they arrive."""

    name: str
    seconds: float
    times_ns: NDArray[np.int64]
    """Since the start."""
    rows: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    """0 where the model knows no length."""


Phases = Iterable[tuple[float, float]]
"""Seconds, and the share of the capacity that arrives meanwhile."""


def steady(share: float) -> Callable[[np.random.Generator, float], Phases]:
    """Return a Poisson process of that share of the capacity."""
    return lambda _, seconds: [(seconds, share)]


def mmpp(random: np.random.Generator, seconds: float) -> Phases:
    """Return calm and bursts in turn (a two-state Markov-modulated Poisson process)."""
    passed = 0.0
    while passed < seconds:
        for mean_s, share in (_CALM, _BURST):
            dwell_s = float(random.exponential(mean_s))
            passed += dwell_s
            yield dwell_s, share


def drift(random: np.random.Generator, seconds: float) -> Phases:
    """Return a new share every two seconds, log-uniform in 3% to 90%."""
    for _ in range(int(np.ceil(seconds / _DRIFT_S))):
        yield _DRIFT_S, float(np.exp(random.uniform(np.log(0.03), np.log(0.9))))


def step(_: np.random.Generator, seconds: float) -> Phases:
    """Return 6% of the capacity and, from the middle on, ten times that."""
    return [(seconds / 2, 0.06), (seconds / 2, 0.6)]


TRACES: Final[Mapping[str, Callable[[np.random.Generator, float], Phases]]] = {
    **{f"poisson-{share:g}": steady(share) for share in (0.05, 0.2, 0.5, 0.8)},
    "mmpp": mmpp,
    "drift": drift,
    "step": step,
}


def make(name: str, capacity: float, seconds: float, seed: int) -> Trace:
    """Return the trace of that name for a model of that capacity (rows/s); one row each.

    Raises ConfigError where that would be no time, or more requests than memory should hold.
    """
    if not 0 < seconds <= _MOST_S or capacity * seconds > _MOST_REQUESTS:
        raise ConfigError(
            f"a trace of {seconds:g} s for {capacity:.3g} rows/s cannot be made",
            f"more than 0 s, up to {_MOST_S:g} s and {_MOST_REQUESTS:,} rows at full load",
        )
    random = np.random.default_rng([seed, *name.encode()])
    times, start = [], 0.0
    for length, share in TRACES[name](random, seconds):
        count = random.poisson(capacity * share * length)
        times.append(start + np.sort(random.uniform(0.0, length, count)))
        start += length
    arrivals = np.concatenate(times)
    arrivals = arrivals[arrivals < seconds]
    ones = np.ones(len(arrivals), np.uint32)
    return Trace(name, seconds, (arrivals * 1e9).astype(np.int64), ones, ones * 0)


def with_lengths(trace: Trace, median: float, sigma: float, most: int, seed: int) -> Trace:
    """Return the trace with log-normal lengths of 1 to `most`."""
    random = np.random.default_rng([seed, 1])
    drawn = np.round(random.lognormal(np.log(median), sigma, len(trace.rows)))
    lengths = np.clip(drawn, 1, most).astype(np.uint32)
    return Trace(f"{trace.name}-lengths", trace.seconds, trace.times_ns, trace.rows, lengths)


def in_groups(trace: Trace, size: int, spread_s: float, seed: int) -> Trace:
    """Return that many requests for each of the trace's, uniformly within `spread_s` after it."""
    random = np.random.default_rng([seed, 2])
    later_ns = random.uniform(0.0, spread_s * 1e9, (len(trace.times_ns), size)).astype(np.int64)
    times_ns = np.sort((trace.times_ns[:, None] + later_ns).ravel())
    rows, lengths = np.repeat(trace.rows, size), np.repeat(trace.lengths, size)
    return Trace(f"{trace.name} in groups of {size}", trace.seconds, times_ns, rows, lengths)


def read(path: Path) -> Trace:
    """Return the trace of a CSV file of time (s)[,rows[,length]]; raises ConfigError."""
    hint = "each line is the time in s, then the rows and the length, or only the time"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = [line for line in csv.reader(file) if line and not line[0].startswith("#")]
        times = np.array([float(line[0]) for line in lines])
        rows, lengths = (
            np.array([int(line[at]) if len(line) > at else default for line in lines], np.int64)
            for at, default in ((1, 1), (2, 0))
        )
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise ConfigError(f"{path} holds no trace: {error}", hint) from None
    if not len(times) or not np.isfinite(times).all() or times.min() < 0 or times.max() > _MOST_S:
        raise ConfigError(f"{path} holds no trace: times are 0 to a million seconds", hint)
    if rows.min() < 1 or rows.max() > 65_536 or lengths.min() < 0 or lengths.max() > 2**31:
        raise ConfigError(f"{path} holds no trace: rows are 1 to 65536, lengths 0 to 2^31", hint)
    order = np.argsort(times, kind="stable")
    seconds = float(times.max()) + 1e-3
    return Trace(
        path.stem,
        seconds,
        (times[order] * 1e9).astype(np.int64),
        rows[order].astype(np.uint32),
        lengths[order].astype(np.uint32),
    )


def halves(trace: Trace) -> tuple[Trace, Trace]:
    """Return both halves of the trace's time; raises ConfigError if one has no request."""
    middle_ns = round(trace.seconds * 5e8)
    at = int(np.searchsorted(trace.times_ns, middle_ns))
    if not 0 < at < len(trace.times_ns):
        message = f"{trace.name} has no request in one half of its {trace.seconds:.3g} s"
        raise ConfigError(message, "one half is to tune policies on, the other to judge them on")
    half = partial(replace, trace, seconds=trace.seconds / 2)
    return (
        half(times_ns=trace.times_ns[:at], rows=trace.rows[:at], lengths=trace.lengths[:at]),
        half(
            times_ns=trace.times_ns[at:] - middle_ns,
            rows=trace.rows[at:],
            lengths=trace.lengths[at:],
        ),
    )
