import asyncio
import base64
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lrai.errors import ModelLoadError, ModelNotFoundError, RepositoryError
from lrai.registry.override import read_override
from lrai.registry.repository import Repository


async def test_loaded_model_is_routed_and_stands_in_the_index(world: Any) -> None:
    world.write("mlp/2/model.onnx")
    await world.lifecycle().load("mlp")
    assert world.native.routes == {("mlp", "2"): 1}
    assert world.native.index == [{"name": "mlp", "version": "2", "state": "READY", "reason": ""}]
    assert world.native.specs[1]["inputs"][0]["shape"] == [-1, 4]


async def test_actor_gets_the_settings_of_its_model(world: Any) -> None:
    world.write("mlp/1/model.onnx")
    world.write("mlp/lrai.toml", '[model]\nthreads = 3\nmemory_limit = "1GiB"\n[options]\na = 1\n')
    await world.lifecycle(execution_timeout="5s", k="8", tau="1ms").load("mlp")
    (spec,) = world.supervisor.specs
    assert (spec.model.threads, spec.memory_limit_bytes, spec.execution_timeout_s) == (
        3,
        1 << 30,
        5.0,
    )
    assert spec.model.options == {"a": "1"}
    assert {key: knobs["k"] for key, knobs in world.native.knobs.items()} == {1: 8}
    assert (world.native.knobs[1]["tau_us"], world.native.knobs[1]["slack_us"]) == (1000, 1000)


async def test_memory_limit_is_half_of_the_machine_unless_said(world: Any) -> None:
    world.write("mlp.onnx")
    await world.lifecycle().load("mlp")
    assert world.supervisor.specs[0].memory_limit_bytes > 0


async def test_model_is_not_routed_before_it_is_ready(world: Any) -> None:
    world.write("mlp.onnx", "silent")
    lifecycle = world.lifecycle()
    loading = asyncio.ensure_future(lifecycle.load("mlp"))
    await world.until(lambda: world.native.specs)
    assert world.native.routes == {}
    assert world.native.states() == {"mlp/1": "LOADING"}
    world.supervisor.released = {1}
    await loading
    assert world.native.routes == {("mlp", "1"): 1}


async def test_bad_model_stands_in_the_index_with_its_reason(world: Any) -> None:
    world.write("bad.onnx", "broken")
    with pytest.raises(ModelLoadError):
        await world.lifecycle().load("bad")
    (row,) = world.native.index
    assert (row["state"], row["reason"]) == (
        "UNAVAILABLE",
        "the file is broken hint: export it again",
    )


async def test_bad_configuration_stands_in_the_index_without_a_version(world: Any) -> None:
    world.write("bad/1/other.txt")
    with pytest.raises(RepositoryError):
        await world.lifecycle().load("bad")
    (row,) = world.native.index
    assert (row["version"], row["state"]) == ("", "UNAVAILABLE")


async def test_repaired_model_replaces_its_reason(world: Any) -> None:
    lifecycle = world.lifecycle()
    world.write("mlp/1/other.txt")
    with pytest.raises(RepositoryError):
        await lifecycle.load("mlp")
    world.write("mlp/1/model.onnx")
    await lifecycle.load("mlp")
    assert world.native.states() == {"mlp/1": "READY"}


async def test_unknown_model_leaves_no_trace_in_the_index(world: Any) -> None:
    with pytest.raises(ModelNotFoundError):
        await world.lifecycle().load("absent")
    assert world.native.index == []


async def test_configuration_that_contradicts_the_model_ends_its_actor(world: Any) -> None:
    world.write("mlp/1/model.onnx")
    world.write("mlp/config.pbtxt", '{"input": [{"name": "z", "dims": [4]}]}')
    with pytest.raises(RepositoryError, match="has the input z"):
        await world.lifecycle().load("mlp")
    assert world.supervisor.actors[0].has_left


async def test_loading_again_changes_nothing_if_nothing_has_changed(world: Any) -> None:
    world.write("mlp.onnx")
    lifecycle = world.lifecycle()
    await lifecycle.load("mlp")
    await lifecycle.load("mlp")
    assert len(world.supervisor.specs) == 1


async def test_changed_model_is_loaded_before_the_former_one_goes(world: Any) -> None:
    file = world.write("mlp.onnx")
    lifecycle = world.lifecycle()
    await lifecycle.load("mlp")
    os.utime(file, ns=(1, 1))
    await lifecycle.load("mlp")
    await world.until(lambda: world.supervisor.unloaded)
    assert world.native.routes == {("mlp", "1"): 2}
    assert world.native.calls == ["publish 1", "publish 2"]
    assert world.supervisor.unloaded == [1]


