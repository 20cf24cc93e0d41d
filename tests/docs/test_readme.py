"""The README's commands and program do what it says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

README = (Path(__file__).parents[2] / "README.md").read_text()
WEIGHTS = np.arange(8, dtype=np.float32).reshape(4, 2)
ROW = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file `model.onnx` with the input that the README uses."""
    path = tmp_path_factory.mktemp("readme") / "model.onnx"
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def address(model, serve):
    """Where the model is served over HTTP."""
    with serve(model) as addresses:
        yield addresses["http"]


def shell_lines(start: str) -> list[str]:
    """The indented commands that begin so, with their continuation lines."""
    return re.findall(rf"^ {{4}}({start}(?:.*\\\n)*.*)$", README, re.MULTILINE)


def run(command: str) -> str:
    tools = str(Path(sys.executable).parent)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "LANG": "C.UTF-8"}
    answer = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_commands_answer(address):
    show, ask = shell_lines("curl ")
    metadata = json.loads(run(show.replace("127.0.0.1:8000", address)))
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["x"]
    answer = json.loads(run(ask.replace("127.0.0.1:8000", address)))
    assert np.allclose(answer["outputs"][0]["data"], (ROW @ WEIGHTS)[0])


def test_the_infer_command_answers(address):
    (ask,) = shell_lines("lrai infer ")
    answer = run(f"{ask} --url http://{address}")
    assert f"{(ROW @ WEIGHTS)[0, 0]:.4g}, " in answer


def test_the_program_runs(model, monkeypatch):
    (program,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    monkeypatch.chdir(model.parent)
    names = {}
    exec(compile(program, "README.md", "exec"), names)
    assert np.allclose(names["engine"].predict({"x": ROW}).outputs["y"], ROW @ WEIGHTS)


def test_every_number_is_a_line_of_a_result():
    quoted = README.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    results = Path(__file__).parents[2] / "benchmarks/results"
    known = {line for file in results.glob("*.md") for line in file.read_text().splitlines()}
    rows = [line for line in quoted.splitlines() if line.startswith("|")]
    assert [row for row in rows if row not in known] == []
    without_rows = [line for line in quoted.splitlines() if not line.startswith("|")]
    assert not re.search(r"\d+[.,]?\d* ?(ms|µs|req|%|x\b|MB)", "\n".join(without_rows))
