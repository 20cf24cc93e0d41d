"""Starts actors, keeps them alive, and says why each one ended.

Runs on the server's loop, on the cold path only: batches go between data plane and actors without
it, so a supervisor that is late delays restarts and nothing else.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import zmq

from lrai.actors import watch
from lrai.actors.actor import Actor
from lrai.actors.limits import adopt_orphans, open_cgroup
from lrai.actors.messages import ActorMessage, ActorSpec, ForkMessage
from lrai.actors.reaper import Reaper
from lrai.actors.spawn import Spawner
from lrai.backends.base import Padding
from lrai.core.model import Allocation
from lrai.core.ports import DataPlane, Window
from lrai.errors import ModelLoadError
from lrai.log import get_log

_SLOW_CHECK_S: Final = 1.0
_MOST_EARLY_DEATHS: Final = 3
# A link closes with its process, unless that has left a child which holds it open.
_LINK_S: Final = 1.0
# A spare is for models that run so often that even a restart is long, and small enough to double.
_SPARE_BATCHES_PER_S: Final = 100
_SPARE_BYTES: Final = 16 << 20
_SPARE_IDLE_S: Final = 60.0
_log = get_log("actors")


@dataclass(eq=False)
class _Place:
    """One replica of a model: an actor, and after its end the next."""

    key: int
    """The model in the data plane."""
    number: int
    first: Actor
    """What its actors must be like."""
    actor: Actor | None
    ready: asyncio.Future[None]
    """Done when one of the places that were made together takes batches."""
    most_rows: int
    """Of a batch."""
    is_retired: bool = False
    """Others have taken its place: its actor has no successor."""
    early_deaths: int = 0
    """Deaths and failed loads since the last good answer."""
    died_s: float | None = None
    spare: asyncio.Task[Actor | None] | None = None
    """The next actor, loaded while this one serves; its result is None if it could not be."""

    def drop_spare(self) -> None:
        """End the spare, if there is one."""
        spare, self.spare = self.spare, None
        if spare and not spare.cancel() and (actor := spare.result()):
            actor.dismiss()


class Supervisor:
    """Parent of all actors."""

    def __init__(
        self,
        data_plane: DataPlane,
        folder: Path,
        on_sample: Callable[[int, Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Serve `data_plane`; the socket of actors lies in `folder`.

        `on_sample` gets a model's key and a summary of recent outputs.
        """
        self._data_plane = data_plane
        self._endpoint = f"ipc://{folder / 'actors'}"
        self._on_sample = on_sample
        self._reaper = Reaper()
        self._spawner = Spawner(self._reaper)
        self._actors: dict[str, Actor] = {}
        self._replicas: dict[int, _Place] = {}
        self._batches: dict[int, int] = {}
        self._busy_s: dict[int, float] = {}
        self._keepers: dict[int, dict[_Place, asyncio.Task[None]]] = {}
        self._started = 0
        self._checked_s = self._slow_checked_s = time.monotonic()

    async def start(self) -> None:
        """Become the parent of orphans and open the socket that actors report to."""
        adopt_orphans()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(self._endpoint)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._hear)

    async def stop(self) -> None:
        """End all actors and templates at once; open requests have been answered before."""
        ending = [actor.gone for actor in self._actors.values() if actor.pid]
        unloading = [asyncio.ensure_future(self.unload(key)) for key in list(self._keepers)]
        await asyncio.sleep(0)  # No keeper may be left to raise a successor.
        for actor in self._actors.values():
            actor.dismiss()
        await asyncio.gather(*unloading, *map(asyncio.shield, ending))
        await self._spawner.stop()
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close(linger=0)
        self._context.term()

    async def load(self, spec: ActorSpec, number: int = 0) -> Actor:
        """Fork an actor and wait for its signature; raises `ModelLoadError` with the reason."""
        actor = await self._fork(spec, number)
        try:
            async with asyncio.timeout(spec.load_timeout_s):
                await actor.loaded
        except TimeoutError:
            actor.dismiss()
            raise ModelLoadError(
                f"its process did not load it within {spec.load_timeout_s:g} s",
                hint="raise load_timeout",
            ) from None
        except BaseException:
            actor.dismiss()
            raise
        return actor

    async def adopt(self, actor: Actor, key: int, replicas: int, most_rows: int) -> None:
        """Give the actor to model `key` of the data plane and keep `replicas` like it alive.

        Returns when one takes batches; raises `ModelLoadError` if three die before that.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        places = [_Place(key, number, actor, None, ready, most_rows) for number in range(replicas)]
        places[0].actor = actor
        keepers = {place: loop.create_task(self._keep(place)) for place in places}
        self._keepers.setdefault(key, {}).update(keepers)
        first = keepers[places[0]]
        await asyncio.wait([ready, first], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await first

    async def reallocate(self, key: int, allocation: Allocation) -> None:
        """Let actors with other threads, or another number of them, take over a model.

        The former ones leave when the first of the new takes batches, and what they run then is
        run again. Raises `ModelLoadError`, and changes nothing, if there can be no new ones.
        """
        former = dict(self._keepers[key])
        place = next(iter(former))
        actor = await self._load_like(place.first, allocation.threads)
        try:
            if key not in self._keepers:
                raise ModelLoadError("it was unloaded meanwhile")
            await self.adopt(actor, key, allocation.replicas, place.most_rows)
        except ModelLoadError:
            await actor.leave()
            await self._retire(key, self._keepers.get(key, {}).keys() - former.keys())
            raise
        await self._retire(key, former.keys())

    async def _retire(self, key: int, places: Collection[_Place]) -> None:
        """End places of a model that goes on without them."""
        keepers = self._keepers.get(key, {})
        ending = {place: keepers.pop(place) for place in places if place in keepers}
        for place, keeper in ending.items():
            place.is_retired = True
            if place.actor:
                place.actor.dismiss()
            else:
                keeper.cancel()
        await asyncio.gather(*ending.values(), return_exceptions=True)

    async def unload(self, key: int) -> None:
        """End the actors of a model whose links the data plane has closed."""
        keepers = self._keepers.pop(key, {}).values()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for known in (self._batches, self._busy_s):
            known.pop(key, None)

    def actors_of(self, key: int) -> list[Actor]:
        """Return the actors that serve a model now."""
        return [place.actor for place in self._keepers.get(key, ()) if place.actor]

    def ready(self, replica: int) -> None:
        """Take notice that a replica takes batches."""
        place = self._replicas.get(replica)
        if place is None or (actor := place.actor) is None:
            return
        if not place.ready.done():
            place.ready.set_result(None)
        if actor.succeeds_s is not None:
            gap_ms = (time.monotonic() - actor.succeeds_s) * 1000
            _log.info("actor_back", f"{actor} serves again after {gap_ms:.0f} ms")

    def lost(self, replica: int, detail: str = "") -> None:
        """Take notice that a replica's link is closed; `detail` says what it did against the rules.

        The data plane gets its `settle` as soon as the end of the process is known as well.
        """
        if (place := self._replicas.get(replica)) and place.actor:
            place.actor.lose(detail)

    def check(self, windows: Sequence[Window]) -> None:
        """Look for actors that hang, are silent or too large."""
        self._hear()
        now_s = time.monotonic()
        if now_s - self._checked_s > watch.FLOOR_S:
            # This loop or the whole machine stood still: nobody is blamed for silence.
            for actor in self._actors.values():
                actor.heard_s = now_s
        self._checked_s = now_s
        for window in windows:
            for replica, age_ms in window.inflight_age_ms:
                if (suspect := self._replicas.get(replica)) and suspect.actor:
                    suspect.actor.check_batch(age_ms / 1000, window, suspect.most_rows)
        if now_s - self._slow_checked_s >= _SLOW_CHECK_S:
            self._note_busy(windows, now_s)
            self._slow_checked_s = now_s
            for place in self._replicas.values():
                if place.actor:
                    place.actor.check_itself()
                    self._keep_spare(place, place.actor, now_s)
            if all(actor.pid for actor in self._actors.values()):
                self._reaper.sweep()

    def _note_busy(self, windows: Sequence[Window], now_s: float) -> None:
        """Take notice of the models that have run many batches since the last look."""
        for window in windows:
            before = self._batches.get(window.key, window.batches)
            self._batches[window.key] = window.batches
            if window.batches - before >= _SPARE_BATCHES_PER_S * (now_s - self._slow_checked_s):
                self._busy_s[window.key] = now_s

    def _keep_spare(self, place: _Place, actor: Actor, now_s: float) -> None:
        """Load the next actor of a busy place ahead, so that a death costs a hand-over only."""
        if now_s - self._busy_s.get(place.key, -_SPARE_IDLE_S) >= _SPARE_IDLE_S:
            place.drop_spare()
        elif place.spare is None and actor.used_bytes <= _SPARE_BYTES:
            place.spare = asyncio.get_running_loop().create_task(self._load_next(place))

    async def _next(self, place: _Place) -> Actor | None:
        """Return the spare, or else load an actor."""
        spare, place.spare = place.spare, None
        actor = await spare if spare else None
        return actor if actor and not actor.gone.done() else await self._load_next(place)

    async def _keep(self, place: _Place) -> None:
        """Let a place's actors serve, one after the other, until cancelled.

        Raises `ModelLoadError` if the first place of a model gets none of them ready.
        """
        try:
            while not place.is_retired and (
                place.number or place.ready.done() or place.early_deaths < _MOST_EARLY_DEATHS
            ):
                if place.actor is None:
                    await asyncio.sleep(watch.backoff_s(place.early_deaths))
                    place.actor = await self._next(place)
                if place.actor is not None:
                    await self._serve(place, place.actor)
                    place.actor = None
        finally:
            place.drop_spare()
            if place.actor is not None:
                await place.actor.leave()
        if place.is_retired:
            return
        message = f"its process died {place.early_deaths} times before it was ready"
        raise ModelLoadError(message, hint="see the log for the reason")

    async def _load_next(self, place: _Place) -> Actor | None:
        """Load an actor that is like the first one, or say why there is none."""
        spec = place.first.spec
        try:
            return await self._load_like(place.first, spec.model.threads, place.number)
        except (ModelLoadError, OSError) as error:
            place.early_deaths += 1
            wait_s = watch.backoff_s(place.early_deaths)
            message = f"no successor for {spec} #{place.number}, next try in {wait_s:g} s: {error}"
            _log.error("actor_failed", message)
        return None

    async def _load_like(self, first: Actor, threads: int, number: int = 0) -> Actor:
        """Load an actor that is like another one; raises `ModelLoadError` if there is none."""
        model = replace(first.spec.model, threads=threads, padding=Padding())
        actor = await self.load(replace(first.spec, model=model), number)
        if actor.signature == first.signature:
            return actor
        await actor.leave()
        raise ModelLoadError(
            f"its file has changed to {actor.signature}",
            hint="load the model again, or restore the file",
        )

    async def _serve(self, place: _Place, actor: Actor) -> None:
        """Attach an actor, wait for its end, and tell the data plane why it ended."""
        actor.key, actor.succeeds_s, replica = place.key, place.died_s, 0
        try:
            if not actor.gone.done():
                replica = self._data_plane.attach(place.key, actor.link.detach())
                self._replicas[replica] = place
        except Exception as error:  # noqa: BLE001 - the native error has no name in this room
            # The actor has died this moment, or its model is going.
            actor.kill("", f"could not be attached: {error}")
        try:
            end = await asyncio.shield(actor.gone)
            if replica:
                # What the actor had sent before its end counts, so the link is read out first.
                await asyncio.wait([actor.lost], timeout=_LINK_S)
                detail = actor.lost.result() if actor.lost.done() else ""
                fault = "retired" if place.is_retired else end.fault
                self._data_plane.settle(replica, "signal" if detail else fault)
        finally:
            self._replicas.pop(replica, None)
        if place.is_retired:
            return
        place.died_s = time.monotonic()
        place.early_deaths = 1 if actor.has_answered else place.early_deaths + 1
        wait_s = watch.backoff_s(place.early_deaths)
        then = f"a successor starts in {wait_s:g} s" if wait_s else "a successor starts at once"
        _log.warning(
            "actor_died", f"{actor} {end.words}; {then}", model=str(actor.spec), fault=end.fault
        )

    async def _fork(self, spec: ActorSpec, number: int) -> Actor:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._started += 1
        actor = Actor(f"{os.getpid()}-{self._started}", spec, number, ours)
        self._actors[actor.id] = actor
        message = ForkMessage(actor.id, number, spec, self._endpoint, os.getpid())
        try:
            with theirs:
                actor.pid = await self._spawner.spawn(message, theirs)
        except BaseException:
            ours.close()
            del self._actors[actor.id]
            raise
        actor.cgroup = open_cgroup(actor.id, actor.pid, spec.memory_limit_bytes)
        self._reaper.end_of(actor.pid).add_done_callback(
            lambda status: self._ended(actor, status.result())
        )
        return actor

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
                actor.hear(message)
                if message.kind == "sample" and actor.key and self._on_sample:
                    self._on_sample(actor.key, message.body)

    def _ended(self, actor: Actor, status: int) -> None:
        self._hear()
        actor.end(status)
        del self._actors[actor.id]
