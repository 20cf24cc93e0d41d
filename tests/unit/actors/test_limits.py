import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

from lrai.actors import limits
from lrai.actors.limits import close_cgroup, open_cgroup, private_bytes


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_private_memory_grows_with_what_is_written_and_ends_with_the_process():
    # A mapping of its own: what the allocator hands out may have been resident before.
    with mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        before = private_bytes(os.getpid())
        block.write(bytes(1 << 20) * 8)
        assert private_bytes(os.getpid()) - before > 6 << 20
    assert private_bytes(1 << 22) == 0


def test_beyond_the_limit_allocations_fail_and_the_process_lives():
    code = (
        "from lrai.actors.limits import limit_data\n"
        "limit_data(32 << 20)\n"
        "try: bytearray(64 << 20)\n"
        "except MemoryError: print('refused', len(bytearray(8 << 20)))\n"
    )
    assert run(code) == (0, "refused 8388608", "")


def test_a_limit_set_from_outside_is_not_raised():
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    code = (
        "import resource\n"
        "from lrai.actors.limits import limit_data\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))\n"
        "limit_data(1 << 40)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[1] == 1 << 30)\n"
    )
    assert run(code)[1] == "True"
    assert resource.getrlimit(resource.RLIMIT_DATA)[1] == hard


def test_a_process_ends_with_its_parent():
    code = (
        "import os, sys, time\n"
        "from lrai.actors.limits import end_with_parent\n"
        "parent, (reading, writing) = os.getpid(), os.pipe()\n"
        "if os.fork() == 0:\n"
        "    end_with_parent(parent)\n"
        "    os.write(writing, b'x')\n"
        "    sys.stdout.close()\n"
        "    time.sleep(60)\n"
        "os.read(reading, 1)\n"
        "os._exit(0)\n"
    )
    # The child holds standard error open: that this returns at all says that it has ended.
    assert run(code)[0] == 0


def test_a_process_whose_parent_has_gone_leaves_at_once():
    code = "from lrai.actors.limits import end_with_parent\nend_with_parent(1 << 22)\nprint('here')"
    assert run(code) == (0, "", "")


class TestCgroup:
    """On a folder that looks like a delegated tree."""

    def test_an_actor_gets_a_cgroup_with_its_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "_delegated", lambda root: root)
        folder = open_cgroup("a1", 4242, 1 << 20, tmp_path)
        assert folder == tmp_path / "lrai-a1"
        assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
        assert (folder / "memory.max").read_text() == str(1 << 20)
        assert (folder / "cgroup.procs").read_text() == "4242"
        (folder / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
        assert close_cgroup(folder)

    def test_an_actor_that_left_in_peace_was_not_killed(self, tmp_path):
        (tmp_path / "memory.events").write_text("oom_kill 0\n")
        assert not close_cgroup(tmp_path)

    def test_without_delegation_there_is_none(self, tmp_path):
        assert open_cgroup("a1", 4242, 1 << 20, tmp_path) is None
        assert list(Path(tmp_path).iterdir()) == []
