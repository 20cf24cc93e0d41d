"""Brings models into service and out of it: from disk to an actor to the data plane."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lrai.actors.messages import ActorSpec
from lrai.actors.supervisor import Supervisor
from lrai.backends.base import BackendSpec
from lrai.config import Settings
from lrai.errors import LraiError, ModelLoadError, ModelNotFoundError
from lrai.gateway.faces.triton import model_config
from lrai.gateway.native import Event, Gateway
from lrai.gateway.oip import model_spec
from lrai.log import get_log
from lrai.machine import available_cpus, available_memory_bytes
from lrai.registry.index import Entry, Index
from lrai.registry.override import is_override, read_override, remove_folder
from lrai.registry.repository import ModelSource, Repository, VersionSource
from lrai.registry.resolve import ServedModel, model_settings, resolve

_MOST_EARLY_DEATHS: Final = 3
_log = get_log("models")


@dataclass
class _Waiting:
    """A version that is attached and has not answered yet."""

    ready: asyncio.Future[None]
    deaths: int = 0


class Lifecycle:
    """Loads and unloads models by name, and keeps the index true; one task per model at a time."""

    def __init__(
        self, settings: Settings, repository: Repository, gateway: Gateway, supervisor: Supervisor
    ) -> None:
        """Know the rooms; nothing is loaded yet."""
        self._repository = repository
        self._gateway = gateway
        self._supervisor = supervisor
        self._slots = asyncio.Semaphore(settings.repository.parallel_loads)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.index = Index(gateway.set_index)
        self._waiting: dict[int, _Waiting] = {}
        self._folders: dict[int, Path] = {}
        self._cpus = available_cpus()
        self._memory_bytes = available_memory_bytes() // 2

    async def load(
        self,
        name: str,
        parameters: Mapping[str, Any] | None = None,
        is_retrying: bool = True,
    ) -> None:
        """Load what is new or changed of a model, then unload what is gone; raises the first error.

        A failure leaves in service what was there. Without `is_retrying`, files that failed before
        are not tried again.
        """
        async with self._locks[name]:
            source, folder = await self._read(name, parameters)
            errors = []
            for version in source.versions:
                try:
                    await self._load_version(source, version, folder, is_retrying)
                except LraiError as error:
                    errors.append(error)
            kept = {version.version for version in source.versions}
            for surplus in self.index.served(name).keys() - kept if not errors else ():
                self._remove(name, surplus)
            if folder is not None and folder not in self._folders.values():
                remove_folder(folder)
            if errors:
                raise errors[0]

    async def unload(self, name: str, is_gone: bool = False) -> None:
        """Take all versions out of service; open requests finish. `is_gone`: forget it too."""
        async with self._locks[name]:
            if name not in self.index.names():
                raise ModelNotFoundError(f"failed to unload '{name}', no such model is known")
            for version in self.index.served(name):
                self._remove(name, version)
            if is_gone:
                self.index.forget(name)

    def replica_ready(self, event: Event) -> None:
        """Take notice that a replica takes batches."""
        self._supervisor.ready(event.replica)
        waiting = self._waiting.get(event.key)
        if waiting and not waiting.ready.done():
            waiting.ready.set_result(None)

    def replica_lost(self, event: Event) -> None:
        """Take notice that a replica's link is closed; a model never ready is given up."""
        self._supervisor.lost(event.replica, event.detail)
        waiting = self._waiting.get(event.key)
        if waiting is None or waiting.ready.done():
            return
        waiting.deaths += 1
        if waiting.deaths >= _MOST_EARLY_DEATHS:
            message = f"its process died {waiting.deaths} times before it was ready"
            waiting.ready.set_exception(ModelLoadError(message, hint="see the log for the reason"))

    async def removed(self, key: int) -> None:
        """Let go of a removed version's actors and files."""
        await self._supervisor.unload(key)
        folder = self._folders.pop(key, None)
        if folder not in self._folders.values():
            remove_folder(folder)

    async def _read(
        self, name: str, parameters: Mapping[str, Any] | None
    ) -> tuple[ModelSource, Path | None]:
        try:
            if parameters and is_override(parameters):
                return await asyncio.to_thread(read_override, self._repository, name, parameters)
            return await asyncio.to_thread(self._repository.find, name), None
        except ModelNotFoundError:
            raise
        except LraiError as error:
            self._fail(name, None, error)
            raise

    async def _load_version(
        self, source: ModelSource, version: VersionSource, folder: Path | None, is_retrying: bool
    ) -> None:
        name = source.name
        entry = self.index.entry(name, version.version)
        if version.fingerprint == entry.fingerprint:
            return
        if version.fingerprint == entry.refused and not is_retrying:
            return
        if entry.key is None:
            self.index.set(name, version.version, Entry("LOADING"))
        started = time.monotonic()
        try:
            async with self._slots:
                key, served = await self._bring_up(source, version)
        except LraiError as error:
            self._fail(name, version, error)
            raise
        if folder is not None:
            self._folders[key] = folder
        self.index.set(name, version.version, Entry("READY", "", key, version.fingerprint))
        self._tell(served, time.monotonic() - started)

    async def _bring_up(
        self, source: ModelSource, version: VersionSource
    ) -> tuple[int, ServedModel]:
        """Fork, load, attach, wait for the first replica, route; undo it all if a step fails."""
        actor = await self._supervisor.load(self._actor_spec(source, version))
        try:
            served = resolve(source, version.version, actor.signature, self._cpus)
            key = self._gateway.add_model(model_spec(served, model_config(served)))
        except LraiError:
            await actor.leave()
            raise
        waiting = self._waiting[key] = _Waiting(asyncio.get_running_loop().create_future())
        try:
            knobs = served.knobs
            tau_us, slack_us = round(knobs.tau_s * 1e6), round(knobs.slack_s * 1e6)
            self._gateway.set_knobs(key, knobs.k, tau_us, slack_us, knobs.work_conserving)
            self._supervisor.adopt(actor, key, served.model.replicas)
            await asyncio.wait_for(waiting.ready, served.model.load_timeout_s)
            self._gateway.publish(key)
        except BaseException as error:
            self._gateway.remove_model(key)
            if isinstance(error, TimeoutError):
                message = f"it was not ready within {served.model.load_timeout_s:g} s"
                raise ModelLoadError(message, hint="raise load_timeout") from error
            raise
        finally:
            del self._waiting[key]
        return key, served

    def _actor_spec(self, source: ModelSource, version: VersionSource) -> ActorSpec:
        model, _ = model_settings(source, self._cpus)
        return ActorSpec(
            name=source.name,
            version=version.version,
            backend=source.backend,
            model=BackendSpec(str(version.path), model.threads, model.provider, source.options),
            memory_limit_bytes=model.memory_limit_bytes or self._memory_bytes,
            execution_timeout_s=model.execution_timeout_s,
            load_timeout_s=model.load_timeout_s,
        )

    def _remove(self, name: str, version: str) -> None:
        self._gateway.remove_model(self.index.served(name)[version])
        self.index.set(name, version, Entry("UNAVAILABLE", "unloaded"))
        _log.info("model_unloaded", f"model '{name}' version {version} is unloaded")

    def _fail(self, name: str, version: VersionSource | None, error: LraiError) -> None:
        """Show the reason in the index; the log says each reason once."""
        number, mark = (version.version, version.fingerprint) if version else ("", ())
        if self.index.fail(name, number, mark, error):
            which = f"model '{name}'" + (f" version {number}" if number else "")
            is_served = self.index.entry(name, number).key is not None
            what = "is not changed" if is_served else "is not served"
            _log.error("model_failed", f"{which} {what}: {error}")

    def _tell(self, served: ServedModel, seconds: float) -> None:
        for note in served.notes:
            _log.warning("model_note", f"model '{served.name}': {note}")
        _log.info(
            "model_ready",
            f"model '{served.name}' version {served.version} is ready",
            backend=served.backend,
            provider=served.model.provider,
            threads=served.model.threads,
            replicas=served.model.replicas,
            max_batch_size=served.max_batch_size,
            seconds=round(seconds, 3),
        )
