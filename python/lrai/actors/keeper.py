"""Keeps one replica of a model alive: an actor, and after its end the next."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Final

from lrai.actors.actor import Actor
from lrai.actors.messages import ActorSpec
from lrai.actors.watch import backoff_s
from lrai.core.model import Signature
from lrai.core.ports import DataPlane
from lrai.errors import ModelLoadError
from lrai.log import get_log

# A link closes with its process, unless that has left a child which holds it open.
_LINK_S: Final = 1.0
_log = get_log("actors")


@dataclass
class Keeper:
    """One replica's place in a model."""

    key: int
    """The model in the data plane."""
    spec: ActorSpec
    number: int
    signature: Signature
    load: Callable[[ActorSpec, int], Awaitable[Actor]]
    data_plane: DataPlane
    replicas: MutableMapping[int, Actor]
    """Everyone who is attached, by the data plane's number; kept true here."""
    _early_deaths: int = 0
    """Deaths and failed loads since the last good answer."""
    _died_s: float | None = None
    _actor: Actor | None = None

    async def keep(self, actor: Actor | None) -> None:
        """Let `actor` serve, and its successors, until cancelled; then let the last one leave."""
        self._actor = actor
        try:
            while True:
                if self._actor is None:
                    await asyncio.sleep(backoff_s(self._early_deaths))
                    self._actor = await self._load_next()
                if self._actor is not None:
                    await self._serve(self._actor)
                    self._actor = None
        finally:
            if self._actor is not None:
                await self._actor.leave()

    async def _load_next(self) -> Actor | None:
        """Load an actor that is like the first one, or say why there is none."""
        try:
            actor = await self.load(self.spec, self.number)
        except ModelLoadError as error:
            self._early_deaths += 1
            wait_s = backoff_s(self._early_deaths)
            message = f"no successor for {self.spec} #{self.number}: {error}"
            _log.error("actor_failed", f"{message}; next try in {wait_s:g} s")
            return None
        actor.succeeds_s = self._died_s
        if replace(actor.signature, load_ms=0.0) == replace(self.signature, load_ms=0.0):
            return actor
        self._early_deaths += 1
        message = f"the file of {self.spec} has changed to {actor.signature}"
        _log.error("actor_failed", f"{message} hint: load the model again, or restore the file")
        await actor.leave()
        return None

    async def _serve(self, actor: Actor) -> None:
        """Attach an actor, wait for its end, and tell the data plane why it ended."""
        actor.key, replica = self.key, 0
        try:
            if not actor.gone.done():
                replica = self.data_plane.attach(self.key, actor.link.detach())
                self.replicas[replica] = actor
        except Exception as error:  # noqa: BLE001 - the native error has no name in this room
            # The actor has died this moment, or its model is going.
            actor.kill("", f"could not be attached: {error}")
        try:
            end = await asyncio.shield(actor.gone)
            if replica:
                # What the actor had sent before its end counts, so the link is read out first.
                await asyncio.wait([actor.lost], timeout=_LINK_S)
                detail = actor.lost.result() if actor.lost.done() else ""
                self.data_plane.settle(replica, "signal" if detail else end.fault)
        finally:
            self.replicas.pop(replica, None)
        self._died_s = time.monotonic()
        self._early_deaths = 1 if actor.has_answered else self._early_deaths + 1
        wait_s = backoff_s(self._early_deaths)
        then = f"a successor starts in {wait_s:g} s" if wait_s else "a successor starts at once"
        _log.warning(
            "actor_died", f"{actor} {end.words}; {then}", model=str(actor.spec), fault=end.fault
        )
