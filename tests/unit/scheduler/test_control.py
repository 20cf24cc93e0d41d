import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lrai.config import SchedulerConfig
from lrai.errors import ConfigError
from lrai.scheduler.control import Notice, Scheduler, Subject
from lrai.scheduler.history import Digest, has_slowed
from lrai.scheduler.knobs import Knobs
from lrai.scheduler.policies import POLICIES
from lrai.scheduler.store import Store

from .fakes import BOUNDS_US, FakeWindow

MLP = Subject("mlp", "1", 32)
DAY = 20_000


class Plane:
    """A data plane whose one model takes as long as it is told."""

    def __init__(self, store: Store | None = None, **config: Any) -> None:
        self.knobs: dict[int, dict[str, Any]] = {}
        self.notices: list[Notice] = []
        self.sets = 0
        self.scheduler = Scheduler(self._set, self.notices.append, store)
        self.config = SchedulerConfig(**config)
        self.window = FakeWindow(
            latency_bounds_us=list(BOUNDS_US), latency_counts=[0] * (len(BOUNDS_US) + 1)
        )
        self.now_s = 100.0

    def _set(self, key: int, text: str) -> None:
        self.knobs[key] = json.loads(text)
        self.sets += 1

    def run(self, ticks: int, requests: int = 200, latency_us: float = 500, day: int = DAY) -> None:
        """Let time pass with traffic of single rows."""
        window = self.window
        bucket = next(at for at, bound in enumerate(BOUNDS_US) if bound >= latency_us)
        for _ in range(ticks):
            self.now_s += 0.1
            window.requests += requests
            window.rows_in += requests
            window.latency_counts[bucket] += requests
            window.service = [
                (0, 1, 50, 50 * 93.0, 50 * 93.0**2),
                (0, 4, 9, 9 * 132.0, 9 * 132.0**2),
            ]
            window.busy_ns += 5_800_000
            self.scheduler.tick(self.now_s, [window], day)

    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.notices]


def test_settings_name_every_policy() -> None:
    kind = SchedulerConfig.__dataclass_fields__["policy"].metadata["kind"]
    assert sorted(kind.word.split("|")) == sorted(POLICIES)


def test_knobs_follow_what_is_seen_and_are_told_only_when_they_change() -> None:
    plane = Plane(latency_goal_s=0.001)
    plane.scheduler.add(1, MLP, plane.config)
    assert plane.knobs[1]["work_conserving"]
    plane.run(30)
    assert plane.knobs[1]["k"] > 1
    assert plane.knobs[1]["goal_us"] == 1000
    told = plane.sets
    plane.run(50)
    assert plane.sets - told <= 2


def test_knobs_that_somebody_set_stay() -> None:
    plane = Plane(latency_goal_s=0.001)
    plane.scheduler.add(1, MLP, plane.config, Knobs(k=5, tau_s=0.002, work_conserving=False))
    plane.run(30)
    assert (plane.knobs[1]["k"], plane.knobs[1]["tau_us"], plane.sets) == (5, 2000, 1)
    assert plane.scheduler.why("mlp")["policy"] == "static"  # type: ignore[index]


@pytest.mark.parametrize("fixed", [None, Knobs(k=5)])
def test_edges_of_buckets_are_learnt_beside_every_policy(fixed: Knobs | None) -> None:
    plane = Plane()
    plane.scheduler.add(1, Subject("encoder", "1", 32, longest=128), plane.config, fixed)
    assert plane.knobs[1]["edges"] == []
    plane.window.lengths = [(20, 100), (70, 20)]
    plane.run(20)
    assert plane.knobs[1]["edges"] == [20, 70, 96, 128]
    assert plane.knobs[1]["k"] == (5 if fixed else plane.knobs[1]["k"])
    told = plane.sets
    plane.run(20)
    assert plane.knobs[1]["edges"] == [20, 70, 96, 128]
    assert plane.sets - told <= 3


def test_lengths_of_a_model_whose_edges_are_set_teach_nothing() -> None:
    plane = Plane()
    plane.scheduler.add(1, MLP, plane.config)
    plane.window.lengths = [(20, 100), (70, 20)]
    plane.run(20)
    assert plane.knobs[1]["edges"] == []


def test_unknown_models_are_passed_over() -> None:
    plane = Plane()
    plane.run(1)
    assert plane.knobs == {}
    plane.scheduler.remove(7)


