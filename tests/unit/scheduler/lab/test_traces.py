import numpy as np
import pytest

from lrai.errors import ConfigError
from lrai.scheduler.lab import traces


@pytest.mark.parametrize("name", traces.TRACES)
def test_a_trace_repeats_by_seed_and_rises(name):
    first, again, other = (traces.make(name, 10_000.0, 20.0, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.times_ns, again.times_ns)
    assert not np.array_equal(first.times_ns[:100], other.times_ns[:100])
    assert (np.diff(first.times_ns) >= 0).all()
    assert first.times_ns[-1] < 20e9
    assert set(first.rows) == {1}
    assert set(first.lengths) == {0}


def test_a_poisson_trace_has_its_rate_and_the_spread_of_an_exponential():
    trace = traces.make("poisson-0.2", 10_000.0, 60.0, 3)
    gaps = np.diff(trace.times_ns) / 1e9
    assert gaps.mean() == pytest.approx(1 / 2_000, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)


def test_a_step_is_tenfold_and_bursts_are_denser_than_chance():
    step = traces.make("step", 10_000.0, 20.0, 4)
    before, after = np.histogram(step.times_ns, [0, 10e9, 20e9])[0]
    assert after / before == pytest.approx(10, rel=0.05)
    mmpp = traces.make("mmpp", 10_000.0, 20.0, 4)
    counts = np.histogram(mmpp.times_ns, np.arange(0, 20e9, 50e6))[0]
    assert counts.var() > 10 * counts.mean()


def test_lengths_are_log_normal_and_bounded():
    plain = traces.make("poisson-0.2", 10_000.0, 20.0, 5)
    trace = traces.with_lengths(plain, 64.0, 0.8, 512, 5)
    assert np.median(trace.lengths) == pytest.approx(64, rel=0.03)
    assert trace.lengths.min() >= 1
    assert trace.lengths.max() == 512
    assert np.array_equal(trace.times_ns, plain.times_ns)


def test_groups_arrive_together_and_keep_the_rows_of_their_first():
    plain = traces.make("poisson-0.05", 10_000.0, 5.0, 6)
    trace = traces.in_groups(plain, 4, 50e-6, 6)
    assert len(trace.times_ns) == len(trace.rows) == 4 * len(plain.times_ns)
    assert (np.diff(trace.times_ns) >= 0).all()
    near = np.searchsorted(plain.times_ns, trace.times_ns, side="right") - 1
    assert (trace.times_ns - plain.times_ns[near] < 50_000).all()


def test_a_file_is_read_sorted_and_cut_into_halves(tmp_path):
    path = tmp_path / "arrivals.csv"
    path.write_text("# time, rows, length\n2.5,3,70\n0.5\n1.0,2\n")
    trace = traces.read(path)
    assert trace.times_ns.tolist() == [500_000_000, 1_000_000_000, 2_500_000_000]
    assert (trace.rows.tolist(), trace.lengths.tolist()) == ([1, 2, 3], [0, 0, 70])
    first, second = traces.halves(trace)
    assert (len(first.rows), len(second.rows)) == (2, 1)
    assert second.times_ns[0] == 2_500_000_000 - round(trace.seconds * 5e8)


def test_a_file_whose_requests_all_come_late_cannot_be_cut(tmp_path):
    path = tmp_path / "arrivals.csv"
    path.write_text("1.0\n1.1\n")
    with pytest.raises(ConfigError, match="no request in one half"):
        traces.halves(traces.read(path))


@pytest.mark.parametrize(
    ("capacity", "seconds"), [(1e4, 0.0), (1e4, 1e30), (1e4, float("nan")), (1e300, 1.0)]
)
def test_a_trace_that_memory_cannot_hold_is_refused(capacity, seconds):
    with pytest.raises(ConfigError, match="cannot be made"):
        traces.make("drift", capacity, seconds, 1)


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon\n", "-1\n", "nan\n", "1,0\n", "1,1,-2\n", "1,70000\n"),
        *("1,99999999999999999999\n", '"' + 200_000 * "1"),
    ],
)
def test_a_file_without_arrivals_is_refused(tmp_path, text):
    path = tmp_path / "arrivals.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"holds no trace"):
        traces.read(path)
