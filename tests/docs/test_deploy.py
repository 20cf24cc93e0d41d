"""The container image and the service, as far as they can be tested without Docker and systemd."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lrai.cli.main import build_app

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
SERVICE = ROOT / "deploy/systemd/lrai.service"


def copied() -> list[str]:
    """What the build stage copies from the repository."""
    stage = DOCKERFILE.read_text().split("\nFROM ")[1]
    return [
        name
        for line in re.findall(r"^COPY (.+)$", stage, re.MULTILINE)
        for name in line.split()[:-1]
    ]


def copy_context(folder: Path) -> None:
    """Put what Docker would have copied into a folder."""
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "target", ".*cache")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def run(*command: str, cwd: Path) -> str:
    """Run a step; its output, or a failed test that shows it."""
    answer = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_docker_gets_all_that_the_image_copies():
    allowed = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert copied()
    assert all(any(fnmatch.fnmatch(name, one) for one in allowed) for name in copied())


def test_the_image_does_not_run_as_root():
    last_stage = DOCKERFILE.read_text().split("\nFROM ")[-1]
    assert re.search(r"^USER (\d+)$", last_stage, re.MULTILINE).group(1) != "0"


def test_cargo_and_maturin_need_nothing_that_is_not_copied(tmp_path):
    copy_context(tmp_path)
    run("cargo", "metadata", "--locked", "--format-version", "1", "--offline", cwd=tmp_path)
    maturin = Path(sys.executable).with_name("maturin")
    run(str(maturin), "pep517", "write-dist-info", "--metadata-directory", "out", cwd=tmp_path)
    assert list(tmp_path.glob("out/lrai-*.dist-info/METADATA"))


def test_the_commands_of_image_and_service_have_known_flags():
    text = DOCKERFILE.read_text() + SERVICE.read_text()
    lines = re.findall(r"^(?:ExecStart=\S+lrai|CMD \[) ?(.+?)\]?$", text, re.MULTILINE)
    serve = typer.main.get_command(build_app()).commands["serve"]
    known = {flag for option in serve.params for flag in option.opts}
    words = [word for line in lines for word in re.findall(r"[\w/-]+", line)]
    assert words.count("serve") == 2
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_service(tmp_path):
    unit = tmp_path / "lrai.service"
    unit.write_text(SERVICE.read_text().replace("/opt/lrai/bin/lrai", "/bin/true"))
    answer = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert "lrai.service" not in answer.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_of_the_image_give_a_working_lrai(tmp_path):
    context, wheels, target = tmp_path / "src", tmp_path / "wheels", tmp_path / "venv"
    context.mkdir()
    copy_context(context)
    maturin = str(Path(sys.executable).with_name("maturin"))
    build = re.search(r"maturin (build .+)$", DOCKERFILE.read_text(), re.MULTILINE)
    arguments = shlex.split(build.group(1).replace("/wheels", str(wheels)))
    run(maturin, *arguments, cwd=context)
    run(sys.executable, "-m", "venv", str(target), cwd=tmp_path)
    wheel = str(next(wheels.glob("*.whl")))
    run(
        f"{target}/bin/pip", "install", "-q", "-c", f"{ROOT}/requirements.lock", wheel, cwd=tmp_path
    )
    assert re.fullmatch(r"lrai [\d.]+\n", run(f"{target}/bin/lrai", "--version", cwd=tmp_path))
    assert list(target.glob("lib/*/site-packages/lrai-*.dist-info/licenses/LICENSES-rust.txt"))
