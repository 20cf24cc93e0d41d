"""The server's end of a template: starts it, asks it for actors, notices when it is gone."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Final

from lrai.actors.messages import ForkedMessage, ForkMessage
from lrai.actors.reaper import Reaper
from lrai.errors import ModelLoadError

_ATTEMPTS: Final = 3
_PATIENCE_S: Final = 60.0
_CONTROL_FD: Final = 3
_ENVIRONMENT: Final[Mapping[str, str]] = {
    # Actors get their processors from the engine's options; libraries must not start more threads.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # onnxruntime's uploader would open a database and start a thread in the template.
    "ORT_DISABLE_TELEMETRY": "1",
    # Every arena keeps memory that was freed.
    "MALLOC_ARENA_MAX": "2",
}


class TemplateLostError(Exception):
    """The template has ended before it answered."""


class Spawner:
    """Keeps one template per backend, and replaces it when it dies."""

    def __init__(self, reaper: Reaper) -> None:
        """No process is started before the first request."""
        self._reaper = reaper
        self._templates: dict[str, _Template] = {}

    async def spawn(self, message: ForkMessage, link: socket.socket) -> int:
        """Return the process of a new actor; raises `ModelLoadError` if there can be none."""
        backend = message.spec.backend
        ending = ""
        for _ in range(_ATTEMPTS):
            template = self._template(backend, message.spec.provider)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    answer = await template.ask(message, link)
            except (TimeoutError, TemplateLostError):
                template.kill()
                ending = await template.gone
                continue
            finally:
                if message.spec.provider != "cpu":
                    template.close()
            if answer.error:
                raise ModelLoadError(
                    f"the engine of backend '{backend}' cannot be imported: {answer.error}",
                    hint=f"pip install {backend}",
                )
            return answer.pid
        raise ModelLoadError(
            f"the process that imports backend '{backend}' {ending}",
            hint="`lrai doctor` tries the engine of this machine",
        )

    def _template(self, backend: str, provider: str) -> "_Template":
        if provider != "cpu":
            return _Template(self._reaper, backend, "become")
        template = self._templates.get(backend)
        if template is None or template.is_lost:
            template = self._templates[backend] = _Template(self._reaper, backend, "fork")
            template.gone.add_done_callback(lambda _: self._replace(backend))
        return template

    def _replace(self, backend: str) -> None:
        """Start the next template at once: no actor's death shall wait for an import."""
        template = self._templates.get(backend)
        if template and template.is_lost and template.has_forked:
            self._template(backend, "cpu")

    @property
    def pids(self) -> dict[str, int]:
        """Processes of the templates by backend."""
        return {backend: template.pid for backend, template in self._templates.items()}

    async def stop(self) -> None:
        """End all templates."""
        templates, self._templates = self._templates, {}
        for template in templates.values():
            template.close()
        for template in templates.values():
            await template.gone


class _Template:
    """One template process."""

    def __init__(self, reaper: Reaper, backend: str, mode: str) -> None:
        loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = asyncio.Lock()
        self._asker = ""
        self._answer: asyncio.Future[ForkedMessage] | None = None
        self.is_lost = self.has_forked = False
        self.gone: asyncio.Future[str] = loop.create_future()
        with theirs:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", "lrai.actors.template", backend, mode],
                {**_ENVIRONMENT, **os.environ},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL_FD),
                ],
                # A group of its own: Ctrl-C is for the server, which then closes the links.
                setpgroup=0,
            )
        self._control.setblocking(False)
        loop.add_reader(self._control, self._read)
        reaper.watch(self.pid, self._ended)

    async def ask(self, message: ForkMessage, link: socket.socket) -> ForkedMessage:
        async with self._lock:
            if self.is_lost:
                raise TemplateLostError
            self._asker = message.actor
            self._answer = asyncio.get_running_loop().create_future()
            try:
                socket.send_fds(self._control, [message.encode()], [link.fileno()])
                return await self._answer
            except OSError as error:
                self.close()
                raise TemplateLostError from error
            finally:
                self._answer = None

    def _read(self) -> None:
        try:
            text = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            text = b""
        if not text:
            self.close()
        else:
            self._take(ForkedMessage.decode(text))

    def _take(self, message: ForkedMessage) -> None:
        if message.actor == self._asker and self._answer is not None and not self._answer.done():
            self.has_forked = True
            self._answer.set_result(message)
        elif message.pid:
            # Whoever asked for it has been cancelled.
            os.kill(message.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process end."""
        if not self.is_lost:
            self.is_lost = True
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(TemplateLostError())

    def kill(self) -> None:
        """End a process that does not answer."""
        if not self.gone.done():
            os.kill(self.pid, signal.SIGKILL)

    def _ended(self, status: int) -> None:
        self.close()
        self.gone.set_result(describe_end(status))


def describe_end(status: int) -> str:
    """Say in words how a process ended: `was ended by SIGSEGV`, `left with exit code 1`."""
    if os.WIFSIGNALED(status):
        return f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"left with exit code {os.waitstatus_to_exitcode(status)}"