async def test_failed_change_leaves_the_former_one_in_service(world: Any) -> None:
    world.write("mlp.onnx")
    lifecycle = world.lifecycle()
    await lifecycle.load("mlp")
    world.write("mlp.onnx", "broken")
    with pytest.raises(ModelLoadError):
        await lifecycle.load("mlp")
    assert world.native.routes == {("mlp", "1"): 1}
    assert world.native.states() == {"mlp/1": "READY"}


async def test_newer_version_takes_over_from_the_older(world: Any) -> None:
    world.write("mlp/1/model.onnx")
    lifecycle = world.lifecycle()
    await lifecycle.load("mlp")
    world.write("mlp/2/model.onnx")
    await lifecycle.load("mlp")
    assert world.native.calls == ["publish 1", "publish 2", "remove 1"]
    assert world.native.states() == {"mlp/1": "unloaded", "mlp/2": "READY"}


async def test_older_version_stays_if_the_newer_fails(world: Any) -> None:
    world.write("mlp/1/model.onnx")
    lifecycle = world.lifecycle()
    await lifecycle.load("mlp")
    world.write("mlp/2/model.onnx", "broken")
    with pytest.raises(ModelLoadError):
        await lifecycle.load("mlp")
    assert world.native.routes == {("mlp", "1"): 1}


async def test_unloaded_model_lets_go_of_its_actors(world: Any) -> None:
    world.write("mlp.onnx")
    lifecycle = world.lifecycle()
    await lifecycle.load("mlp")
    await lifecycle.unload("mlp")
    assert world.native.states() == {"mlp/1": "unloaded"}
    await world.until(lambda: world.supervisor.unloaded == [1])
    await lifecycle.load("mlp")
    assert world.native.states() == {"mlp/1": "READY"}


async def test_unknown_model_cannot_be_unloaded(world: Any) -> None:
    with pytest.raises(ModelNotFoundError, match="failed to unload 'absent'"):
        await world.lifecycle().unload("absent")


async def test_model_that_is_given_up_is_undone(world: Any) -> None:
    world.write("mlp.onnx", "dying")
    with pytest.raises(ModelLoadError, match="died 3 times before it was ready"):
        await world.lifecycle().load("mlp")
    assert world.native.calls == ["remove 1"]
    assert world.native.index[0]["state"] == "UNAVAILABLE"
    await world.until(lambda: world.supervisor.unloaded == [1])


async def test_model_that_is_never_ready_is_given_up(world: Any) -> None:
    world.write("mlp.onnx", "silent")
    with pytest.raises(ModelLoadError, match=r"not ready within 0\.02 s hint: raise load_timeout"):
        await world.lifecycle(load_timeout="20ms").load("mlp")
    assert world.native.calls == ["remove 1"]


async def test_known_models_stand_in_the_index_by_name_alone(world: Any) -> None:
    world.lifecycle().index.know(["b", "a"])
    assert world.native.index == [
        {"name": name, "version": "", "state": "", "reason": ""} for name in ("a", "b")
    ]


async def test_no_more_models_are_loaded_at_once_than_allowed(world: Any) -> None:
    for name in ("a", "b", "c"):
        world.write(f"{name}.onnx", "silent")
    lifecycle = world.lifecycle(parallel_loads="2")
    loads = [asyncio.ensure_future(lifecycle.load(name)) for name in ("a", "b", "c")]
    await world.until(lambda: len(world.native.specs) == 2)
    world.supervisor.released = {1}
    await world.until(lambda: len(world.native.specs) == 3)
    world.supervisor.released = {1, 2, 3}
    await asyncio.gather(*loads)


def sent(world: Any, content: bytes, folder: Path) -> Any:
    """Read a model from the files of a load command."""
    folder.mkdir()
    file = base64.b64encode(content).decode()
    parameters = {"config": "{}", "file:1/model.onnx": file}
    repository = Repository(world.settings(), parse_config=str)
    return partial(read_override, repository, "new", parameters, folder)


async def test_files_of_a_command_live_as_long_as_their_model(world: Any, tmp_path: Path) -> None:
    lifecycle = world.lifecycle()
    await lifecycle.load("new", sent(world, b"good", tmp_path / "run"))
    assert world.native.states() == {"new/1": "READY"}
    (folder,) = (tmp_path / "run").iterdir()
    await lifecycle.unload("new")
    await world.until(lambda: not folder.exists())


async def test_files_of_a_failed_command_are_removed(world: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        await world.lifecycle().load("new", sent(world, b"broken", tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


async def test_served_model_is_known_by_its_key(world: Any) -> None:
    world.write("mlp.onnx")
    lifecycle = world.lifecycle()
    await lifecycle.load("mlp")
    assert (lifecycle.name_of(1), lifecycle.name_of(2)) == ("mlp", "")
