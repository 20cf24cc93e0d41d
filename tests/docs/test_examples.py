"""The examples compile, stay small, and say what they should."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.rglob("*.py"))
MAX_LINES = 60


def run_example(name: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_compiles_and_says_what_it_is_for(program):
    source = program.read_text()
    compile(source, str(program), "exec")
    assert source.startswith('"""')


def test_examples_are_small_but_for_the_demo():
    large = [
        path.name
        for path in PROGRAMS
        if not path.name.startswith("demo") and len(path.read_text().splitlines()) > MAX_LINES
    ]
    assert not large


def test_http_json_asks_and_is_refused(polarity_server):
    lines = run_example("http_json.py", f"http://{polarity_server['http']}")
    assert lines[0].startswith("'fast and safe' is good (0.66")
    assert lines[1].startswith("'slow and wrong' is bad (-0.66")
    assert lines[2].startswith("refused with status 400: ")
    assert "a text is empty" in lines[2]


def test_grpc_client_asks(polarity_server):
    assert run_example("grpc_client.py", polarity_server["grpc"]) == [
        "input text: BYTES [-1]",
        "'fast and safe' is good",
        "'slow and wrong' is bad",
    ]


def test_engine_answers_like_the_trained_model():
    lines = run_example("engine.py")
    assert lines[0] == "450 of 450 answers equal the trained model's"
    assert lines[-1].endswith("of 451 took longer than 1 ms")
