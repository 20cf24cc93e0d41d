"""LitServe on the others' path and JSON: `litserve_app.py PORT MODEL PATH THREADS BATCH`."""

from __future__ import annotations

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np
from session import open_session  # type: ignore[import-not-found]

_TYPES = {"FP32": np.float32, "INT64": np.int64}


class OnnxApi(litserve.LitAPI):  # type: ignore[misc]  # has no types here
    """Runs one ONNX file."""

    def __init__(self, name: str, path: str, threads: int, **settings: Any) -> None:
        super().__init__(api_path=f"/v2/models/{name}/infer", **settings)
        self.name, self.path, self.threads = name, path, threads

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Opens the session, in the process that uses it."""
        self.session = open_session(self.path, self.threads)
        self.outputs = [output.name for output in self.session.get_outputs()]

    # LitServe validates by the annotations here and on encode_response; without any it is faster.
    def decode_request(self, request):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        """From JSON to arrays."""
        return {
            tensor["name"]: np.array(tensor["data"], _TYPES[tensor["datatype"]]).reshape(
                tensor["shape"]
            )
            for tensor in request["inputs"]
        }

    def batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Several requests as one."""
        return {name: np.concatenate([row[name] for row in inputs]) for name in inputs[0]}

    def predict(self, x: dict[str, Any]) -> list[Any]:
        """Runs the session."""
        return list(self.session.run(None, x))

    def unbatch(self, output: list[Any]) -> list[Any]:
        """One answer per row."""
        return [[whole[row : row + 1] for whole in output] for row in range(len(output[0]))]

    def encode_response(self, output):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        """From arrays to JSON."""
        described = [
            {
                "name": name,
                "datatype": "FP32",
                "shape": list(rows.shape),
                "data": rows.ravel().tolist(),
            }
            for name, rows in zip(self.outputs, output, strict=True)
        ]
        return {"model_name": self.name, "outputs": described}


if __name__ == "__main__":
    port, model, path, threads, batch = sys.argv[1:]
    api = OnnxApi(model, path, int(threads), max_batch_size=int(batch), batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error")
