"""lrai itself, with its default settings."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.versus.base import Command, Peer, PeerError, Served


class LraiPeer(Peer):
    """`lrai serve` of the project's environment, or the program that LRAI_BENCH_PROGRAM names."""

    name = "lrai"

    def __init__(self, cache: Path, flags: Sequence[str] = ()) -> None:
        super().__init__(cache)
        self.flags = flags

    @property
    def program(self) -> str:
        """The `lrai` command under test."""
        path = Path(os.environ.get("LRAI_BENCH_PROGRAM", ".venv/bin/lrai"))
        if not path.exists():
            raise PeerError(f"there is no {path}; hint: make setup")
        return str(path)

    def version(self) -> str:
        """What `lrai --version` says."""
        answer = subprocess.run(
            [self.program, "--version"], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() or "unknown version"

    def command(self, models: Sequence[Served], folder: Path) -> Command:
        """Serves the one file, or a folder of links to all of them."""
        source = models[0].path
        if len(models) > 1:
            source = folder / "models"
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            for model in models:
                (source / f"{model.name}.onnx").symlink_to(model.path.resolve())
        ports = ("http", "grpc", "metrics")
        flags = [f"--{port}-port={getattr(self.ports, port)}" for port in ports]
        return Command([self.program, "serve", str(source), *flags, *self.flags])
