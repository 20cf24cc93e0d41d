"""A witness counts only where two engines agree on float32 inputs inside the box."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from lrai.errors import VerifierError
from lrai.verifier.property import Case
from lrai.verifier.replay import Part, Replay, float32_inside


@pytest.fixture
def doubled(tmp_path):
    """y = 2 x for two inputs."""
    weights = numpy_helper.from_array(np.eye(2, dtype=np.float32) * 2, "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [weights],
    )
    path = tmp_path / "doubled.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def case(lower, upper, row, offset):
    return Case(np.array(lower), np.array(upper), np.array([row]), np.array([offset]))


def test_a_true_witness_is_confirmed_with_the_outputs_of_the_model(doubled):
    found = Replay([Part(doubled)]).confirm(
        case([0.0, 0.0], [1.0, 1.0], [1.0, 1.0], 0.5), np.array([0.1, 0.1])
    )
    assert found is not None
    np.testing.assert_array_equal(found.x, np.float32([0.1, 0.1]).astype(np.float64))
    np.testing.assert_array_equal(found.y, found.x * 2)


def test_a_point_that_only_the_search_took_for_unsafe_is_refused(doubled):
    unsafe = case([0.0, 0.0], [1.0, 1.0], [1.0, 0.0], 0.5)
    assert Replay([Part(doubled)]).confirm(unsafe, np.array([0.26, 0.0])) is None


def test_rounding_to_float32_stays_inside_the_box():
    lower, upper = np.array([0.1, -0.1]), np.array([0.2, 0.1])
    found = float32_inside(np.array([0.1, 0.1]), lower, upper)
    assert found is not None
    assert found.dtype == np.float32
    assert ((found >= lower) & (found <= upper)).all()


def test_a_side_without_a_float32_value_has_no_witness():
    point = np.array([0.1])
    assert float32_inside(point, point, point) is None
    assert float32_inside(point * 0 + 0.5, point * 0 + 0.5, point * 0 + 0.5) is not None


def test_a_product_of_two_models_takes_the_difference_of_their_outputs(doubled):
    same = np.arange(2)
    parts = [Part(doubled, same, np.eye(2)), Part(doubled, same, -np.eye(2))]
    reference, runtime = Replay(parts).outputs(np.float32([0.3, 0.7]))
    np.testing.assert_array_equal(reference, [0, 0])
    np.testing.assert_array_equal(runtime, [0, 0])


def test_outputs_of_several_models_stand_side_by_side(doubled):
    parts = [Part(doubled, np.array([0, 1])), Part(doubled, np.array([2, 3]))]
    _, runtime = Replay(parts).outputs(np.float32([1, 2, 3, 4]))
    np.testing.assert_array_equal(runtime, [2, 4, 6, 8])


def test_a_file_that_is_no_model_is_a_verifier_error(tmp_path):
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(VerifierError, match="cannot be loaded"):
        Replay([Part(path)])


def test_quantised_models_of_early_opsets_run_in_both_engines(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    constants = [
        numpy_helper.from_array(np.float32(0.5), "s"),
        numpy_helper.from_array(np.uint8(3), "z"),
    ]
    graph = helper.make_graph(nodes, "graph", value[:1], value[1:], constants)
    path = tmp_path / "quantised.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    reference, runtime = Replay([Part(path)]).outputs(np.float32([0.6, -9]))
    np.testing.assert_array_equal(reference, [0.5, -1.5])
    np.testing.assert_array_equal(runtime, [0.5, -1.5])
