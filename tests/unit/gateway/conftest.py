"""A served model for the tests of what the data plane is told."""

from collections.abc import Callable

import pytest

from lrai.config import KnobsConfig, ModelConfig, SchedulerConfig
from lrai.core.model import TensorInfo
from lrai.registry.resolve import ServedModel


@pytest.fixture
def served() -> Callable[[int], ServedModel]:
    """A model of that maximum batch size, with something in every field."""

    def make(max_batch_size: int) -> ServedModel:
        return ServedModel(
            name="mlp",
            version="3",
            platform="onnxruntime_onnx",
            backend="onnxruntime",
            max_batch_size=max_batch_size,
            inputs=(
                TensorInfo("x", "FP32", (-1, 4)),
                TensorInfo("bias", "FP32", (-1, 1), optional=True),
            ),
            outputs=(TensorInfo("label", "BYTES", (-1,), labels=("no", "yes")),),
            model=ModelConfig(replicas=2, retry=False, max_output_bytes=1 << 20),
            knobs=KnobsConfig(k=16, tau_s=0.0005),
            is_tuned=False,
            scheduler=SchedulerConfig(),
            priority_levels=3,
            default_priority=2,
            file_name="model.onnx",
            parameters={"mode": "fast"},
            num_latest=1,
            guard=(),
            ragged=None,
            notes=(),
        )

    return make
