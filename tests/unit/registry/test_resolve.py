import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lrai.config import load_settings
from lrai.core.model import Cut, Ragged, Signature, TensorInfo
from lrai.errors import RepositoryError
from lrai.registry.repository import ModelSource, Repository
from lrai.registry.resolve import ServedModel, model_settings, resolve

BATCHED = Signature(
    platform="onnxruntime_onnx",
    inputs=(TensorInfo("x", "FP32", (-1, 3, -1)),),
    outputs=(TensorInfo("y", "INT64", (-1,), labels=("a", "b")),),
    batchable=True,
)
FIXED = replace(BATCHED, inputs=(TensorInfo("x", "FP32", (1, 3, 8)),), batchable=False)


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Return a function from a configuration and flags to a model on disk."""

    def make(config: dict[str, Any] | None = None, size: int = 5, **flags: str) -> ModelSource:
        folder = tmp_path / "mlp"
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "1" / "model.onnx").write_bytes(bytes(size))
        if config is not None:
            (folder / "config.pbtxt").write_text(json.dumps(config))
        settings = load_settings({"path": str(tmp_path), **flags}, {})
        return Repository(settings, parse_config=str).find("mlp")

    return make


def served(source: ModelSource, signature: Signature = BATCHED) -> ServedModel:
    return resolve(source, "1", signature, cpus=4)


def test_batchable_model_without_configuration_is_batched(source: Any) -> None:
    model = served(source())
    assert model.max_batch_size == 64
    assert model.knobs.k == 64
    assert (model.inputs, model.outputs) == (BATCHED.inputs, BATCHED.outputs)


def test_model_without_free_dimension_is_not_batched(source: Any) -> None:
    assert served(source(), FIXED).max_batch_size == 0


def test_configuration_wins_over_the_setting(source: Any) -> None:
    assert served(source({"max_batch_size": 8}, max_batch_size="32")).max_batch_size == 8


def test_batching_can_be_switched_off(source: Any) -> None:
    assert served(source({"max_batch_size": 0})).max_batch_size == 0


def test_batching_that_the_model_cannot_do_is_refused_with_its_signature(source: Any) -> None:
    with pytest.raises(RepositoryError, match=r"max_batch_size 8, .* \(x FP32\[1, 3, 8\]\)"):
        served(source({"max_batch_size": 8}), FIXED)


def test_full_shapes_without_batch_size_mean_no_batching(source: Any) -> None:
    tensor = {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3, 8]}
    model = served(source({"input": [tensor]}))
    assert model.max_batch_size == 0
    assert model.inputs[0].shape == (-1, 3, 8)
    assert "set max_batch_size" in model.notes[0]


def test_configuration_may_narrow_a_free_dimension(source: Any) -> None:
    tensor = {"name": "x", "data_type": "TYPE_FP32", "dims": [3, 8]}
    assert served(source({"max_batch_size": 4, "input": [tensor]})).inputs[0].shape == (-1, 3, 8)


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        ({"name": "z", "dims": [3, 8]}, "has the input z, which the model has not: "),
        ({"name": "x", "data_type": "TYPE_INT8", "dims": [3, 8]}, "says INT8 for x, but the model"),
        ({"name": "x", "dims": [4, 8]}, r"dims \[4, 8\] for x, but the model has x FP32\[-1, 3"),
        ({"name": "x", "dims": [8]}, r"dims \[8\] for x, but the model has x FP32\[-1, 3, -1\]"),
    ],
)
def test_contradiction_is_refused(source: Any, tensor: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RepositoryError, match=sentence) as caught:
        served(source({"max_batch_size": 4, "input": [tensor]}))
    assert caught.value.hint


def test_reshape_is_noted_and_the_shape_of_the_model_stays(source: Any) -> None:
    tensor = {"name": "x", "dims": [24], "reshape": {"shape": [3, 8]}}
    model = served(source({"max_batch_size": 4, "input": [tensor]}))
    assert model.inputs == BATCHED.inputs
    assert any("reshape for x, which has no effect" in note for note in model.notes)


def test_labels_of_a_file_replace_those_of_the_model(source: Any) -> None:
    with_labels = replace(source(), labels={"y": ("cat", "dog")})
    assert served(with_labels).outputs[0].labels == ("cat", "dog")
    assert served(source()).outputs[0].labels == ("a", "b")


def test_threads_are_shared_between_replicas(source: Any) -> None:
    source = partial(source, size=1 << 16)
    assert model_settings(source(), cpus=4)[0].threads == 4
    assert model_settings(source({"instance_group": [{"count": 3}]}), cpus=4)[0].threads == 1
    assert model_settings(source(None, threads="2"), cpus=4)[0].threads == 2


def test_a_tiny_model_has_one_thread_unless_it_is_told(source: Any) -> None:
    assert model_settings(source(), cpus=4)[0].threads == 1
    assert model_settings(source(None, threads="2"), cpus=4)[0].threads == 2


def test_threads_may_come_from_the_parameters_that_triton_users_write(source: Any) -> None:
    config = {"parameters": {"intra_op_thread_count": {"string_value": "3"}}}
    assert model_settings(source(config), cpus=8)[0].threads == 3


def test_dynamic_batching_becomes_knobs(source: Any) -> None:
    batching = {"preferred_batch_size": [16], "max_queue_delay_microseconds": 250}
    model = served(source({"max_batch_size": 8, "dynamic_batching": batching}))
    assert model.knobs.k == 8
    assert model.knobs.tau_s == pytest.approx(250e-6)


FOUND = Ragged((2,), (Cut(),), (16, 32, 64, 128), 128)
RAGGED = replace(BATCHED, ragged=FOUND)


def test_lengths_share_a_batch_as_the_backend_found(source: Any) -> None:
    assert served(source(), RAGGED).ragged == FOUND
    assert served(source(), BATCHED).ragged is None


def test_lengths_stay_apart_where_requests_do_and_the_reason_is_noted(source: Any) -> None:
    assert served(source({"max_batch_size": 0}), RAGGED).ragged is None
    refused = served(source(), replace(BATCHED, ragged=Ragged(note="why")))
    assert refused.ragged is None
    assert "why" in refused.notes


def test_configured_edges_take_the_place_of_the_first_ones(source: Any) -> None:
    assert served(source(edges="50,20"), RAGGED).ragged == replace(FOUND, edges=(20, 50))
    assert served(source(edges="48"), RAGGED).ragged == replace(FOUND, edges=(48, 96, 128))


def test_only_the_users_word_pads_beyond_what_was_tried(source: Any) -> None:
    for padding, longest in (("auto", 128), ("accept", 999)):
        model = served(source(edges="50,999", padding=padding), RAGGED).ragged
        assert model == replace(FOUND, edges=(50, 999), longest=longest)


def test_priority_classes_come_from_dynamic_batching(source: Any) -> None:
    model = served(source())
    assert (model.priority_levels, model.default_priority) == (0, 0)
    batching = {"priority_levels": 3, "default_priority_level": 2}
    model = served(source({"max_batch_size": 8, "dynamic_batching": batching}))
    assert (model.priority_levels, model.default_priority) == (3, 2)
    assert not any("priority" in note for note in model.notes)
    with pytest.raises(RepositoryError, match="default_priority_level is 0"):
        source({"dynamic_batching": {"priority_levels": 3}})
