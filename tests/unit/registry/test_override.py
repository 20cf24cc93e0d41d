import base64
import json
from pathlib import Path
from typing import Any

import pytest

from lrai.config import load_settings
from lrai.errors import ModelNotFoundError, RepositoryError
from lrai.registry.override import read_override, remove_folder
from lrai.registry.repository import Repository

MODEL = base64.b64encode(b"model").decode()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    file = tmp_path / "repository" / "mlp" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_text("model")
    settings = load_settings({"path": str(tmp_path / "repository")}, {})
    return Repository(settings, parse_config=str)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_configuration_replaces_the_one_on_disk(repository: Repository, folder: Path) -> None:
    parameters = {"config": '{"max_batch_size": "16"}'}
    source = read_override(repository, "mlp", parameters, folder)
    assert source.folder is None
    assert source.config.max_batch_size == 16


def test_another_configuration_is_another_fingerprint(repository: Repository, folder: Path) -> None:
    marks = {
        read_override(repository, "mlp", {"config": config}, folder).versions[0].fingerprint
        for config in ("{}", '{"max_batch_size": 4}')
    }
    assert len({*marks, repository.find("mlp").versions[0].fingerprint}) == 3


def test_files_are_the_model_and_lie_in_a_private_folder(
    repository: Repository, folder: Path
) -> None:
    parameters = {"config": "{}", "file:2/model.onnx": MODEL}
    source = read_override(repository, "new", parameters, folder)
    assert source.folder is not None
    assert source.folder.stat().st_mode & 0o077 == 0
    assert [version.version for version in source.versions] == ["2"]
    assert source.versions[0].path.read_bytes() == b"model"
    remove_folder(source.folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"file:1/model.onnx": MODEL}, "file overrides come without a configuration"),
        ({"config": "{", "file:1/model.onnx": MODEL}, "'config' is not JSON"),
        ({"config": "[]"}, "'config' is no JSON object"),
        ({"config": "{}", "file:../x": MODEL}, r"'../x' lies outside of the model"),
        ({"config": "{}", "file:/x": MODEL}, "'/x' lies outside of the model"),
        ({"config": "{}", "file:": MODEL}, "'' lies outside of the model"),
        ({"config": "{}", "file:1/model.onnx": "%"}, "cannot be written"),
        ({"config": "{}", "file:1/other.onnx": MODEL}, "the folder has other.onnx"),
    ],
)
def test_wrong_override_is_refused_and_leaves_no_files(
    repository: Repository, folder: Path, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RepositoryError, match=sentence):
        read_override(repository, "mlp", parameters, folder)
    assert list(folder.iterdir()) == []


def test_configuration_of_an_unknown_model_is_refused(repository: Repository, folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="failed to load 'absent'"):
        read_override(repository, "absent", {"config": json.dumps({})}, folder)
