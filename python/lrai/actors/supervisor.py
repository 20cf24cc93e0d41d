"""Starts actors, keeps them alive, and says why each one ended.

Runs on the server's loop, on the cold path only: batches go between data plane and actors without
it, so a supervisor that is late delays restarts and nothing else.
"""

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

import zmq

from lrai.actors import watch
from lrai.actors.actor import Actor, Lineage
from lrai.actors.limits import ActorCgroup, adopt_orphans, private_bytes, waiting_s
from lrai.actors.messages import ActorMessage, ActorSpec, ForkMessage
from lrai.actors.reaper import Reaper
from lrai.actors.spawn import Spawner
from lrai.core.model import Signature
from lrai.core.ports import DataPlane, Fault, Window
from lrai.errors import ModelLoadError
from lrai.log import get_log

_LEAVE_S: Final = 2.0
_SLOW_CHECK_S: Final = 1.0
_log = get_log("actors")


class Supervisor:
    """Parent of all actors."""

    def __init__(
        self,
        data_plane: DataPlane,
        on_sample: Callable[[int, Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Serve `data_plane`; `on_sample` gets a model's key and a summary of recent outputs."""
        self._data_plane = data_plane
        self._on_sample = on_sample
        self._reaper = Reaper()
        self._spawner = Spawner(self._reaper)
        self._actors: dict[str, Actor] = {}
        self._lineages: dict[int, list[Lineage]] = {}
        self._replicas: dict[int, Actor] = {}
        self._started = 0
        self._checked_s = self._slow_checked_s = time.monotonic()

    async def start(self) -> None:
        """Become the parent of orphans and open the socket that actors report to."""
        adopt_orphans()
        self._reaper.start()
        self._folder = Path(tempfile.mkdtemp(prefix="lrai-"))
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._endpoint = f"ipc://{self._folder / 'actors'}"
        self._socket.bind(self._endpoint)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._hear)

    async def stop(self) -> None:
        """End all actors and templates at once; open requests have been answered before."""
        for key in list(self._lineages):
            await self._close_lineages(key)
        await _end([actor for actor in self._actors.values() if actor.pid])
        await self._spawner.stop()
        self._reaper.stop()
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close(linger=0)
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def load(self, spec: ActorSpec, number: int = 0) -> Actor:
        """Fork an actor and wait for its signature; raises `ModelLoadError` with the reason."""
        actor = await self._fork(spec, number)
        try:
            async with asyncio.timeout(spec.load_timeout_s):
                await actor.loaded
        except TimeoutError:
            await self.discard(actor)
            raise ModelLoadError(
                f"its process did not load it within {spec.load_timeout_s:g} s",
                hint="raise load_timeout",
            ) from None
        except BaseException:
            actor.dismiss()
            actor.signal(SIGKILL)
            raise
        return actor

    async def discard(self, actor: Actor) -> None:
        """End a loaded actor that nobody adopts."""
        await _dismiss([actor])

    def adopt(self, actor: Actor, key: int, replicas: int) -> None:
        """Give the actor to model `key` of the data plane and keep `replicas` like it alive."""
        spec, signature = actor.spec, actor.signature
        lineages = [Lineage(key, spec, number, signature) for number in range(replicas)]
        self._lineages[key] = lineages
        self._attach(lineages[0], actor)
        for lineage in lineages[1:]:
            self._succeed(lineage)

    def ready(self, replica: int) -> None:
        """Take notice that a replica takes batches."""
        actor = self._replicas.get(replica)
        lineage = actor.lineage if actor else None
        if lineage and lineage.died_s is not None:
            gap_ms = (time.monotonic() - lineage.died_s) * 1000
            lineage.died_s = None
            _log.info("actor_back", f"{actor} serves again after {gap_ms:.0f} ms")

    def lost(self, replica: int, detail: str = "") -> None:
        """Take notice that a replica's link is closed; `detail` says what it did against the rules.

        The data plane gets its `settle` as soon as the end of the process is known as well.
        """
        actor = self._replicas.get(replica)
        if actor is None:
            return
        actor.loss = detail
        if actor.gone.done():
            self._settle(actor)
        elif detail:
            actor.kill("signal", f"was ended for this: {detail}")
        else:
            # Nearly always it is dying already, and this changes nothing.
            actor.signal(SIGKILL)

    async def unload(self, key: int) -> None:
        """End the actors of a model whose links the data plane has closed."""
        await _dismiss(await self._close_lineages(key))

    def check(self, windows: Iterable[Window]) -> None:
        """Look for actors that hang, are silent or too large; called ten times a second."""
        self._hear()
        now_s = time.monotonic()
        if now_s - self._checked_s > watch.FLOOR_S:
            # This loop or the whole machine stood still: nobody is blamed for silence.
            for actor in self._actors.values():
                actor.heard_s = now_s
        self._checked_s = now_s
        busy = set()
        for window in windows:
            for replica, age_ms in window.inflight_age_ms:
                busy.add(replica)
                suspect = self._replicas.get(replica)
                if suspect:
                    _end_if_hanging(suspect, age_ms / 1000, window)
        if now_s - self._slow_checked_s >= _SLOW_CHECK_S:
            self._slow_checked_s = now_s
            for actor in self._replicas.values():
                _end_if_too_large(actor)
                if actor.replica not in busy and now_s - actor.heard_s > watch.SILENCE_S:
                    actor.kill("hang", f"gave no sign of life for {watch.SILENCE_S:g} s")

    async def _fork(self, spec: ActorSpec, number: int) -> Actor:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._started += 1
        actor = Actor(
            id=f"{os.getpid()}-{self._started}",
            spec=spec,
            number=number,
            link_fd=ours.detach(),
            loaded=loop.create_future(),
            gone=loop.create_future(),
        )
        self._actors[actor.id] = actor
        message = ForkMessage(actor.id, number, spec, self._endpoint, os.getpid())
        try:
            with theirs, self._reaper.expecting():
                actor.pid = await self._spawner.spawn(message, theirs)
                self._reaper.watch(actor.pid, partial(self._ended, actor))
        except BaseException:
            actor.close_link()
            del self._actors[actor.id]
            raise
        actor.cgroup = ActorCgroup(actor.id, actor.pid, spec.memory_limit_bytes)
        return actor

    def _attach(self, lineage: Lineage, actor: Actor) -> None:
        """Give a loaded actor to the data plane as the lineage's present one."""
        if actor.gone.done():
            self._mourn(lineage, actor)
            return
        actor.lineage, lineage.actor = lineage, actor
        try:
            actor.replica = self._data_plane.attach(lineage.key, actor.take_link())
        except Exception as error:  # noqa: BLE001 - the native error has no name in this room
            # The actor has died this moment, which `_ended` will see to, or its model is going.
            actor.kill("", f"could not be attached: {error}")
            return
        self._replicas[actor.replica] = actor

    def _succeed(self, lineage: Lineage) -> None:
        lineage.successor = asyncio.get_running_loop().create_task(self._raise_successor(lineage))

    async def _raise_successor(self, lineage: Lineage) -> None:
        """Load the next actor of a lineage, as often as it takes."""
        while True:
            await asyncio.sleep(watch.backoff_s(lineage.early_deaths))
            try:
                actor = await self.load(lineage.spec, lineage.number)
            except ModelLoadError as error:
                lineage.early_deaths += 1
                wait_s = watch.backoff_s(lineage.early_deaths)
                message = f"no successor for {lineage.spec} #{lineage.number}: {error}"
                _log.error("actor_failed", f"{message}; next try in {wait_s:g} s")
                continue
            if _is_same(actor.signature, lineage.signature):
                self._attach(lineage, actor)
                return
            lineage.early_deaths += 1
            await self.discard(actor)
            message = f"the file of {lineage.spec} has changed to {actor.signature}"
            _log.error("actor_failed", f"{message} hint: load the model again, or restore the file")

    def _hear(self) -> None:
        """Take all messages of actors; news of those that have ended is dropped."""
        while True:
            try:
                sender, text = self._socket.recv_multipart(zmq.NOBLOCK)
                message = ActorMessage.decode(text)
            except zmq.Again:
                return
            except (TypeError, ValueError):
                continue
            if actor := self._actors.get(sender.decode(errors="replace")):
                self._take(actor, message)

    def _take(self, actor: Actor, message: ActorMessage) -> None:
        actor.hear(message)
        lineage = actor.lineage
        if lineage and message.kind == "answered":
            lineage.early_deaths = 0
        elif lineage and message.kind == "sample" and self._on_sample:
            self._on_sample(lineage.key, message.body)

    def _ended(self, actor: Actor, status: int) -> None:
        self._hear()
        actor.ended(status)
        del self._actors[actor.id]
        self._settle(actor)
        lineage = actor.lineage
        if lineage and lineage.key in self._lineages and not actor.is_leaving:
            self._mourn(lineage, actor)

    def _mourn(self, lineage: Lineage, actor: Actor) -> None:
        """Log a death and see to the successor."""
        lineage.actor = None
        lineage.died_s = time.monotonic()
        lineage.early_deaths += 1
        wait_s = watch.backoff_s(lineage.early_deaths)
        then = f"a successor starts in {wait_s:g} s" if wait_s else "a successor starts at once"
        end = actor.gone.result()
        _log.warning(
            "actor_died", f"{actor} {end.words}; {then}", model=str(actor.spec), fault=end.fault
        )
        self._succeed(lineage)

    def _settle(self, actor: Actor) -> None:
        """Tell the data plane why a lost replica died, once its process is known to be gone."""
        if actor.replica is None or actor.loss is None:
            return
        if self._replicas.pop(actor.replica, None):
            fault: Fault = "signal" if actor.loss else actor.gone.result().fault
            self._data_plane.settle(actor.replica, fault)

    async def _close_lineages(self, key: int) -> list[Actor]:
        """Raise no more successors for a model; return its living actors."""
        lineages = self._lineages.pop(key, [])
        successors = [lineage.successor for lineage in lineages if lineage.successor]
        for successor in successors:
            successor.cancel()
        await asyncio.gather(*successors, return_exceptions=True)
        actors = [lineage.actor for lineage in lineages if lineage.actor]
        self._replicas = {
            replica: actor
            for replica, actor in self._replicas.items()
            if actor.lineage not in lineages
        }
        return actors


async def _dismiss(actors: Sequence[Actor]) -> None:
    """Let actors leave, and end those that do not."""
    for actor in actors:
        actor.dismiss()
    if actors:
        await asyncio.wait([actor.gone for actor in actors], timeout=_LEAVE_S)
    await _end(actors)


async def _end(actors: Sequence[Actor]) -> None:
    """End actors at once."""
    for actor in actors:
        actor.is_leaving = True
        actor.signal(SIGKILL)
    for actor in actors:
        await asyncio.shield(actor.gone)


def _is_same(one: Signature, other: Signature) -> bool:
    return replace(one, load_ms=0.0) == replace(other, load_ms=0.0)


def _end_if_hanging(actor: Actor, age_s: float, window: Window) -> None:
    limit_s = watch.hang_limit_s(
        actor.spec.execution_timeout_s, window.compute_bounds_us, window.compute_counts
    )
    waited_s = waiting_s(actor.pid)
    if age_s < actor.batch_age_s:
        actor.waited_s = waited_s
    actor.batch_age_s = age_s
    # On a machine that is too busy an actor waits for its turn, which is not its fault.
    ran_s = age_s - (waited_s - actor.waited_s)
    if ran_s > limit_s:
        actor.kill("hang", f"ran one batch for {ran_s:.1f} s, the limit is {limit_s:.1f} s")


def _end_if_too_large(actor: Actor) -> None:
    limit = actor.spec.memory_limit_bytes
    used = private_bytes(actor.pid) - actor.baseline_bytes if limit else 0
    if used > limit:
        words = f"uses {used >> 20} MiB, its memory limit is {limit >> 20} MiB"
        actor.kill("memory", words)
