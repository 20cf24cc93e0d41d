import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lrai.errors import RepositoryError
from lrai.registry.guard import GuardBox, read_guard


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a model")
    return path


def guard(path: Path, **changes: Any) -> str:
    document = {
        "format": "lrai-guard-1",
        "model": hashlib.sha256(path.read_bytes()).hexdigest(),
        "claim": "it stays small",
        "boxes": [{"lower": [0, 0.5], "upper": [1, 2]}],
    }
    return json.dumps(document | changes)


@pytest.mark.parametrize("place", ["1/model.guard.json", "1/guard.json", "guard.json"])
def test_a_guard_lies_beside_the_file_or_beside_the_versions(model: Path, place: str):
    (model.parent.parent / place).write_text(guard(model))
    boxes, note = read_guard(model)
    assert boxes == (GuardBox((0.0, 0.5), (1.0, 2.0)),)
    assert "it stays small" in note


def test_a_folder_of_files_has_no_common_guard(model: Path):
    bare = model.parent.parent / "bare.onnx"
    bare.write_bytes(b"another")
    (bare.parent / "guard.json").write_text(guard(bare))
    assert read_guard(bare) == ((), "")


def test_a_guard_of_another_file_marks_nothing_and_says_so(model: Path):
    (model.parent / "guard.json").write_text(guard(model, model="0" * 64))
    boxes, note = read_guard(model)
    assert boxes == ()
    assert "another file" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "lrai-guard-9"},
        {"boxes": []},
        {"boxes": [{"lower": [0]}]},
        {"boxes": [{"lower": [0], "upper": [1, 2]}]},
        {"boxes": [{"lower": ["nan"], "upper": [1]}]},
        {"boxes": 3},
    ],
)
def test_what_is_no_guard_is_refused(model: Path, changes: dict[str, Any]):
    (model.parent / "guard.json").write_text(guard(model, **changes))
    with pytest.raises(RepositoryError, match=r"guard|format"):
        read_guard(model)


def test_a_broken_file_is_refused(model: Path):
    (model.parent / "guard.json").write_text("{" * 100_000)
    with pytest.raises(RepositoryError, match="cannot be read"):
        read_guard(model)
