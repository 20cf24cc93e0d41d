"""What this machine grants to the process: processors, memory, descriptors.

Container limits (cgroup v2 and v1) count, not the size of the host.
"""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60


def available_cpus(root: Path = _CGROUP) -> int:
    """Return how many processors may be used: the cgroup's quota or the affinity mask."""
    allowed = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _cgroup_folders(root, "cpu") if (quota := _cpu_quota(folder))]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def available_memory_bytes(root: Path = _CGROUP) -> int:
    """Return how much memory may be used: the cgroup's limit or the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = []
    for folder in _cgroup_folders(root, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / file)
            if text.isdigit() and int(text) < _NO_LIMIT:
                limits.append(int(text))
    return min([total, *limits])


def free_memory_bytes(root: Path = _CGROUP) -> int:
    """Return how much memory is free, or would be without cached files, within all limits."""
    lines = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines())
    free = [int(lines["MemAvailable"].split()[0]) << 10]
    for folder in _cgroup_folders(root, "memory"):
        for limit, usage in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            most, used = _read(folder / f"memory.{limit}"), _read(folder / f"memory.{usage}")
            if most.isdigit() and used.isdigit() and int(most) < _NO_LIMIT:
                free.append(int(most) - int(used) + _cached_bytes(folder))
    return max(0, min(free))


def _cached_bytes(folder: Path) -> int:
    """Bytes of files that a cgroup would drop for others first."""
    pairs = (line.split() for line in _read(folder / "memory.stat").splitlines())
    found = {name: int(value) for name, value in pairs}
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Folders of this process's cgroup and its ancestors; a limit in any of them binds."""
    folders = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        own = base / path.lstrip("/")
        folders += [own, *(parent for parent in own.parents if parent.is_relative_to(base))]
    return folders or [root, root / controller]


def _cpu_quota(folder: Path) -> float | None:
    """Processors that the cgroup grants per period; None = no limit."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota = _read(folder / "cpu.cfs_quota_us")
        period = _read(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit():
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
