"""The server's end of a template: starts it, asks it for actors, replaces it when it is gone."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Final, Literal

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


class Spawner:
    """Keeps one template per backend, and replaces it when it dies."""

    def __init__(self, reaper: Reaper) -> None:
        """No process is started before the first request."""
        self._reaper = reaper
        self._templates: dict[str, _Template] = {}

    async def spawn(self, message: ForkMessage, link: socket.socket) -> int:
        """Return the process of a new actor; raises `ModelLoadError` if there can be none."""
        backend, provider = message.spec.backend, message.spec.model.provider
        ending = ""
        for _ in range(_ATTEMPTS):
            if provider == "cpu":
                template = self._template(backend)
            else:
                template = _Template(self._reaper, backend, "become")
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    answer = await template.ask(message, link)
            except (OSError, EOFError):
                template.kill()
                ending = describe_end(await asyncio.shield(template.end))
                continue
            finally:
                if provider != "cpu":
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

    def _template(self, backend: str) -> "_Template":
        template = self._templates.get(backend)
        if template is None or template.end.done():
            template = self._templates[backend] = _Template(self._reaper, backend, "fork")
            template.end.add_done_callback(lambda _: self._replace(backend))
        return template

    def _replace(self, backend: str) -> None:
        """Start the next template at once: no actor's death shall wait for an import."""
        template = self._templates.get(backend)
        if template is not None and template.has_forked:
            self._template(backend)

    @property
    def pids(self) -> dict[str, int]:
        """Processes of the templates by backend."""
        return {backend: template.pid for backend, template in self._templates.items()}

    async def stop(self) -> None:
        """End all templates."""
        templates, self._templates = self._templates, {}
        for template in templates.values():
            template.close()
            await template.end


class _Template:
    """One template process; it ends when its control socket is closed."""

    def __init__(self, reaper: Reaper, backend: str, mode: Literal["fork", "become"]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        self._lock = asyncio.Lock()
        self.has_forked = False
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
        self.close = self._control.close
        self.end = reaper.end_of(self.pid)
        # Who is asking meanwhile finds the end by itself, and closes then.
        self.end.add_done_callback(lambda _: None if self._lock.locked() else self.close())

    async def ask(self, message: ForkMessage, link: socket.socket) -> ForkedMessage:
        """Ask for an actor; raises OSError or EOFError if the process has gone."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            socket.send_fds(self._control, [message.encode()], [link.fileno()])
            while text := await loop.sock_recv(self._control, 1 << 16):
                answer = ForkedMessage.decode(text)
                # Another actor's asker has been cancelled: it leaves when it finds its link closed.
                if answer.actor == message.actor:
                    self.has_forked = True
                    return answer
        raise EOFError

    def kill(self) -> None:
        """End a process that does not answer."""
        self.close()
        if not self.end.done():
            os.kill(self.pid, signal.SIGKILL)


def describe_end(status: int) -> str:
    """Say in words how a process ended: `was ended by SIGSEGV`, `left with exit code 1`."""
    if os.WIFSIGNALED(status):
        return f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"left with exit code {os.waitstatus_to_exitcode(status)}"
