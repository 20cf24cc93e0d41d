"""Triton with its python backend: the binary out of the pytriton wheel, a plain model.py,
onnxruntime.

The wheel holds no C++ onnxruntime backend, so Triton's fastest configuration is not measured
here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from benchmarks.versus.base import MAX_BATCH_ROWS, Command, Peer, Served

SERVING = Path(__file__).parent / "serving"
_TYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT64: "TYPE_INT64"}


def _tensor(value: onnx.ValueInfoProto) -> str:
    """A tensor in the words of config.pbtxt, without its batch dimension."""
    kind = value.type.tensor_type
    sizes = ", ".join(str(dimension.dim_value) for dimension in kind.shape.dim[1:])
    return f'{{ name: "{value.name}" data_type: {_TYPES[kind.elem_type]} dims: [ {sizes} ] }}'


def _config(served: Served) -> str:
    """The model's config.pbtxt: dynamic batching without delay, the default and best here."""
    graph = onnx.load(served.path, load_external_data=False).graph
    inputs = ", ".join(_tensor(value) for value in graph.input)
    outputs = ", ".join(_tensor(value) for value in graph.output)
    settings = {"path": str(served.path.resolve()), "threads": str(served.threads)}
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in settings.items()
    )
    return f"""name: "{served.name}"
backend: "python"
max_batch_size: {MAX_BATCH_ROWS}
input [ {inputs} ]
output [ {outputs} ]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
{parameters}
"""


class TritonPeer(Peer):
    """`tritonserver` from the nvidia-pytriton wheel, default settings."""

    name = "triton"
    flags: tuple[str, ...] = ()
    # Its stub embeds the distribution's libpython and crashes on another build's standard library.
    interpreter = "/usr/bin/python3"
    packages = ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime==1.31.1")

    def command(self, models: Sequence[Served], folder: Path) -> Command:
        """Writes a model repository and a backend folder, and starts the server on them."""
        site = self.python.parent.parent / "lib" / "python3.11" / "site-packages"
        bundled = site / "pytriton" / "tritonserver"
        for old in ("models", "backends"):
            shutil.rmtree(folder / old, ignore_errors=True)
        backend = folder / "backends" / "python"
        shutil.copytree(bundled / "backends" / "python", backend)
        shutil.copy(
            bundled / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backend
        )
        for model in models:
            version = folder / "models" / model.name / "1"
            version.mkdir(parents=True)
            shutil.copy(SERVING / "triton_model.py", version / "model.py")
            # Triton ignores PYTHONPATH, but looks for modules beside model.py.
            shutil.copy(SERVING / "session.py", version)
            (version.parent / "config.pbtxt").write_text(_config(model))
        arguments = [
            str(bundled / "bin" / "tritonserver"),
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            *self.flags,
        ]
        environment = {
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
        }
        return Command(arguments, environment)


class TunedTritonPeer(TritonPeer):
    """The same with one HTTP thread: the best of 1, 2, 4 and 8 (the default) on two cores."""

    name = "triton-tuned"
    environment_name = "triton"
    flags = ("--http-thread-count=1",)
