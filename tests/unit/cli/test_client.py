import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrai.cli import main as cli
from lrai.cli.client import Client, model_path
from lrai.errors import ConfigError, LraiError, UnavailableError

METADATA = {
    "name": "mlp",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}
STATS = {
    "inference_count": 8,
    "execution_count": 4,
    "inference_stats": {
        "success": {"count": 6, "ns": 6000},
        "fail": {"count": 1, "ns": 0},
        "queue": {"count": 6, "ns": 60000},
        "compute_infer": {"count": 4, "ns": 400000},
    },
}
CONFIG = {"max_batch_size": 64, "instance_group": [{"count": 2}], "dynamic_batching": {}}


class Face(BaseHTTPRequestHandler):
    """Answers as a server does; `mlp` copies its input."""

    requests: list[tuple[str, Any]]

    def do_GET(self) -> None:
        known = {
            "/v2/models/mlp": METADATA,
            "/v2/models/mlp/config": CONFIG,
            "/v2/models/mlp/stats": {"model_stats": [STATS]},
        }
        if self.path == "/":
            self._send(200, b"<html>")
        elif self.path in known:
            self._send(200, json.dumps(known[self.path]).encode())
        else:
            self._send(404, b'{"error": "Request for unknown model: \'x\' is not found"}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = self.headers.get("Inference-Header-Content-Length")
        if head is not None:
            asked, blob = json.loads(body[: int(head)]), body[int(head) :]
            (given,) = asked["inputs"]
            given |= {"name": "y", "parameters": {"binary_data_size": len(blob)}}
            answer = json.dumps({"model_name": "mlp", "outputs": [given]}).encode()
            self._send(200, answer + blob, head=len(answer))
            return
        self.requests.append((self.path, json.loads(body)))
        rows = [{"name": "mlp", "version": "1", "state": "READY"}]
        self._send(200, json.dumps(rows).encode() if self.path.endswith("index") else b"")

    def _send(self, status: int, body: bytes, head: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if head is not None:
            self.send_header("Inference-Header-Content-Length", str(head))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Face.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Face) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_nobody_there_is_a_sentence_with_a_hint() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(UnavailableError, match=r"nothing listens at .* hint: start a server"):
            Client(f"http://127.0.0.1:{port}").get("/v2")


def test_server_that_does_not_answer_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.05 s"):
            Client(url, timeout_s=0.05).get("/v2")


def test_server_that_hangs_up_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        thread = threading.Thread(target=lambda: rude.accept()[0].close())
        thread.start()
        with pytest.raises(UnavailableError, match="cannot be asked"):
            Client(f"http://127.0.0.1:{rude.getsockname()[1]}").get("/v2")
        thread.join()


def test_server_of_another_protocol_is_a_sentence(url: str) -> None:
    with pytest.raises(UnavailableError, match=r"does not speak .* hint: check the address"):
        Client(url).get("/")


def test_why_of_a_model_that_is_not_there_is_a_sentence(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "why", "x", "--url", url]) == 1
    assert capsys.readouterr().err == "error: Request for unknown model: 'x' is not found\n"


def test_refusal_of_the_server_is_told_in_its_words(url: str) -> None:
    with pytest.raises(LraiError, match=r"^Request for unknown model: 'x' is not found$"):
        Client(url).get("/v2/models/x")


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://host:99999", "http://host:port", "http://["]
)
def test_bad_url_is_a_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match="hint: write it as http://127"):
        Client(url)


def test_scheme_may_be_left_out(url: str) -> None:
    assert Client(url.removeprefix("http://")).get("/v2/models/mlp") == METADATA


def test_names_are_quoted() -> None:
    assert model_path("a b/c", "2") == "/v2/models/a%20b%2Fc/versions/2"


def test_list_prints_a_table(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list", "--url", url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name  version  state  reason",
        "mlp   1        READY",
    ]


def test_show_tells_tensors_and_statistics(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "show", "mlp", "--url", url]) == 0
    text = capsys.readouterr().out
    for line in (
        "replicas            2",
        "requests            6 answered, 1 failed",
        "rows                8 in 4 batches",
        "mean compute_infer  100.0 us",
        "input   x       FP32      [-1, 2]",
    ):
        assert line in text


def test_load_sends_configuration_and_files(url: str, tmp_path: Path) -> None:
    config, model = tmp_path / "config.json", tmp_path / "local.onnx"
    config.write_text('{"max_batch_size": 4}')
    model.write_bytes(b"model")
    arguments = ["models", "load", "mlp", "--url", url, "--config", str(config)]
    assert cli.main([*arguments, "--file", f"1/model.onnx={model}"]) == 0
    parameters = {"config": '{"max_batch_size": 4}', "file:1/model.onnx": "bW9kZWw="}
    path = "/v2/repository/models/mlp/load"
    assert Face.requests == [(path, {"parameters": parameters})]


def test_unload_asks_for_it(url: str) -> None:
    assert cli.main(["models", "unload", "mlp", "--url", url]) == 0
    assert Face.requests == [("/v2/repository/models/mlp/unload", {})]


def test_infer_prints_the_answer(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["infer", "mlp", "--url", url, "--input", "[[1, 2]]"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "output  datatype  shape   values",
        "y       FP32      [1, 2]  1, 2",
    ]


def test_infer_prints_json_and_saves_arrays(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["infer", "mlp", "--url", url, "-i", "x=[0.5, 2]", "--json"]
    assert cli.main([*arguments, "--npy", str(tmp_path / "answers")]) == 0
    (output,) = json.loads(capsys.readouterr().out)["outputs"]
    assert output == {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2.0]}
    assert np.load(tmp_path / "answers" / "y.npy").tolist() == [[0.5, 2.0]]


def test_infer_names_the_inputs_that_there_are(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["infer", "mlp", "--url", url, "--input", "z=[1, 2]"]) == 2
    assert "names no input hint: it has x FP32[-1, 2]" in capsys.readouterr().err


def test_unreachable_server_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert cli.main(["models", "list", "--url", url]) == 1
    assert capsys.readouterr().err.startswith("error: nothing listens at")
