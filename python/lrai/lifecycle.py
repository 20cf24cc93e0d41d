"""Brings models into service and out of it: from disk to an actor to the data plane."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from lrai.actors.messages import ActorSpec
from lrai.actors.supervisor import Supervisor
from lrai.backends.base import BackendSpec, Padding
from lrai.calibration.calibrator import Calibrator
from lrai.calibration.subject import identity_of, is_calibrated, subject_of
from lrai.config import ModelConfig, Settings
from lrai.core.model import first_edges
from lrai.errors import LraiError, ModelLoadError, ModelNotFoundError
from lrai.gateway.faces.triton import model_config
from lrai.gateway.native import Gateway
from lrai.log import get_log
from lrai.machine import available_memory_bytes
from lrai.registry.index import Entry, Index
from lrai.registry.override import remove_folder
from lrai.registry.repository import Fingerprint, ModelSource, Repository, VersionSource
from lrai.registry.resolve import ServedModel, model_settings, resolve
from lrai.scheduler.control import Scheduler, Subject
from lrai.scheduler.knobs import Knobs

_log = get_log("models")


class Lifecycle:
    """Loads and unloads models by name, and keeps the index true; one task per model at a time."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        gateway: Gateway,
        supervisor: Supervisor,
        scheduler: Scheduler,
    ) -> None:
        """Know the rooms; nothing is loaded yet."""
        self._repository = repository
        self._gateway = gateway
        self._supervisor = supervisor
        self._scheduler = scheduler
        self._slots = asyncio.Semaphore(settings.repository.parallel_loads)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.index = Index(gateway.set_index)
        self._sources: dict[int, ModelSource] = {}
        self.calibrator = Calibrator(supervisor, scheduler.store)
        self._memory_bytes = available_memory_bytes() // 2

    async def load(
        self,
        name: str,
        read: Callable[[], ModelSource] | None = None,
        is_retrying: bool = True,
    ) -> None:
        """Load what is new or changed of a model, then unload what is gone; raises the first error.

        `read` finds the model elsewhere than in the repository. A failure leaves in service what
        was there. Without `is_retrying`, files that failed before are not tried again.
        """
        async with self._locks[name]:
            try:
                source = await asyncio.to_thread(read or partial(self._repository.find, name))
            except LraiError as error:
                if not isinstance(error, ModelNotFoundError):
                    self._fail(name, "", (), error)
                raise
            errors = []
            for version in source.versions:
                try:
                    await self._load_version(source, version, is_retrying)
                except LraiError as error:
                    self._fail(name, version.version, version.fingerprint, error)
                    errors.append(error)
            self._let_go(source)
            if errors:
                raise errors[0]
            for surplus in self.index.served(name).keys() - {
                one.version for one in source.versions
            }:
                self._remove(name, surplus)

    async def unload(self, name: str, is_gone: bool = False) -> None:
        """Take all versions out of service; open requests finish. `is_gone`: forget it too."""
        async with self._locks[name]:
            if name not in self.index.names():
                raise ModelNotFoundError(f"failed to unload '{name}', no such model is known")
            for version in self.index.served(name):
                self._remove(name, version)
            if is_gone:
                self.index.forget(name)

    async def removed(self, key: int) -> None:
        """Let go of a removed version's actors and files."""
        self.calibrator.remove(key)
        await self._supervisor.unload(key)
        self._scheduler.remove(key)
        if source := self._sources.pop(key, None):
            self._let_go(source)

    def name_of(self, key: int) -> str:
        """Return the name of the model that the data plane calls `key`; empty if it has gone."""
        return self._sources[key].name if key in self._sources else ""

    def _let_go(self, source: ModelSource) -> None:
        """Remove a model's private files unless they are served."""
        if all(source.folder != other.folder for other in self._sources.values()):
            remove_folder(source.folder)

    async def _load_version(
        self, source: ModelSource, version: VersionSource, is_retrying: bool
    ) -> None:
        name, number = source.name, version.version
        entry = self.index.entry(name, number)
        if version.fingerprint == entry.fingerprint:
            return
        if version.fingerprint == entry.refused and not is_retrying:
            return
        if entry.key is None:
            self.index.set(name, number, Entry("LOADING"))
        started = time.monotonic()
        async with self._slots:
            key, served = await self._bring_up(source, version)
        self._sources[key] = source
        self.index.set(name, number, Entry("READY", "", key, version.fingerprint))
        self._tell(served, time.monotonic() - started)

    async def _bring_up(
        self, source: ModelSource, version: VersionSource
    ) -> tuple[int, ServedModel]:
        """Fork, load, attach, wait for the first replica, route; undo it all if a step fails."""
        cpus, identity = self.calibrator.cpus, identity_of(source, version)
        measured = None
        if is_calibrated(source):
            measured = self.calibrator.recall(source.name, version.version, identity)
        settings, _ = model_settings(source, cpus, measured)
        spec = self._actor_spec(source, version, settings)
        actor = await self._supervisor.load(spec)
        try:
            served = resolve(source, version.version, actor.signature, cpus, measured)
            key = self._gateway.add_model(served, model_config(served))
        except LraiError:
            await actor.leave()
            raise
        model = served.model
        try:
            self._scheduler.add(key, _subject(served), served.scheduler, _fixed_knobs(served))
            async with asyncio.timeout(model.load_timeout_s):
                most_rows = max(1, served.max_batch_size)
                await self._supervisor.adopt(actor, key, model.replicas, most_rows)
            self._gateway.publish(key)
        except TimeoutError as error:
            self._gateway.remove_model(key)
            message = f"it was not ready within {model.load_timeout_s:g} s"
            raise ModelLoadError(message, hint="raise load_timeout") from error
        except BaseException:
            self._gateway.remove_model(key)
            raise
        if is_calibrated(source):
            self.calibrator.add(key, subject_of(source, served, spec, identity))
        return key, served

    def _actor_spec(
        self, source: ModelSource, version: VersionSource, model: ModelConfig
    ) -> ActorSpec:
        return ActorSpec(
            name=source.name,
            version=version.version,
            backend=source.backend,
            model=BackendSpec(
                str(version.path),
                model.threads,
                model.provider,
                source.options,
                Padding(
                    model.padding,
                    model.padding_tolerance,
                    model.length_dimension,
                    model.mask_inputs,
                ),
            ),
            memory_limit_bytes=model.memory_limit_bytes or self._memory_bytes,
            execution_timeout_s=model.execution_timeout_s,
            load_timeout_s=model.load_timeout_s,
        )

    def _remove(self, name: str, version: str) -> None:
        self._gateway.remove_model(self.index.served(name)[version])
        self.index.set(name, version, Entry("UNAVAILABLE", "unloaded"))
        _log.info("model_unloaded", f"model '{name}' version {version} is unloaded")

    def _fail(self, name: str, version: str, fingerprint: Fingerprint, error: LraiError) -> None:
        """Show the reason in the index; the log says each reason once."""
        if self.index.fail(name, version, fingerprint, error):
            which = f"model '{name}'" + (f" version {version}" if version else "")
            is_served = self.index.entry(name, version).key is not None
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


def _subject(served: ServedModel) -> Subject:
    ragged = served.ragged
    # Edges that somebody has set stay.
    is_free = ragged is not None and ragged.edges == first_edges(ragged.longest)
    return Subject(
        served.name,
        served.version,
        served.max_batch_size,
        served.model.replicas,
        ragged.longest if ragged and is_free else 0,
    )


def _fixed_knobs(served: ServedModel) -> Knobs | None:
    """The knobs that somebody has set, which the scheduler leaves alone."""
    said = served.knobs
    if served.is_tuned:
        return None
    return Knobs(
        k=said.k,
        tau_s=said.tau_s,
        slack_s=said.slack_s,
        work_conserving=said.work_conserving,
        token_budget=said.token_budget,
    )
