import json
from pathlib import Path

import pytest

from lrai.cli import doctor
from lrai.cli import main as cli


def judge(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> doctor.Check:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    return doctor._judge("onnxruntime_fp32", "engine", "missing", "the cure")


@pytest.mark.parametrize(
    ("body", "state", "found"),
    [
        ("""echo '{"right": true, "us": 5}'""", "ok", "ran with the right result (us 5)"),
        ("""echo '{"right": false}'""", "missing", "it ran, with a wrong result"),
        ("kill -ILL $$", "missing", "the child died of SIGILL: a flag lies"),
        ("echo 'no module' >&2; exit 1", "missing", "it failed: no module"),
    ],
)
def test_probe_is_judged_by_what_became_of_its_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, state: str, found: str
) -> None:
    check = judge(body, tmp_path, monkeypatch)
    assert (check.state, check.found) == (state, found)
    assert check.cure == ("" if state == "ok" else "the cure")


def test_probe_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE_TIMEOUT_S", 0.1)
    assert "no answer within 0.1 s" in judge("exec sleep 20", tmp_path, monkeypatch).found


def test_missing_essential_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [doctor.Check("a", "ok", "there"), doctor.Check("b", "missing", "not there", "cure")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    assert cli.main(["doctor", "--json"]) == 1
    assert [check["state"] for check in json.loads(capsys.readouterr().out)] == ["ok", "missing"]


def test_this_machine_can_serve() -> None:
    checks = list(doctor.examine())
    assert [check for check in checks if check.state == "missing"] == []
    assert all(check.cure for check in checks if check.state == "note")
