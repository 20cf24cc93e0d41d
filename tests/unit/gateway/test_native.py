import json
from typing import Any

import pytest

from lrai import _native
from lrai.errors import DataPlaneError, RepositoryError
from lrai.gateway.native import Event, Gateway, parse_model_config


def test_events_are_values(world: Any) -> None:
    world.native.push("replica_lost", key=1, replica=2, detail="lied")
    world.native.push("command", ticket=3, kind="load", model="mlp", parameters={"a": 1})
    assert world.gateway.events() == [
        Event("replica_lost", key=1, replica=2, detail="lied"),
        Event("command", ticket=3, kind="load", model="mlp", parameters={"a": 1}),
    ]


def test_addresses_are_those_of_the_faces_that_listen(world: Any) -> None:
    assert world.gateway.start() == {"http": "127.0.0.1:8000"}


def test_refusal_of_the_native_half_is_one_of_ours_with_its_hint(world: Any) -> None:
    def refuse() -> str:
        raise _native.NativeError("port 80 is taken, hint: choose another --http-port")

    world.native.start = refuse
    with pytest.raises(DataPlaneError) as caught:
        Gateway(world.native).start()
    assert caught.value.message == "port 80 is taken"
    assert caught.value.hint == "choose another --http-port"


def test_configuration_in_protobuf_text_becomes_json() -> None:
    text = 'name: "mlp" max_batch_size: 8 # rows\ninput: [ { name: "x" dims: [ 4 ] } ]'
    assert json.loads(parse_model_config(text)) == {
        "name": "mlp",
        "max_batch_size": 8,
        "input": [{"name": "x", "dims": [4]}],
    }


def test_mistake_in_protobuf_text_names_its_line() -> None:
    with pytest.raises(RepositoryError, match="line 2: field 'max_batchsize' not found"):
        parse_model_config('name: "mlp"\nmax_batchsize: 8')
