"""The serving process: wires gateway, actors and registry together, and decides nothing itself.

Started by `lrai serve` as `python -m lrai.server`, with its settings as JSON in the environment, so
that it never holds what only the command line needs.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from lrai.actors.supervisor import Supervisor
from lrai.config import Settings
from lrai.errors import LraiError, ModelNotFoundError
from lrai.gateway.faces.model_control import ModelControl
from lrai.gateway.native import Event, Gateway, open_gateway, parse_model_config
from lrai.lifecycle import Lifecycle
from lrai.log import LEVELS, get_log, start_log
from lrai.registry.repository import Repository
from lrai.scheduler.control import Notice, Scheduler
from lrai.scheduler.store import Store

SETTINGS_VARIABLE: Final = "LRAI_SERVE_SETTINGS"
_TICK_S: Final = 0.1
_IDLE_TICK_S: Final = 0.5
_DRAIN_STEP_S: Final = 0.02
_DAY_S: Final = 86400
_log = get_log("server")


class Server:
    """One serving process; `run` ends after `stop` or a signal."""

    def __init__(
        self, settings: Settings, gateway: Gateway, supervisor: Supervisor, folder: Path
    ) -> None:
        """Wire the rooms; nothing runs yet. Models that clients send lie in `folder`."""
        self._settings = settings
        self._gateway = gateway
        self._supervisor = supervisor
        self._repository = Repository(settings, parse_model_config)
        store = Store(Path(settings.server.state)) if settings.server.state else None
        self._scheduler = Scheduler(gateway.set_knobs, self._notice, store)
        self._lifecycle = Lifecycle(
            settings, self._repository, gateway, supervisor, self._scheduler
        )
        self._calibrator = self._lifecycle.calibrator
        self._control = ModelControl(self._lifecycle, self._repository, gateway, folder)
        self._stopping = asyncio.Event()
        self._exit_code = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_s = time.monotonic()

    async def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        loop = asyncio.get_running_loop()
        _log.info("listening", "listening", **self._gateway.start())
        self._warn()
        loop.add_reader(self._gateway.event_fd, self._take_events)
        await self._supervisor.start()
        try:
            self._spawn(self._tick())
            self._spawn(self._start_models())
            await self._stopping.wait()
            await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._calibrator.stop()
            await self._supervisor.stop()
            self._close_scheduler()
            loop.remove_reader(self._gateway.event_fd)
            self._gateway.stop()
        _log.info("stopped", "the server has stopped")
        return self._exit_code

    def stop(self, exit_code: int = 0) -> None:
        """Begin to leave: not ready first, then open requests finish."""
        self._exit_code = self._exit_code or exit_code
        self._gateway.set_ready(False)
        self._stopping.set()

    def _warn(self) -> None:
        host = self._settings.gateway.host
        if not host.startswith(("127.", "unix:")) and host not in ("localhost", "::1", "[::1]"):
            message = f"everybody who reaches {host} can use the models: there is no authentication"
            _log.warning("open_host", f"{message} hint: use --host 127.0.0.1, or a proxy")
        for note in self._settings.notes:
            _log.warning("setting_ignored", note)
        for folder in self._repository.strangers():
            _log.warning("folder_ignored", f"the folder {folder!r} in the repository is no model")

    async def _start_models(self) -> None:
        wanted = self._settings.repository
        names = await asyncio.to_thread(self._repository.names)
        self._lifecycle.index.know(names)
        if wanted.model_control_mode == "explicit" and not self._repository.is_single:
            chosen = wanted.load_model
            names = names if "*" in chosen else list(chosen)
        loads = [self._lifecycle.load(name) for name in names]
        results = await asyncio.gather(*loads, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if isinstance(error, ModelNotFoundError) or not isinstance(error, LraiError):
                _log.error("model_failed", str(error) or repr(error))
        if errors and (wanted.exit_on_error or self._repository.is_single):
            self.stop(exit_code=1)
            return
        ready = not (errors and wanted.strict_readiness) and not self._stopping.is_set()
        self._gateway.set_ready(ready)
        loaded = f"{len(names) - len(errors)} of {len(names)} models"
        message = f"{loaded} are served; the server is{'' if ready else ' not'} ready"
        _log.info("settled", message, seconds=round(time.monotonic() - self._started_s, 3))
        _notify("READY=1")
        if wanted.model_control_mode == "poll":
            self._spawn(self._control.follow_disk(wanted.poll_secs))

    async def _tick(self) -> None:
        """Let others look at the data plane's numbers, more often while there is traffic."""
        while True:
            windows = self._gateway.observe()
            try:
                self._supervisor.check(windows)
                self._scheduler.tick(time.monotonic(), windows, int(time.time() // _DAY_S))
                self._calibrator.look(windows)
            except Exception as error:  # noqa: BLE001, watching must go on
                _log.error("check_failed", repr(error))
            is_busy = windows or self._calibrator.is_measuring
            await asyncio.sleep(_TICK_S if is_busy else _IDLE_TICK_S)

    def _close_scheduler(self) -> None:
        try:
            self._scheduler.close()
        except Exception as error:  # noqa: BLE001, a full disk keeps nobody from leaving
            _log.error("state_lost", f"what the scheduler learnt could not be kept: {error}")

    def _notice(self, notice: Notice) -> None:
        """Say what the scheduler has noticed."""
        subject = notice.subject
        write = _log.info if notice.kind == "latency_back" else _log.warning
        write(
            notice.kind,
            f"model '{subject.name}': {notice.message}",
            model=subject.name,
            version=subject.version,
            **notice.fields,
        )

    def _explain(self, command: Event) -> None:
        """Answer why a model's knobs are what they are."""
        name, version = command.model, str(command.parameters.get("version", ""))
        try:
            if plain := self._scheduler.why(name, version):
                plain["calibration"] = self._calibrator.why(name, plain["version"])
                self._gateway.answer(command.ticket, "", json.dumps(plain))
                return
        except Exception as error:  # noqa: BLE001, the events behind this one must be heard
            message = f"model '{name}' cannot be explained: {error!r}"
            self._gateway.answer(command.ticket, "internal", message)
            return
        which = f"'{name}'" + (f" version {version}" if version else "")
        self._gateway.answer(command.ticket, "not_found", f"model {which} is not served")

    def _take_events(self) -> None:
        for event in self._gateway.events():
            match event.event:
                case "replica_ready":
                    self._supervisor.ready(event.replica)
                case "replica_lost":
                    self._supervisor.lost(event.replica, event.detail)
                case "command" if event.kind == "why":
                    self._explain(event)
                case "command":
                    self._spawn(self._control.obey(event))
                case "removed":
                    self._spawn(self._lifecycle.removed(event.key))
                case "poison":
                    model = self._lifecycle.name_of(event.key)
                    message = (
                        f"a request ended an actor of model '{model}' ({event.reason})"
                        " and is refused for ten minutes"
                    )
                    _log.warning("poison", message, model=model, digest=event.digest)
                case kind:
                    _log.write(LEVELS[event.level], kind, event.message, {})

    async def _drain(self) -> None:
        _notify("STOPPING=1")
        limit_s = self._settings.server.drain_timeout_s
        self._gateway.drain()
        _log.info("draining", f"finishing open requests, at most {limit_s:g} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._gateway.open_connections():
                    await asyncio.sleep(_DRAIN_STEP_S)
        if left := self._gateway.open_connections():
            _log.warning("drain_ended", f"{left} connections were cut after {limit_s:g} s")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("task_failed", repr(error))


def _notify(state: str) -> None:
    """Tell systemd, if it started us."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place:
        address = "\0" + place[1:] if place.startswith("@") else place
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link, contextlib.suppress(OSError):
            link.sendto(state.encode(), address)


def _obey_signals(server: Server, folder: str) -> None:
    """The first SIGTERM or SIGINT drains, the second ends at once."""

    def end_now(number: int, _frame: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    def drain(number: int) -> None:
        _log.info("signal", f"received {signal.Signals(number).name}; a second one ends at once")
        for one in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(one)
            signal.signal(one, end_now)
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, drain, number)


async def serve(settings: Settings) -> int:
    """Serve in this process until a signal comes; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="lrai-", ignore_cleanup_errors=True) as folder:
        gateway = open_gateway(settings)
        server = Server(settings, gateway, Supervisor(gateway, Path(folder)), Path(folder))
        _obey_signals(server, folder)
        return await server.run()


def main() -> int:
    """Read the settings from the environment and serve."""
    text = os.environ.pop(SETTINGS_VARIABLE, "")
    if not text:
        print("error: lrai.server was started by itself hint: use lrai serve", file=sys.stderr)  # noqa: T201
        return 2
    settings = Settings.from_json(text)
    start_log(settings.log.format, settings.log.level)
    try:
        return asyncio.run(serve(settings))
    except LraiError as error:
        _log.error("start_failed", str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