def test_why_tells_what_was_seen_and_set() -> None:
    plane = Plane(latency_goal_s=0.001)
    plane.scheduler.add(1, MLP, plane.config)
    assert plane.scheduler.why("other") is None
    plane.run(250)
    told = plane.scheduler.why("mlp")
    assert told is not None
    assert told["latency_goal_ms"] == 1.0
    assert told["p99_ms"] == pytest.approx(0.5, rel=0.1)
    assert told["knobs"]["k"] == plane.knobs[1]["k"]
    assert "2000 requests/s" in told["why"] or "requests/s" in told["why"]
    assert told["seen"][-1]["requests_per_s"] == pytest.approx(2000, rel=0.01)
    assert told["seen"][-1]["busy"] == pytest.approx(0.058, rel=0.01)
    json.dumps(told)


def test_why_means_the_latest_version_unless_said() -> None:
    plane = Plane()
    for key, version in ((1, "9"), (2, "10")):
        plane.scheduler.add(key, Subject("mlp", version, 8), plane.config)
    assert plane.scheduler.why("mlp")["version"] == "10"  # type: ignore[index]
    assert plane.scheduler.why("mlp", "9")["version"] == "9"  # type: ignore[index]
    plane.scheduler.remove(2)
    assert plane.scheduler.why("mlp")["version"] == "9"  # type: ignore[index]


def test_rate_after_a_silence_is_not_spread_over_it() -> None:
    plane = Plane()
    plane.scheduler.add(1, MLP, plane.config)
    plane.run(20)
    for _ in range(100):
        plane.now_s += 0.5
        plane.scheduler.tick(plane.now_s, [], DAY)
    plane.run(1)
    policy = plane.scheduler._controllers[1].policy
    assert policy.arrivals.rate == pytest.approx(2000, rel=0.01)  # type: ignore[attr-defined]


def test_state_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    plane = Plane(Store(tmp_path), latency_goal_s=0.001)
    other = sqlite3.connect(tmp_path / "scheduler.sqlite")
    other.execute("DROP TABLE learnt")
    plane.scheduler.add(1, MLP, plane.config)
    assert plane.kinds() == ["learnt_ignored"]
    plane.run(30)
    assert plane.kinds() == ["learnt_ignored", "state_lost"]
    assert "hint: " in plane.notices[-1].message
    assert plane.knobs[1]["goal_us"]
    plane.scheduler.remove(1)
    plane.scheduler.save()
    assert plane.kinds()[2:] == ["state_lost"]


def test_days_that_could_not_be_kept_are_kept_later(tmp_path: Path) -> None:
    plane = Plane(Store(tmp_path))
    plane.scheduler.add(1, MLP, plane.config)
    plane.run(20)
    other = sqlite3.connect(tmp_path / "scheduler.sqlite")
    other.execute("ALTER TABLE digests RENAME TO away")
    plane.run(20, day=DAY + 1)
    plane.scheduler.save()
    assert plane.kinds() == ["state_lost"]
    other.execute("ALTER TABLE away RENAME TO digests")
    plane.run(20, day=DAY + 1)
    plane.scheduler.close()
    assert [one.day for one in Store(tmp_path).digests("mlp", "1", 10)] == [DAY]


def test_alert_below_the_goal_is_not_taken_back_at_once() -> None:
    plane = Plane(latency_goal_s=0.001, alert_factor=0.25)
    plane.scheduler.add(1, MLP, plane.config)
    plane.run(60)
    assert plane.kinds() == ["latency_alert"]


def test_alert_is_raised_once_and_taken_back() -> None:
    plane = Plane(latency_goal_s=0.001)
    plane.scheduler.add(1, MLP, plane.config)
    plane.run(100)
    assert plane.kinds() == []
    plane.run(150, latency_us=1_400)
    assert plane.kinds() == []
    plane.run(150, latency_us=4_000)
    assert plane.kinds() == ["latency_alert"]
    assert plane.notices[0].fields["goal_s"] == 0.001
    plane.run(150)
    assert plane.kinds() == ["latency_alert", "latency_back"]


def test_goal_that_cannot_be_met_is_said_once() -> None:
    plane = Plane(latency_goal_s=50e-6)
    plane.scheduler.add(1, MLP, plane.config)
    plane.run(30, latency_us=40)
    assert plane.kinds() == ["goal_unreachable"]
    assert "50" in plane.notices[0].message or "0.05 ms" in plane.notices[0].message


