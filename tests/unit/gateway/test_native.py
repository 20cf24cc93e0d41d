import json
from collections.abc import Callable
from typing import Any

import pytest

from lrai import _native
from lrai.config import load_settings
from lrai.errors import DataPlaneError, RepositoryError
from lrai.gateway.native import Event, Gateway, gateway_config, parse_model_config
from lrai.registry.resolve import ServedModel


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


def test_gateway_configuration_has_the_names_of_the_data_plane() -> None:
    flags = {"header_timeout": "1.5s", "not_ready_status": "503", "metrics_port": "off"}
    flags |= {"model_control_mode": "explicit", "access_log": "true", "runtime_threads": "2"}
    config = gateway_config(load_settings(flags, {}))
    assert config["header_timeout_ms"] == 1500
    assert config["not_ready_status"] == 503
    assert config["metrics_port"] is None
    assert config["threads"] == 2
    assert config["explicit_control"] is True
    assert config["access_log"] is True
    assert config["server_version"] == _native.__version__
    assert not [name for name in config if name.endswith("_s")]


def test_specification_carries_signature_and_limits(
    world: Any, served: Callable[[int], ServedModel]
) -> None:
    spec = world.native.specs[world.gateway.add_model(served(16), "{}")]
    assert spec["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4], "optional": False, "labels": []},
        {"name": "bias", "datatype": "FP32", "shape": [-1, 1], "optional": True, "labels": []},
    ]
    assert spec["outputs"][0]["labels"] == ["no", "yes"]
    assert (spec["retry"], spec["max_output_bytes"]) == (False, 1 << 20)
    assert (spec["name"], spec["version"], spec["max_batch_size"]) == ("mlp", "3", 16)
