"""What the system says about processes: memory, CPU, stolen time; starts and ends them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since boot, summed over all cores."""

    busy: float
    stolen: float
    total: float

    def since(self, earlier: CpuTimes) -> CpuTimes:
        """The difference."""
        return CpuTimes(
            self.busy - earlier.busy, self.stolen - earlier.stolen, self.total - earlier.total
        )

    @property
    def stolen_percent(self) -> float:
        """Share of the time that the hypervisor gave to someone else."""
        return 100 * self.stolen / self.total if self.total else 0.0


def cpu_times() -> CpuTimes:
    """The machine's CPU times now, from /proc/stat."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, idle, iowait, irq, softirq, steal = (
        int(field) / _TICKS_PER_SECOND for field in line.split()[1:9]
    )
    busy = user + nice + system + irq + softirq
    return CpuTimes(busy, steal, busy + idle + iowait + steal)


def _parent(pid: int) -> int:
    """The parent of a process; 0 if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def descendants(root: int) -> list[int]:
    """The process and everything below it."""
    parents = {int(path.name): _parent(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    found = [root]
    for pid in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def memory_pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size: shared pages are divided among those that share them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that these processes have used so far."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_SECOND


def open_descriptors(pid: int) -> int:
    """How many descriptors a process has open; 0 if it is gone."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def own_cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for: the client's."""
    return sum(os.times()[:4])


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _die_with_parent() -> None:
    """Runs in the child: an interrupted benchmark leaves no server behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Starts a process in its own session, its output in a file."""
    # Grandchildren that outlive their parent come to us, so that `stop` can reap them.
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with log.open("wb") as output:
        return subprocess.Popen(
            arguments,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread exists yet that could hold a lock
        )


def stop(process: subprocess.Popen[bytes], grace_s: float = 15.0) -> None:
    """Asks the process to end, then ends it and everything that was below it, by process id."""
    family = descendants(process.pid)
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 3.0
    left = [pid for pid in family[1:] if _is_running(pid)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [pid for pid in left if _is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for pid in family[1:]:
        _reap(pid)


def _reap(pid: int) -> None:
    """Collects a grandchild that became ours; its parent may have done so before."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
