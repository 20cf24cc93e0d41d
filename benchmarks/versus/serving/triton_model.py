"""The model.py of Triton's python backend: one session call for all the requests it hands over."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from session import open_session  # type: ignore[import-not-found]


class TritonPythonModel:
    """Runs the ONNX file that the model's configuration names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the session."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.session = open_session(parameters["path"], int(parameters["threads"]))
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers the batch that Triton has formed."""
        parts = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            for name in self.inputs
        ]
        feed = {
            name: rows[0] if len(rows) == 1 else np.concatenate(rows)
            for name, rows in zip(self.inputs, parts, strict=True)
        }
        results = self.session.run(self.outputs, feed)
        answers, start = [], 0
        for rows in parts[0]:
            end = start + len(rows)
            tensors = [
                pb_utils.Tensor(name, result[start:end])
                for name, result in zip(self.outputs, results, strict=True)
            ]
            answers.append(pb_utils.InferenceResponse(tensors))
            start = end
        return answers
