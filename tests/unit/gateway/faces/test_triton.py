import json
from collections.abc import Callable

import pytest

from lrai.gateway.faces.triton import model_config
from lrai.registry.resolve import ServedModel


def test_configuration_of_a_batched_model_leaves_out_the_batch_dimension(
    served: Callable[[int], ServedModel],
) -> None:
    config = json.loads(model_config(served(16)))
    assert [tensor["dims"] for tensor in config["input"]] == [[4], [1]]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["output"][0]["data_type"] == "TYPE_STRING"
    assert config["dynamic_batching"]["preferred_batch_size"] == [16]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 500
    assert config["dynamic_batching"]["priority_levels"] == 3
    assert config["dynamic_batching"]["default_priority_level"] == 2
    assert config["instance_group"][0]["count"] == 2
    assert config["parameters"] == {
        "labels.label": {"string_value": '["no", "yes"]'},
        "mode": {"string_value": "fast"},
    }


def test_configuration_of_an_unbatched_model_has_full_shapes_and_no_batching(
    served: Callable[[int], ServedModel],
) -> None:
    config = json.loads(model_config(served(0)))
    assert [tensor["dims"] for tensor in config["input"]] == [[-1, 4], [-1, 1]]
    assert "dynamic_batching" not in config


@pytest.mark.parametrize(
    "field",
    ["version_policy", "optimization", "model_transaction_policy", "default_model_filename"],
)
def test_configuration_has_what_perf_analyzer_looks_for(
    field: str, served: Callable[[int], ServedModel]
) -> None:
    assert field in json.loads(model_config(served(0)))
