from typing import Any

import pytest

from lrai.errors import RepositoryError
from lrai.registry.triton_config import TensorConfig, TritonConfig, read_triton_config


def read(plain: dict[str, Any]) -> TritonConfig:
    return read_triton_config(plain, "mlp", "config.pbtxt")


def test_empty_configuration_says_nothing() -> None:
    assert read({}) == TritonConfig()


def test_platform_of_triton_names_the_backend() -> None:
    assert read({"platform": "onnxruntime_onnx"}).backend == "onnxruntime"


def test_tensors_are_read_with_the_names_of_the_protocol() -> None:
    tensor = {"name": "x", "data_type": "TYPE_STRING", "dims": [-1, "3"], "optional": True}
    assert read({"input": [tensor]}).inputs == (TensorConfig("x", "BYTES", (-1, 3), optional=True),)


def test_counts_of_all_instance_groups_are_replicas() -> None:
    config = read({"instance_group": [{"count": 2, "kind": "KIND_CPU"}, {"kind": "KIND_AUTO"}]})
    assert config.replicas == 3
    assert config.notes == ()


def test_gpu_instances_are_a_hint() -> None:
    (note,) = read({"instance_group": [{"count": 1, "kind": "KIND_GPU"}]}).notes
    assert "instance_group[0].kind is KIND_GPU" in note
    assert "hint: " in note


def test_dynamic_batching_sets_knobs() -> None:
    config = read(
        {
            "dynamic_batching": {
                "preferred_batch_size": [4, 8],
                "max_queue_delay_microseconds": "500",
                "default_queue_policy": {"max_queue_size": 32},
            }
        }
    )
    assert (config.preferred_rows, config.queue_delay_us, config.max_queue_requests) == (8, 500, 32)
    assert config.notes == (
        "config.pbtxt: of dynamic_batching.preferred_batch_size only the largest counts (8)",
    )


@pytest.mark.parametrize(
    ("policy", "versions", "latest"),
    [
        ({"latest": {"num_versions": 2}}, None, 2),
        ({"all": {}}, (), 0),
        ({"specific": {"versions": [1, "3"]}}, (1, 3), 0),
        ({}, None, 1),
    ],
)
def test_version_policy(
    policy: dict[str, Any], versions: tuple[int, ...] | None, latest: int
) -> None:
    config = read({"version_policy": policy})
    assert (config.versions, config.num_latest) == (versions, latest)


def test_parameters_are_plain_text() -> None:
    parameters = {"intra_op_thread_count": {"string_value": "2"}, "maxRows": {"stringValue": "3"}}
    assert read({"parameters": parameters}).parameters == {
        "intra_op_thread_count": "2",
        "maxRows": "3",
    }


def test_camel_case_of_protobuf_json_is_understood() -> None:
    config = read({"maxBatchSize": 16, "instanceGroup": [{"count": 2}]})
    assert (config.max_batch_size, config.replicas) == (16, 2)


def test_fields_without_effect_are_noted_by_name() -> None:
    config = read(
        {
            "sequence_batching": {"max_sequence_idle_microseconds": 5},
            "optimization": {},
            "dynamic_batching": {"preserve_ordering": True},
            "input": [{"name": "x", "is_shape_tensor": True}],
        }
    )
    assert config.notes == (
        "config.pbtxt: dynamic_batching.preserve_ordering has no effect here",
        "config.pbtxt: input[0].is_shape_tensor has no effect here",
        "config.pbtxt: sequence_batching has no effect here",
    )


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        ({"name": "other"}, "names the model 'other', but its folder is 'mlp'"),
        ({"max_batch_size": -1}, "max_batch_size is -1"),
        ({"instance_group": [{"count": 0}]}, r"instance_group\[0\].count is 0"),
        ({"instance_group": [{"count": 600}] * 2}, "the sum of instance_group.count is 1200"),
        (
            {"dynamic_batching": {"default_queue_policy": {"max_queue_size": 4294967295}}},
            "max_queue_size is 4294967295",
        ),
        ({"input": [{"dims": [1]}]}, r"input\[0\] has no name"),
        ({"input": [{"name": "x", "data_type": "FLOAT"}]}, r"input\[0\].data_type is 'FLOAT'"),
        ({"output": [{"name": "y", "dims": [-2]}]}, r"output\[0\].dims is -2"),
        ({"version_policy": {"latest": {"num_versions": 0}}}, "num_versions is 0"),
    ],
)
def test_wrong_field_is_a_sentence_that_names_it(plain: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RepositoryError, match=sentence) as caught:
        read(plain)
    assert caught.value.hint
