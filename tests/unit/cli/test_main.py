import subprocess
import sys

import pytest

import lrai
from lrai.cli import main as cli


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lrai {lrai.__version__}\n"


def test_help_tells_every_command_and_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("serve", "models", "infer", "bench", "doctor", "lrai serve model.onnx"):
        assert word in text


@pytest.mark.parametrize("command", ["serve", "models", "infer", "bench", "doctor"])
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"lrai {command}" in capsys.readouterr().out


def test_unknown_command_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bake"]) == 2
    assert "bake" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["numpy", "onnxruntime", "asyncio", "zmq"])
def test_starting_a_server_does_not_wait_for_libraries(library: str) -> None:
    code = f"import sys; from lrai.cli import main; main.build_app('serve'); print({library!r} in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_importing_lrai_is_light() -> None:
    code = "import sys, lrai; print([n for n in ('numpy', 'asyncio', 'lrai._native') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_importing_lrai_loads_no_library_of_the_verifier() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import lrai"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}
    assert "lrai" in loaded
    assert not loaded & {"z3", "numpy", "onnx", "onnxruntime", "highspy", "vnnlib"}


def test_public_names_are_sorted_and_there() -> None:
    assert lrai.__all__ == sorted(lrai.__all__)
    assert all(getattr(lrai, name) for name in lrai.__all__)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = lrai.absent  # type: ignore[attr-defined]
