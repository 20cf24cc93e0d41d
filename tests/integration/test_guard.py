"""A server marks answers that lie outside of what was proved about their model."""

import hashlib
import json

import httpx
import numpy as np
import pytest
import tritonclient.grpc

from lrai.testing import start_server
from lrai.testing.models import identity


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    path = identity(folder / "net.onnx", shape=["N", 2])
    identity(folder / "free.onnx", shape=["N", 2])
    document = {
        "format": "lrai-guard-1",
        "model": hashlib.sha256(path.read_bytes()).hexdigest(),
        "claim": "a test",
        "boxes": [{"lower": [0, 0], "upper": [1, 1]}, {"lower": [5, 5], "upper": [6, 6]}],
    }
    (folder / "net.guard.json").write_text(json.dumps(document))
    with start_server(folder) as server:
        yield server


def ask(server, model, rows):
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [len(rows), 2],
        "data": np.ravel(rows).tolist(),
    }
    url = f"http://{server.http}/v2/models/{model}/infer"
    answer = httpx.post(url, json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0, 1]], True),
        ([[0.5, 0.5], [5.5, 6]], True),
        ([[0.5, 5.5]], False),
        ([[0.5, 0.5], [1.5, 0.5]], False),
    ],
)
def test_every_row_must_lie_in_a_box(guarded, rows, expected):
    answer = ask(guarded, "net", rows)
    assert answer["parameters"] == {"lrai_covered": expected}
    assert answer["outputs"][0]["data"] == np.ravel(rows).tolist()


def test_a_model_without_a_guard_is_not_marked(guarded):
    assert "parameters" not in ask(guarded, "free", [[0, 1]])


@pytest.mark.parametrize(("value", "expected"), [(0.5, True), (2.0, False)])
def test_grpc_tells_the_same(guarded, value, expected):
    tensor = tritonclient.grpc.InferInput("x", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.full((1, 2), value, np.float32))
    with tritonclient.grpc.InferenceServerClient(guarded.grpc) as client:
        response = client.infer("net", [tensor]).get_response()
    assert response.parameters["lrai_covered"].bool_param is expected


def test_the_log_says_that_answers_are_marked(guarded):
    notes = [event["message"] for event in guarded.events("model_note")]
    assert any("outside of the proved region are marked: a test" in note for note in notes)
