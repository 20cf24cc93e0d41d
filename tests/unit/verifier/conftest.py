"""A model that several files ask about."""

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from lrai.testing.models import save


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    """Write `y = relu(x)` for one number, FP32, to `m.onnx`; return its folder."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in "xy")
    save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [x], [y])
    return tmp_path
