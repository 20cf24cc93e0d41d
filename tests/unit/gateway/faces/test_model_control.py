import os
from typing import Any

from lrai.config import Settings
from lrai.gateway.faces.model_control import ModelControl
from lrai.gateway.native import Event
from lrai.registry.repository import Repository


def make_control(world: Any) -> ModelControl:
    settings: Settings = world.settings()
    repository = Repository(settings, parse_config=str)
    return ModelControl(world.lifecycle(), repository, world.gateway, world.root)


async def test_command_is_answered_when_it_is_done(world: Any) -> None:
    world.write("mlp.onnx")
    await make_control(world).obey(Event("command", ticket=7, kind="load", model="mlp"))
    assert world.native.answers == {7: ("", "")}
    assert world.native.states() == {"mlp/1": "READY"}


async def test_refusal_says_which_command_failed(world: Any) -> None:
    world.write("bad.onnx", "broken")
    await make_control(world).obey(Event("command", ticket=7, kind="load", model="bad"))
    text = "failed to load 'bad', the file is broken hint: export it again"
    assert world.native.answers == {7: ("invalid", text)}


async def test_poll_follows_the_disk(world: Any) -> None:
    kept, gone = world.write("kept.onnx"), world.write("gone.onnx")
    control = make_control(world)
    await control.look_at_disk()
    assert world.native.states() == {"gone/1": "READY", "kept/1": "READY"}
    gone.unlink()
    os.utime(kept, ns=(1, 1))
    world.write("new.onnx")
    world.write("bad.onnx", "broken")
    await control.look_at_disk()
    assert world.native.states() == {
        "bad/1": "the file is broken hint: export it again",
        "kept/1": "READY",
        "new/1": "READY",
    }


async def test_poll_does_not_try_an_unchanged_failure_again(world: Any) -> None:
    world.write("bad.onnx", "broken")
    control = make_control(world)
    await control.look_at_disk()
    await control.look_at_disk()
    assert len(world.supervisor.specs) == 1
    await control.obey(Event("command", ticket=1, kind="load", model="bad"))
    assert len(world.supervisor.specs) == 2


async def test_broken_change_is_tried_once_and_the_former_files_stay(world: Any) -> None:
    world.write("mlp.onnx")
    control = make_control(world)
    await control.look_at_disk()
    world.write("mlp.onnx", "broken")
    await control.look_at_disk()
    await control.look_at_disk()
    assert len(world.supervisor.specs) == 2
    assert world.native.states() == {"mlp/1": "READY"}
    assert world.native.routes == {("mlp", "1"): 1}


async def test_broken_configuration_of_a_served_model_leaves_it_in_service(world: Any) -> None:
    world.write("mlp/1/model.onnx")
    control = make_control(world)
    await control.look_at_disk()
    world.write("mlp/config.pbtxt", '{"max_batch_size": "four"}')
    await control.look_at_disk()
    assert world.native.states() == {"mlp/1": "READY"}
    assert world.native.routes == {("mlp", "1"): 1}