def test_history_is_bounded() -> None:
    plane = Plane()
    plane.scheduler.add(1, MLP, plane.config)
    controller = plane.scheduler._controllers[1]
    for _ in range(500):
        plane.now_s += 9.9
        plane.scheduler.tick(plane.now_s, [], DAY)
        plane.run(1)
    records = controller.history.records
    assert records[-1].at_s - records[0].at_s <= 3600
    assert len(records) >= 300


def digest(day: int, p99_s: float) -> Digest:
    return Digest(day, 1000, p99_s / 2, p99_s, 0, 0)


def test_three_slow_days_are_a_reason_to_tune_again() -> None:
    days = [digest(at, p99_s) for at, p99_s in enumerate((10e-3, 10e-3, 13e-3, 12.5e-3, 13e-3))]
    assert has_slowed(days, 3, 0.2)
    assert not has_slowed(days[:-1], 3, 0.2)
    assert not has_slowed(days, 3, 0.3)
    assert not has_slowed(days, 0, 0.2)
    assert not has_slowed(days[:3], 3, 0.2)


def test_days_are_digested_kept_and_compared(tmp_path: Path) -> None:
    plane = Plane(Store(tmp_path / "state"))
    plane.scheduler.add(1, MLP, plane.config)
    for at, latency_us in enumerate((500, 500, 800, 800, 800, 800)):
        plane.run(20, latency_us=latency_us, day=DAY + at)
    assert plane.kinds() == ["retune"]
    plane.scheduler.close()
    kept = Store(tmp_path / "state").digests("mlp", "1", 10)
    assert [one.day for one in kept] == [DAY + at for at in range(5)]
    assert kept[0].p99_s == pytest.approx(500e-6, rel=0.1)
    assert kept[-1].p99_s == pytest.approx(800e-6, rel=0.1)
    assert sum(one.requests for one in kept) == pytest.approx(5 * 20 * 200, abs=10 * 200)


def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    first = Plane(Store(tmp_path), latency_goal_s=0.001)
    first.scheduler.add(1, MLP, first.config)
    first.run(30)
    first.scheduler.close()
    second = Plane(Store(tmp_path), latency_goal_s=0.001)
    second.scheduler.add(1, MLP, second.config)
    assert "nothing" not in second.scheduler.why("mlp")["why"]  # type: ignore[index]
    other = Plane(Store(tmp_path), latency_goal_s=0.001)
    other.scheduler.add(1, Subject("mlp", "2", 32), other.config)
    assert "nothing" in other.scheduler.why("mlp")["why"]  # type: ignore[index]


def test_learnt_is_saved_while_it_runs(tmp_path: Path) -> None:
    plane = Plane(Store(tmp_path))
    plane.scheduler.add(1, MLP, plane.config)
    plane.run(5)
    assert Store(tmp_path).learnt("mlp", "1", "model-based")


def test_store_in_an_impossible_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        Store(tmp_path / "file" / "state")


def test_a_policy_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane(latency_goal_s=0.001)
    plane.scheduler.add(1, MLP, plane.config)
    plane.run(30)
    assert plane.knobs[1]["goal_us"]

    def fail(_seen: object) -> Knobs:
        raise ArithmeticError("division by zero")

    monkeypatch.setattr(plane.scheduler._controllers[1].policy, "decide", fail)
    plane.run(5)
    assert plane.kinds() == ["policy_failed"]
    assert plane.knobs[1]["work_conserving"]
    assert plane.scheduler.why("mlp")["policy"] == "greedy"  # type: ignore[index]


def test_what_cannot_be_read_is_not_learnt(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep("mlp", "1", "model-based", {"service": {"0": {"1": [1, 2]}}})
    plane = Plane(store, latency_goal_s=0.001)
    plane.scheduler.add(1, MLP, plane.config)
    assert plane.kinds() == ["learnt_ignored"]
    plane.run(30)
    assert plane.knobs[1]["goal_us"]
    plane.scheduler.close()
    with sqlite3.connect(tmp_path / "scheduler.sqlite") as database:
        database.execute("UPDATE learnt SET state = '{'")
    broken = Plane(Store(tmp_path), latency_goal_s=0.001)
    broken.scheduler.add(1, MLP, broken.config)
    assert broken.kinds() == ["learnt_ignored"]
