"""LitServe with one worker, at the Open Inference Protocol's path and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.versus.base import Command, Peer, PeerError, Served

SERVING = Path(__file__).parent / "serving"


class LitservePeer(Peer):
    """A LitAPI around onnxruntime; JSON over HTTP."""

    name = "litserve"
    packages = ("litserve==0.2.19", "onnxruntime==1.31.1")
    faces = ("json",)
    ready_path = "/health"

    def command(self, models: Sequence[Served], folder: Path) -> Command:  # noqa: ARG002
        """Batches where a model takes milliseconds; the MLP would lose by waiting."""
        if len(models) != 1:
            raise PeerError(f"litserve is started with one model, not {len(models)}")
        model = models[0]
        batch = 1 if model.name == "mlp" else 32
        arguments = [self.ports.http, model.name, model.path.resolve(), model.threads, batch]
        program = [self.python, SERVING / "litserve_app.py", *arguments]
        return Command([str(part) for part in program])
