import asyncio
import os
from pathlib import Path

import pytest

from lrai.actors.reaper import Reaper


@pytest.fixture
async def reaper():
    reaper = Reaper()
    reaper.start()
    yield reaper
    reaper.stop()


def child(code):
    pid = os.fork()
    if not pid:
        os._exit(code)
    return pid


async def test_whoever_waits_is_told_the_status(reaper):
    ended = asyncio.get_running_loop().create_future()
    reaper.watch(child(3), ended.set_result)
    assert os.waitstatus_to_exitcode(await asyncio.wait_for(ended, 10)) == 3


async def test_a_status_that_comes_before_the_question_is_kept(reaper):
    ended = asyncio.get_running_loop().create_future()
    with reaper.expecting():
        pid = child(5)
        async with asyncio.timeout(10):
            while pid not in reaper._early:
                await asyncio.sleep(0.01)
        reaper.watch(pid, ended.set_result)
        assert os.waitstatus_to_exitcode(await asyncio.wait_for(ended, 10)) == 5


async def test_strangers_are_reaped_and_forgotten(reaper):
    pid = child(0)
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)
    assert reaper._early == {}
