"""MLServer with an onnxruntime model in its own process (its worker processes are slower here)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.versus.base import Command, Peer, Served

SERVING = Path(__file__).parent / "serving"


class MlserverPeer(Peer):
    """`mlserver start`; JSON over HTTP and gRPC, no binary extension."""

    name = "mlserver"
    # Its event loop fails in uvloop 0.22 and later.
    packages = ("mlserver==1.7.1", "uvloop==0.21.0", "onnxruntime==1.31.1")
    faces = ("json", "grpc")

    def command(self, models: Sequence[Served], folder: Path) -> Command:
        """Writes settings.json and a folder per model."""
        shutil.rmtree(folder / "models", ignore_errors=True)
        settings = {
            "host": "127.0.0.1",
            "http_port": self.ports.http,
            "grpc_port": self.ports.grpc,
            "metrics_port": self.ports.metrics,
            "parallel_workers": 0,
            "debug": False,
        }
        for model in models:
            target = folder / "models" / model.name
            target.mkdir(parents=True)
            # Batching costs more than it gives for a model of microseconds.
            batching = (
                {} if model.name == "mlp" else {"max_batch_size": 32, "max_batch_time": 0.002}
            )
            described = {
                "name": model.name,
                "implementation": "mlserver_model.OnnxModel",
                "parameters": {
                    "uri": str(model.path.resolve()),
                    "extra": {"threads": model.threads},
                },
                **batching,
            }
            (target / "model-settings.json").write_text(json.dumps(described))
        (folder / "models" / "settings.json").write_text(json.dumps(settings))
        program = self.python.with_name("mlserver")
        return Command(
            [str(program), "start", str(folder / "models")], {"PYTHONPATH": str(SERVING)}
        )
