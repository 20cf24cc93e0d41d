"""Many rows at once give what single rows give, whatever the file says about its batch."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrai.errors import InvalidInputError, ModelLoadError, UnsupportedError
from lrai.testing.models import identity, save
from lrai.verifier.deployed import DeployedModel

FLOAT = TensorProto.FLOAT


def fixed_batch(path, reshape):
    """`y = flatten(x) @ w` with a batch of 1, flattened by Flatten or by a Reshape to `[1, 4]`."""
    weights = [
        numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w"),
        numpy_helper.from_array(np.array([1, 4]), "shape"),
    ]
    flat = ("Reshape", ["x", "shape"]) if reshape else ("Flatten", ["x"])
    nodes = [
        helper.make_node(flat[0], flat[1], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", FLOAT, [1, 2, 2])
    y = helper.make_tensor_value_info("y", FLOAT, [1, 3])
    return save(path, nodes, [x], [y], weights)


@pytest.mark.parametrize(("reshape", "is_batched"), [(False, True), (True, False)])
def test_rows_through_a_fixed_batch_are_evaluated_one_by_one_or_freed(
    tmp_path, reshape, is_batched
):
    model = DeployedModel(fixed_batch(tmp_path / "m.onnx", reshape))
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    expected = x @ np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_allclose(model.evaluate(x), expected)
    assert model.is_batched is is_batched


def test_mixing_rows_keeps_the_batch_fixed(tmp_path):
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)
    info = [helper.make_tensor_value_info(name, FLOAT, [1, 4]) for name in "xy"]
    model = DeployedModel(save(tmp_path / "m.onnx", [mean], info[:1], info[1:]))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(model.evaluate(x), x)


def test_several_inputs_share_one_flat_row(tmp_path):
    nodes = [helper.make_node("Sub", ["a", "b"], ["y"])]
    info = [helper.make_tensor_value_info(name, FLOAT, ["N", 2]) for name in "aby"]
    model = DeployedModel(save(tmp_path / "m.onnx", nodes, info[:2], info[2:]))
    assert model.evaluate(np.array([[5, 6, 1, 4]], np.float32)).tolist() == [[4, 2]]


def test_digest_is_the_sha256_of_the_file(tmp_path):
    path = identity(tmp_path / "m.onnx")
    first = DeployedModel(path).digest
    loaded = onnx.load(path)
    loaded.doc_string = "other"
    onnx.save(loaded, path)
    assert len(first) == 64
    assert DeployedModel(path).digest != first


def test_what_cannot_be_run_is_said(tmp_path):
    with pytest.raises(ModelLoadError, match=r"missing\.onnx cannot be read.*hint:"):
        DeployedModel(tmp_path / "missing.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelLoadError, match="onnxruntime refuses"):
        DeployedModel(tmp_path / "bad.onnx")
    with pytest.raises(UnsupportedError, match="input x of"):
        DeployedModel(identity(tmp_path / "int.onnx", "INT32"))
    with pytest.raises(UnsupportedError, match="input x of"):
        DeployedModel(identity(tmp_path / "free.onnx", "FP32", ["N", "M"]))


def test_rows_of_another_length_are_refused(tmp_path):
    model = DeployedModel(identity(tmp_path / "m.onnx"))
    with pytest.raises(InvalidInputError, match="4 inputs"):
        model.evaluate(np.zeros((2, 3), np.float32))


def test_int8_weights_leave_the_activations_in_float32(tmp_path):
    random = np.random.default_rng(0)
    levels = random.integers(-127, 128, (16, 16)).astype(np.int8)
    scale = random.random(16, dtype=np.float32) / 127
    weights = [numpy_helper.from_array(levels, "levels"), numpy_helper.from_array(scale, "scale")]
    nodes = [
        helper.make_node("DequantizeLinear", ["levels", "scale"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, FLOAT, ["N", 16]) for name in "xy"]
    model = DeployedModel(save(tmp_path / "m.onnx", nodes, info[:1], info[1:], weights, opset=21))
    x = random.random((8, 16), dtype=np.float32)
    expected = x.astype(np.float64) @ (levels * scale.astype(np.float64))
    np.testing.assert_allclose(model.evaluate(x), expected, atol=1e-5)
