"""What a process may use, and when it must end: memory limits, oom score, parent death, reaping."""

import ctypes
import os
import resource
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_OOM_SCORE: Final = 500
_NICE: Final = 10
_LOWEST_NICE: Final = 19
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_CGROUPS: Final = Path("/sys/fs/cgroup")


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ends, so that their ends are seen here."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent_pid: int) -> None:
    """Be killed when `parent_pid`, the parent by now or within moments, ends; leave if it has.

    The kernel signals on every change of parent, so this waits until a process that only
    stood between has gone.
    """
    with suppress(ProcessLookupError):
        if (between := os.getppid()) != parent_pid:
            _wait_for_end(between)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def _wait_for_end(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        waiter = select.poll()
        waiter.register(descriptor, select.POLLIN)
        waiter.poll(1000)
    finally:
        os.close(descriptor)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def give_way() -> None:
    """Let light models and the gateway go first when processors are short; there is no way back.

    It costs no throughput: what they leave is most of the time (measured, `noise` and `heavy`
    among the benchmarks).
    """
    for thread in os.listdir("/proc/self/task"):
        # It may have ended since; a lower priority than that stays.
        with suppress(OSError):
            nice = os.getpriority(os.PRIO_PROCESS, int(thread))
            os.setpriority(os.PRIO_PROCESS, int(thread), max(nice, _NICE))


def run_when_idle() -> None:
    """Run only while nobody else wants the processor; threads that start later do the same."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_NICE)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def raise_oom_score() -> None:
    """Let the kernel choose this process before the server when memory runs out."""
    with suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(descriptor, b"%d" % _OOM_SCORE)
        finally:
            os.close(descriptor)


def limit_data(limit_bytes: int) -> None:
    """Make allocations fail once this process has `limit_bytes` more than now."""
    used = int(_read_proc("/proc/self/statm").split()[5]) * _PAGE
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + limit_bytes
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def waiting_s(pid: int) -> float:
    """Return how long a thread, or a process's first, has waited for a processor; 0 = unknown."""
    fields = _read_proc(f"/proc/{pid}/schedstat").split()
    return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0


def private_bytes(pid: int) -> int:
    """Return the memory in use that is neither a file's nor shared; 0 if the process has gone."""
    try:
        fields = _read_proc(f"/proc/{pid}/statm").split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE


def _read_proc(path: str) -> bytes:
    """Read a short file. Barer than `pathlib`, whose objects would cost every actor 300 KB."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def open_cgroup(actor: str, pid: int, limit_bytes: int, root: Path = _CGROUPS) -> Path | None:
    """Put an actor under a limit of its own where systemd has delegated a tree to the server.

    Returns the folder for `close_cgroup`; None if there is no such tree.
    """
    base = _delegated(root)
    if base is None or not limit_bytes:
        return None
    folder = base / f"lrai-{actor}"
    with suppress(OSError):
        (base / "cgroup.subtree_control").write_text("+memory")
        folder.mkdir()
        (folder / "memory.max").write_text(str(limit_bytes))
        (folder / "memory.oom.group").write_text("1")
        (folder / "cgroup.procs").write_text(str(pid))
    return folder


def close_cgroup(folder: Path) -> bool:
    """Remove the cgroup of an ended actor; return whether the kernel had to kill in it."""
    is_oom = False
    with suppress(OSError):
        lines = (folder / "memory.events").read_text().splitlines()
        is_oom = any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines)
        folder.rmdir()
    return is_oom


def _delegated(root: Path) -> Path | None:
    """Return the tree above this process's cgroup if it is ours to cut up (systemd says so)."""
    _, is_unified, place = Path("/proc/self/cgroup").read_text().rpartition("0::/")
    base = (root / place.partition("\n")[0]).parent
    with suppress(OSError):
        if is_unified and os.getxattr(base, "user.delegate") == b"1":
            return base
    return None
