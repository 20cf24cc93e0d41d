"""The kserve package's clients; what they do is in kserve_checks.py."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lrai.testing import start_server

PROGRAM = Path(__file__).with_name("kserve_checks.py")
CHECKS = re.findall(r"^@check\nasync def (\w+)", PROGRAM.read_text(), re.MULTILINE)
pytestmark = pytest.mark.skipif(
    find_spec("kserve") is None, reason="kserve is not installed (pip install kserve)"
)


@pytest.fixture(scope="module")
def results(zoo, tmp_path_factory):
    """What went wrong in each check; empty = nothing."""
    folder = tmp_path_factory.mktemp("not_ready")
    (folder / "broken.onnx").write_bytes(b"no model")
    flags = ("--not-ready-status=503", "--strict-readiness=true")
    with start_server(folder, *flags) as not_ready:
        command = [sys.executable, str(PROGRAM), zoo.http, zoo.grpc, not_ready.http]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_kserve(results, check):
    assert results[check] == ""
