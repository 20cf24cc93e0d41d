"""Triton's model repository extension: clients, or the files themselves, change what is served."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from lrai.errors import LraiError
from lrai.gateway.native import Event, Gateway
from lrai.log import get_log
from lrai.registry.index import Index
from lrai.registry.override import is_override, read_override
from lrai.registry.repository import ModelSource, Repository

_log = get_log("models")


class Models(Protocol):
    """What brings models into service and out of it."""

    @property
    def index(self) -> Index:
        """What is known of every model."""
        ...

    async def load(
        self,
        name: str,
        read: Callable[[], ModelSource] | None = None,
        is_retrying: bool = True,
    ) -> None:
        """Load what is new or changed of a model; raises LraiError."""
        ...

    async def unload(self, name: str, is_gone: bool = False) -> None:
        """Take a model out of service; raises LraiError."""
        ...


class ModelControl:
    """Obeys commands and follows the disk."""

    def __init__(
        self, models: Models, repository: Repository, gateway: Gateway, folder: Path
    ) -> None:
        """Know the rooms; models that clients send lie in `folder`."""
        self._models = models
        self._repository = repository
        self._gateway = gateway
        self._folder = folder

    async def obey(self, command: Event) -> None:
        """Do what a client asks, then answer it; never raises."""
        code, message, read = "", "", None
        try:
            if command.kind == "unload":
                await self._models.unload(command.model)
            else:
                name, parameters = command.model, command.parameters or {}
                if is_override(parameters):
                    read = partial(read_override, self._repository, name, parameters, self._folder)
                await self._models.load(name, read)
        except LraiError as error:
            code, message = error.code, str(error)
            if not message.startswith("failed to "):
                message = f"failed to {command.kind} '{command.model}', {message}"
        except Exception as error:  # noqa: BLE001, a defect of ours leaves no client waiting
            code, message = "internal", f"{command.kind} of '{command.model}' failed: {error!r}"
            _log.error("command_failed", message)
        self._gateway.answer(command.ticket, code, message)

    async def follow_disk(self, period_s: float) -> None:
        """Look at the disk again and again."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.look_at_disk()
            except LraiError as error:
                _log.warning("poll_failed", str(error))

    async def look_at_disk(self) -> None:
        """Load what is new or changed, unload what is gone; failures stand in the index."""
        names = await asyncio.to_thread(self._repository.names)
        gone = self._models.index.names() - set(names)
        tasks = [self._models.unload(name, is_gone=True) for name in sorted(gone)]
        tasks += [self._models.load(name, is_retrying=False) for name in names]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, LraiError):
                raise result
