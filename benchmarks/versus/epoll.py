"""The limit: a bare C server that knows only the MLP, compiled for this machine at its start."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.versus.base import Command, Peer, PeerError, Served

SOURCE = Path(__file__).with_name("epoll.c")
COMPILE = ("cc", "-O3", "-march=native")


class EpollPeer(Peer):
    """`epoll.c`; needs a C compiler."""

    name = "epoll"
    faces = ("json", "binary")

    def version(self) -> str:
        """The compiler and its flags."""
        compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False)
        return f"{compiler.stdout.partition(chr(10))[0]}, {' '.join(COMPILE[1:])}"

    def command(self, models: Sequence[Served], folder: Path) -> Command:
        """Compiles the server and gives it the weights."""
        if [model.name for model in models] != ["mlp"]:
            raise PeerError("the C server computes nothing but the mlp; hint: leave epoll out")
        program = folder / "epoll"
        subprocess.run([*COMPILE, "-o", program, SOURCE], check=True)
        weights = models[0].path.with_suffix(".floats")
        return Command([str(program), str(self.ports.http), str(weights)])
