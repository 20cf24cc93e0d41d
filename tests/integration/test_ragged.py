"""Sequences of different lengths through every face, against onnxruntime on each of them alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http

from lrai.testing import start_server
from lrai.testing.models import encoder

LENGTHS = [1, 3, 17, 40, 33, 64, 5, 90, 128, 16]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ragged")
    encoder(folder / "masked.onnx")
    encoder(folder / "unmasked.onnx", is_masked=False)
    with start_server(folder) as server:
        server.sessions = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx")
            for name in ("masked", "unmasked")
        }
        yield server


def ask(module, url, model, length, is_binary):
    # The HTTP client is bound to its thread.
    client = module.InferenceServerClient(url)
    rows = 1 + length % 3
    tokens = np.random.default_rng(length).integers(1, 1000, (rows, length))
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    more = {} if module is tritonclient.grpc else {"binary_data": is_binary}
    inputs = [
        module.InferInput(name, list(array.shape), "INT64").set_data_from_numpy(array, **more)
        for name, array in feeds.items()
    ]
    outputs = [module.InferRequestedOutput(name, **more) for name in ("hidden", "pooled")]
    answer = client.infer(model, inputs, outputs=outputs)
    return feeds, [answer.as_numpy(name) for name in ("hidden", "pooled")]


@pytest.mark.parametrize("model", ["masked", "unmasked"])
@pytest.mark.parametrize("face", ["json", "binary", "grpc"])
def test_answers_have_their_own_length_and_values(server, face, model):
    module = tritonclient.grpc if face == "grpc" else tritonclient.http
    url = server.grpc if face == "grpc" else server.http
    with ThreadPoolExecutor(len(LENGTHS)) as pool:
        asked = pool.map(lambda n: ask(module, url, model, n, face == "binary"), LENGTHS)
        for feeds, answers in asked:
            for got, expected in zip(answers, server.sessions[model].run(None, feeds), strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_log_says_which_model_is_not_padded_and_why(server):
    notes = [row["message"] for row in server.events("model_note")]
    assert len(notes) == 1
    assert "'unmasked'" in notes[0]
    assert "output 'hidden' differs" in notes[0]
