import json
import os
from pathlib import Path

import pytest

from lrai.config import Settings, load_settings
from lrai.errors import ConfigError, ModelNotFoundError, RepositoryError
from lrai.registry.repository import Repository


def write(file: Path, content: str = "model") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def open_repository(path: Path, **flags: str) -> Repository:
    """Configurations in these tests are JSON already."""
    return Repository(load_settings({"path": str(path), **flags}, {}), parse_config=str)


def versions_of(repository: Repository, name: str) -> list[str]:
    return [version.version for version in repository.find(name).versions]


def test_single_file_is_one_model_called_by_its_stem(tmp_path: Path) -> None:
    file = write(tmp_path / "mlp.v2.onnx")
    repository = open_repository(file)
    assert repository.is_single
    assert repository.names() == ["mlp.v2"]
    source = repository.find("mlp.v2")
    assert source.backend == "onnxruntime"
    (version,) = source.versions
    assert (version.version, version.path) == ("1", file)


def test_folder_of_files_is_one_model_each(tmp_path: Path) -> None:
    write(tmp_path / "b.onnx")
    write(tmp_path / "a.onnx")
    write(tmp_path / "notes.txt")
    write(tmp_path / ".hidden.onnx")
    repository = open_repository(tmp_path)
    assert not repository.is_single
    assert repository.names() == ["a", "b"]


def test_latest_version_of_a_repository_is_served(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        write(tmp_path / "mlp" / version / "model.onnx")
    repository = open_repository(tmp_path)
    (version,) = repository.find("mlp").versions
    assert version.version == "10"
    assert version.path == tmp_path / "mlp" / "10" / "model.onnx"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"all": {}}, ["1", "2", "3"]),
        ({"latest": {"num_versions": 2}}, ["2", "3"]),
        ({"specific": {"versions": [1, 3]}}, ["1", "3"]),
    ],
)
def test_version_policy_chooses(tmp_path: Path, policy: object, expected: list[str]) -> None:
    for version in ("1", "2", "3", "03", "x"):
        write(tmp_path / "mlp" / version / "model.onnx")
    write(tmp_path / "mlp" / "config.pbtxt", json.dumps({"version_policy": policy}))
    assert versions_of(open_repository(tmp_path), "mlp") == expected


