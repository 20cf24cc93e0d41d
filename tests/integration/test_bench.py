"""`lrai bench` against a server that is not ours, as small as the protocol allows."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from lrai.cli.main import main

ASKED = Event()


class ForeignServer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        self.answer(200, {"name": "m", "inputs": inputs})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ASKED.set()
        if self.path == "/predict":
            self.answer(200 if body == b"as it is" else 400, {})
        elif self.path == "/v2/models/m/infer":
            at = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            (tensor,) = json.loads(body[:at])["inputs"]
            values = tensor.get("data") or body[at:]
            is_right = tensor["shape"] == [2, 4] and len(values) in (8, 32)
            self.answer(200 if is_right else 400, {"outputs": []})
        else:
            self.answer(503, {"error": "not today"})

    def answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ForeignServer) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


SHORT = ("--duration", "300ms", "--warmup", "50ms")


def bench(*arguments: str) -> int:
    return main(["bench", *arguments, *SHORT])


def test_both_loops_are_tabled_written_and_drawn(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.svg"
    loads = ("--concurrency", "1,2", "--rate", "100", "--poisson", "--rows", "2")
    wanted = ("--json", str(numbers), "--plot", str(picture))
    assert bench(url, "--model", "m", *loads, *wanted) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed[:4]] == [
        *("load", "1 connection", "2 connections", "100/s")
    ]
    found = json.loads(numbers.read_text())["loads"]
    assert all(one["answered"] > 0 and one["errors"] == 0 for one in found.values())
    assert found["100/s"]["settings"]["poisson"] is True
    assert found["100/s"]["environment"]["cores"] >= 1
    assert picture.read_text().startswith("<svg")


def test_binary_requests_are_answered_too(url: str) -> None:
    loads = ("--concurrency", "2", "--rows", "2")
    assert bench(url, "--model", "m", "--protocol", "http-binary", *loads) == 0


def test_errors_are_listed_with_the_first_text(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ("--shape", "x:1,4:FP32")
    assert bench(url, "--model", "other", "-c", "1", *shape) == 1
    output = capsys.readouterr()
    assert "http 503" in output.out
    assert '{"error": "not today"}' in output.out
    assert "answered nothing hint: look at the errors above" in output.err


def test_any_path_and_body_can_be_loaded(url: str, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_text("as it is")
    assert bench(url, "--path", "/predict", "--body", str(body), "-c", "1") == 0


def test_highest_rate_that_keeps_a_goal_is_found(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ("--find-rate", "p50<5s", "--connections", "2", "--json", "-")
    assert (
        main(["bench", url, "-m", "m", "--rows", "2", *search, "-d", "100ms", "--warmup", "0s"])
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["found_rate"] > 0
    assert len(document["loads"]) > 1


def test_interrupt_ends_a_long_load(url: str) -> None:
    ASKED.clear()
    command = [sys.executable, "-m", "lrai", "bench", url, "-m", "m", "--rows", "2", "-d", "5m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert ASKED.wait(timeout=20)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode not in (0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", "fast"), "--rate is 'fast' hint"),
        (("--duration", "long"), "--duration is 'long' hint"),
        (("--find-rate", "p98<1ms"), "is no goal hint"),
        (("--plot", "x.png"), "is no .svg file hint"),
    ],
)
def test_wrong_settings_are_refused_with_a_hint(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "http://127.0.0.1:1", "-m", "m", *arguments]) == 2
    assert message in capsys.readouterr().err
