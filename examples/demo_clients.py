"""Three ways to ask an Open Inference Protocol server: two of tritonclient, and plain HTTP."""

import http.client
import json
from collections.abc import Callable, Mapping

import numpy as np

from demo_models import Rows, Trained

Ask = Callable[[Rows], Rows]
Connect = Callable[[str, Trained], Ask]


def triton_http(address: str, model: Trained) -> Ask:
    """tritonclient over HTTP: tensors travel as raw bytes behind a JSON header."""
    from tritonclient.http import InferenceServerClient, InferInput

    client = InferenceServerClient(address)

    def ask(rows: Rows) -> Rows:
        tensor = InferInput(model.input, list(rows.shape), "FP32").set_data_from_numpy(rows)
        answer: Rows = client.infer(model.name, [tensor]).as_numpy(model.output)
        return answer

    return ask


def triton_grpc(address: str, model: Trained) -> Ask:
    """tritonclient over gRPC."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    client = InferenceServerClient(address)

    def ask(rows: Rows) -> Rows:
        tensor = InferInput(model.input, list(rows.shape), "FP32").set_data_from_numpy(rows)
        answer: Rows = client.infer(model.name, [tensor]).as_numpy(model.output)
        return answer

    return ask


def plain_http(address: str, model: Trained) -> Ask:
    """Nothing but the standard library: JSON there and back."""
    connection = http.client.HTTPConnection(address, timeout=30)

    def ask(rows: Rows) -> Rows:
        tensor = {"name": model.input, "datatype": "FP32", "shape": list(rows.shape)}
        body = json.dumps({"inputs": [{**tensor, "data": rows.ravel().tolist()}]})
        connection.request("POST", f"/v2/models/{model.name}/infer", body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{response.status} {answer.get('error')}")
        output = next(one for one in answer["outputs"] if one["name"] == model.output)
        return np.array(output["data"], np.float32).reshape(output["shape"])

    return ask


CLIENTS: Mapping[str, tuple[str, Connect]] = {
    "triton http": ("http", triton_http),
    "triton grpc": ("grpc", triton_grpc),
    "plain json": ("http", plain_http),
}
