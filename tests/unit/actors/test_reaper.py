import asyncio
import os
from pathlib import Path

import pytest

from lrai.actors.reaper import Reaper


@pytest.fixture
async def reaper():
    return Reaper()


def child(code):
    pid = os.fork()
    if not pid:
        os._exit(code)
    return pid


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def has_ended(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


async def test_whoever_waits_is_told_the_status(reaper):
    status = await asyncio.wait_for(reaper.end_of(child(3)), 10)
    assert os.waitstatus_to_exitcode(status) == 3


async def test_a_child_that_ended_before_the_question_is_told_too(reaper):
    pid = child(5)
    await until(lambda: has_ended(pid))
    assert os.waitstatus_to_exitcode(await asyncio.wait_for(reaper.end_of(pid), 10)) == 5


async def test_everyone_who_asks_for_one_child_gets_the_same_answer(reaper):
    pid = child(4)
    first, second = reaper.end_of(pid), reaper.end_of(pid)
    assert await asyncio.wait_for(first, 10) == await asyncio.wait_for(second, 10)


async def test_no_descriptor_is_left(reaper):
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.wait_for(reaper.end_of(child(0)), 10)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_strangers_are_collected_and_the_others_left_to_those_who_wait(reaper):
    awaited, stranger = child(6), child(0)
    end = reaper.end_of(awaited)
    await until(lambda: has_ended(stranger))
    reaper.sweep()
    assert os.waitstatus_to_exitcode(await asyncio.wait_for(end, 10)) == 6
    await asyncio.sleep(0)
    reaper.sweep()
    assert not Path(f"/proc/{stranger}").exists()
