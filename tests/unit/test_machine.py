from pathlib import Path

import pytest

from lrai import machine


def test_quota_of_cgroup_v2_bounds_the_processors(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert machine.available_cpus(tmp_path) == 1


def test_quota_is_rounded_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.available_cpus(tmp_path) == 2


def test_quota_of_cgroup_v1_bounds_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text("300000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.available_cpus(tmp_path) == 3


def test_no_quota_leaves_the_affinity_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5})
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.available_cpus(tmp_path) == 3


def test_limit_of_the_cgroup_bounds_the_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machine.available_memory_bytes(tmp_path) == 1 << 20


def test_no_limit_leaves_the_memory_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory_bytes(tmp_path) > 1 << 26


def test_free_memory_counts_cached_files_within_the_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert machine.free_memory_bytes(tmp_path) == 48576
    (tmp_path / "memory.stat").write_text("anon 4096\ninactive_file 500000\n")
    assert machine.free_memory_bytes(tmp_path) == 548576
    (tmp_path / "memory.current").write_text("9999999\n")
    assert machine.free_memory_bytes(tmp_path) == 0


def test_free_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert 0 < machine.free_memory_bytes(tmp_path) < machine.available_memory_bytes(tmp_path)