def test_folder_of_one_model_is_a_repository_of_one(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.onnx")
    repository = open_repository(tmp_path / "mlp")
    assert repository.is_single
    assert repository.names() == ["mlp"]
    assert versions_of(repository, "mlp") == ["1"]


def test_python_model_is_known_by_its_file(tmp_path: Path) -> None:
    write(tmp_path / "mean" / "1" / "model.py")
    source = open_repository(tmp_path).find("mean")
    assert source.backend == "python"
    assert source.versions[0].path == tmp_path / "mean" / "1"


def test_external_data_may_lie_in_a_folder_called_like_the_file(tmp_path: Path) -> None:
    write(tmp_path / "big" / "1" / "model.onnx" / "model.onnx")
    write(tmp_path / "big" / "1" / "model.onnx" / "weights.bin")
    (version,) = open_repository(tmp_path).find("big").versions
    assert version.path == tmp_path / "big" / "1" / "model.onnx" / "model.onnx"
    assert len(version.fingerprint) == 2


def test_default_file_name_can_be_another(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "net.onnx")
    write(tmp_path / "mlp" / "config.pbtxt", '{"default_model_filename": "net.onnx"}')
    (version,) = open_repository(tmp_path).find("mlp").versions
    assert version.path.name == "net.onnx"


def test_lrai_toml_wins_over_the_server_and_carries_options(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.onnx")
    text = '[model]\nreplicas = 3\n[knobs]\ntau = "2ms"\n[options]\nlevel = 1\n'
    write(tmp_path / "mlp" / "lrai.toml", text)
    source = open_repository(tmp_path, replicas="2", threads="1").find("mlp")
    assert (source.settings.model.replicas, source.settings.model.threads) == (3, 1)
    assert source.settings.knobs.tau_s == pytest.approx(0.002)
    assert source.options == {"level": "1"}


def test_declared_tensors_reach_a_python_model_with_the_batch_dimension(tmp_path: Path) -> None:
    write(tmp_path / "mean" / "1" / "model.py")
    tensor = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
    config = {"max_batch_size": 8, "input": [tensor], "output": [{**tensor, "name": "y"}]}
    write(tmp_path / "mean" / "config.pbtxt", json.dumps(config))
    options = open_repository(tmp_path).find("mean").options
    assert json.loads(options["inputs"]) == [["x", "FP32", [-1, 4]]]
    assert json.loads(options["outputs"]) == [["y", "FP32", [-1, 4]]]


def test_label_files_are_read(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.onnx")
    write(tmp_path / "mlp" / "labels.txt", "cat\ndog\n\n")
    config = {"output": [{"name": "y", "label_filename": "labels.txt"}]}
    write(tmp_path / "mlp" / "config.pbtxt", json.dumps(config))
    assert open_repository(tmp_path).find("mlp").labels == {"y": ("cat", "dog")}


def test_fingerprint_changes_with_file_configuration_and_guard(tmp_path: Path) -> None:
    file = write(tmp_path / "mlp" / "1" / "model.onnx")
    repository = open_repository(tmp_path)

    def fingerprint() -> object:
        return repository.find("mlp").versions[0].fingerprint

    first = fingerprint()
    assert fingerprint() == first
    os.utime(file, ns=(1, 1))
    second = fingerprint()
    assert second != first
    write(tmp_path / "mlp" / "lrai.toml", "[model]\nreplicas = 2\n")
    third = fingerprint()
    assert third != second
    write(tmp_path / "mlp" / "guard.json", "{}")
    assert fingerprint() != third


def test_the_fingerprint_of_a_bare_file_counts_its_guard(tmp_path: Path) -> None:
    write(tmp_path / "mlp.onnx")
    first = open_repository(tmp_path).find("mlp").versions[0].fingerprint
    write(tmp_path / "mlp.guard.json", "{}")
    assert open_repository(tmp_path).find("mlp").versions[0].fingerprint != first


def test_folders_that_are_no_models_are_told(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.onnx")
    write(tmp_path / "pictures" / "cat.png")
    write(tmp_path / ".git" / "config")
    repository = open_repository(tmp_path)
    assert repository.names() == ["mlp"]
    assert repository.strangers() == ["pictures"]


def test_nothing_at_the_path_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no model at .*absent' hint: "):
        open_repository(tmp_path / "absent")


def test_unknown_model_is_answered_as_triton_does(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="failed to load 'x', failed to poll from model"):
        open_repository(tmp_path).find("x")


def test_two_models_of_one_name_are_both_refused(tmp_path: Path) -> None:
    write(tmp_path / "mlp.onnx")
    write(tmp_path / "mlp" / "1" / "model.onnx")
    with pytest.raises(RepositoryError, match="are both called 'mlp' hint: rename"):
        open_repository(tmp_path).find("mlp")


@pytest.mark.parametrize("name", ["stats", "a?b", "50%", "a#b", "a\\b"])
def test_name_that_cannot_stand_in_a_url_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / f"{name}.onnx")
    with pytest.raises(RepositoryError, match="cannot be called"):
        open_repository(tmp_path).find(name)


def test_model_without_versions_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "model.onnx")
    with pytest.raises(RepositoryError, match=r"there is no version in .* hint: put the model's"):
        open_repository(tmp_path).find("mlp")


def test_absent_chosen_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.onnx")
    config = {"version_policy": {"specific": {"versions": [7]}}}
    write(tmp_path / "mlp" / "config.pbtxt", json.dumps(config))
    with pytest.raises(
        RepositoryError, match=r"none of the versions \[7\] in .* hint: there are \[1\]"
    ):
        open_repository(tmp_path).find("mlp")


def test_version_without_the_file_tells_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "weights.onnx")
    with pytest.raises(RepositoryError, match=r"the folder has weights.onnx\) hint: rename it"):
        open_repository(tmp_path).find("mlp")


def test_unknown_backend_names_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.savedmodel")
    write(tmp_path / "mlp" / "config.pbtxt", '{"platform": "tensorflow_savedmodel"}')
    with pytest.raises(RepositoryError, match="'tensorflow_savedmodel' is not known hint"):
        open_repository(tmp_path).find("mlp")


@pytest.mark.parametrize("place", ["loop.onnx", "loop/1/model.onnx"])
def test_circular_link_is_a_sentence(tmp_path: Path, place: str) -> None:
    link = tmp_path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(link)
    repository = open_repository(tmp_path)
    assert repository.names() == ["loop"]
    with pytest.raises(RepositoryError, match=r"hint: |not there"):
        repository.find("loop")


def test_repository_that_contains_itself_is_read(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.onnx")
    (tmp_path / "mlp" / "1" / "again").symlink_to(tmp_path)
    assert versions_of(open_repository(tmp_path), "mlp") == ["1"]


def test_bad_lrai_toml_names_the_file(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.onnx")
    file = write(tmp_path / "mlp" / "lrai.toml", "[model]\nreplicas = -1\n")
    with pytest.raises(ConfigError, match=f"{file} .model. replicas has the value '-1'"):
        open_repository(tmp_path).find("mlp")


def test_bad_config_pbtxt_names_the_file(tmp_path: Path) -> None:
    write(tmp_path / "mlp" / "1" / "model.onnx")
    write(tmp_path / "mlp" / "config.pbtxt", "max_batch_size: oops")

    def refuse(_: str) -> str:
        raise RepositoryError("line 1: max_batch_size is no number", hint="write a number")

    repository = Repository(load_settings({"path": str(tmp_path)}, {}), parse_config=refuse)
    with pytest.raises(RepositoryError, match=r"config.pbtxt: line 1: .* hint: write a number"):
        repository.find("mlp")


def test_no_path_is_a_sentence() -> None:
    with pytest.raises(RepositoryError, match="no model at ''"):
        Repository(Settings(), parse_config=str)
