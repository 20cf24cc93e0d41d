"""A real server with the examples' model, for the pages and programs that talk to one."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 20


def wait_for(process, log, event):
    """Wait for a line of the server's log; returns it."""
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit and process.poll() is None:
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["event"] == event:
                return json.loads(line)
        time.sleep(0.01)
    raise AssertionError(f"no event {event!r} in the log:\n{log.read_text()}")


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """A context manager: `lrai serve PATH` on free ports, its addresses by face."""

    @contextlib.contextmanager
    def serving(path):
        log = tmp_path_factory.mktemp("server") / "log"
        program = Path(sys.executable).with_name("lrai")
        ports = [f"--{face}-port=0" for face in ("http", "grpc", "metrics")]
        with log.open("wb") as lines:
            command = [program, "serve", path, "--log-format=json", *ports]
            process = subprocess.Popen(command, stderr=lines)
        try:
            addresses = wait_for(process, log, "listening")
            wait_for(process, log, "settled")
            yield addresses
        finally:
            process.terminate()
            assert process.wait(timeout=10) == 0

    return serving


@pytest.fixture(scope="session")
def polarity_server(serve):
    """Addresses of `lrai serve examples/python_backend` by face."""
    with serve(ROOT / "examples/python_backend") as addresses:
        yield addresses
