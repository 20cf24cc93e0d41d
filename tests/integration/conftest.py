"""Real servers and small models, for tests that see lrai only from outside."""

import json
from http.client import HTTPConnection
from pathlib import Path

import pytest

from lrai.testing import models, start_server

LABELS = ["zero", "one", "two", "three"]
SLOW = '''
import time

INPUTS = [("seconds", "FP32", [-1])]
OUTPUTS = [("slept", "FP32", [-1])]


def predict(inputs):
    """Sleep as long as the largest row says."""
    seconds = inputs["seconds"]
    if seconds.size and seconds.min() < 0:
        raise ValueError("time does not run backwards")
    time.sleep(float(seconds.max(initial=0)))
    return {"slept": seconds.copy()}
'''


class Answer:
    """What came back over HTTP."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


def ask(address, path, body=None, method="", headers=()):
    """One request over a connection of its own; a body that is no bytes is sent as JSON."""
    connection = HTTPConnection(address, timeout=20)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        method = method or ("GET" if data is None else "POST")
        connection.request(method, path, data, dict(headers))
        return Answer(connection.getresponse())
    finally:
        connection.close()


@pytest.fixture(scope="session")
def http():
    """`http(address, path, body)` asks and returns the answer."""
    return ask


@pytest.fixture(scope="session")
def write_model():
    """`write_model(folder, source)` writes version 1 of a model of the python backend."""

    def write(folder: Path, source: str = SLOW) -> Path:
        file = folder / "1/model.py"
        file.parent.mkdir(parents=True)
        file.write_text(source)
        return folder

    return write


def write_labelled(folder: Path) -> None:
    models.identity(folder / "1/model.onnx")
    output = 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels" } ]'
    (folder / "config.pbtxt").write_text(f"max_batch_size: 8\n{output}\n")
    (folder / "labels").write_text("\n".join(LABELS))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory, write_model):
    """A server with a small model of every kind that clients ask for; `spare` is not loaded."""
    folder = tmp_path_factory.mktemp("zoo")
    for datatype in models.ELEMENTS:
        models.identity(folder / f"identity_{datatype}.onnx", datatype, ["N", "M"])
    models.identity(folder / "scalar.onnx", "FP32", [])
    models.identity(folder / "alone.onnx", "FP32", [2, 3])
    models.identity(folder / "spare.onnx")
    models.sum_and_difference(folder / "simple.onnx")
    write_labelled(folder / "labelled")
    write_model(folder / "slow")
    loaded = [path.stem for path in folder.iterdir() if path.stem != "spare"]
    with start_server(
        folder, "--model-control-mode=explicit", f"--load-model={','.join(loaded)}", "--threads=1"
    ) as server:
        assert not server.events("model_failed")
        yield server
