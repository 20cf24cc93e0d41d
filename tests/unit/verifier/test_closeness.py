"""The interval of a comparison contains the truth, and the answer follows from the interval."""

import json
from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrai.errors import InvalidInputError, UnsupportedError
from lrai.testing.models import save
from lrai.verifier.checker.check import check
from lrai.verifier.closeness import ClosenessSettings, compare, prove
from lrai.verifier.input_box import InputBox
from lrai.verifier.maximum import MaximumSettings, maximise
from lrai.verifier.onnx_reader import read_onnx

ABSOLUTE = ClosenessSettings(epsilon=0.1, is_absolute=True, timeout_s=20)


def mlp(path, layers):
    """Gemm and Relu in turn, of `(weights, bias)`."""
    nodes, tensors, value = [], [], "x"
    for number, (weights, bias) in enumerate(layers):
        names = f"w{number}", f"b{number}", f"z{number}", f"a{number}"
        tensors += [
            numpy_helper.from_array(np.asarray(array, np.float32), name)
            for array, name in zip((weights, bias), names, strict=False)
        ]
        last = number == len(layers) - 1
        nodes.append(helper.make_node("Gemm", [value, *names[:2]], ["y" if last else names[2]]))
        if not last:
            nodes.append(helper.make_node("Relu", [names[2]], [names[3]]))
        value = names[3]
    sizes = np.shape(layers[0][0])[0], np.shape(layers[-1][0])[1]
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in zip("xy", sizes, strict=True)
    ]
    return save(path, nodes, info[:1], info[1:], tensors)


def random_layers(seed, sizes):
    random = np.random.default_rng(seed)
    return [
        (random.normal(size=(n, m)) / np.sqrt(n), random.normal(size=m) / 4)
        for n, m in pairwise(sizes)
    ]


def rounded(layers, step):
    return [(np.rint(weights / step) * step, bias) for weights, bias in layers]


def unit_box(size):
    return InputBox(-np.ones(size), np.ones(size))


def test_a_known_largest_difference_is_enclosed(tmp_path):
    # f - q = relu(x) - relu(x - 0.25): 0 below 0, then x, then 0.25.
    f = mlp(tmp_path / "f.onnx", [([[1.0]], [0.0]), ([[1.0]], [0.0])])
    q = mlp(tmp_path / "q.onnx", [([[1.0]], [-0.25]), ([[1.0]], [0.0])])
    found = compare(f, q, unit_box(1), ABSOLUTE)
    assert found.answer == "REFUTED"
    assert found.lower == 0.25
    assert 0.25 <= found.upper <= 0.25 * ABSOLUTE.precision
    assert found.original[0] - found.served[0] == 0.25


def test_equal_models_are_proved_equal(tmp_path):
    layers = random_layers(0, (3, 8, 2))
    found = compare(*[mlp(tmp_path / f"{n}.onnx", layers) for n in "fq"], unit_box(3), ABSOLUTE)
    assert found.answer == "PROVED"
    assert (found.lower, found.x is not None) == (0, True)
    assert found.upper <= ABSOLUTE.epsilon / 2


@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_answer_follows_from_the_interval(tmp_path, epsilon):
    layers = random_layers(1, (3, 8, 2))
    f, q = mlp(tmp_path / "f.onnx", layers), mlp(tmp_path / "q.onnx", rounded(layers, 0.05))
    settings = ClosenessSettings(epsilon=epsilon, timeout_s=20)
    found = compare(f, q, unit_box(3), settings)
    assert 0 < found.lower <= found.upper <= max(settings.precision * found.lower, 0.51 * epsilon)
    assert found.answer == ("REFUTED" if epsilon < 0.01 else "PROVED")
    assert found.scale_lower <= found.scale_upper <= 1.03 * found.scale_lower
    assert max(found.uppers) == found.upper


def test_scale_is_the_largest_magnitude_of_the_original(tmp_path):
    f = mlp(tmp_path / "f.onnx", [([[8.0]], [0.0])])
    q = mlp(tmp_path / "q.onnx", [([[8.0]], [0.5])])
    found = compare(f, q, unit_box(1), ClosenessSettings(epsilon=0.1))
    assert (found.scale_lower, found.lower) == (8, 0.5)
    assert found.answer == "PROVED"  # 0.5 of 8 is below a tenth


def test_without_time_the_question_stays_open(tmp_path):
    layers = random_layers(2, (6, 40, 40, 3))
    f, q = mlp(tmp_path / "f.onnx", layers), mlp(tmp_path / "q.onnx", rounded(layers, 0.1))
    settings = ClosenessSettings(epsilon=5.0, is_absolute=True, timeout_s=0.0)
    found = compare(f, q, InputBox(-9 * np.ones(6), 9 * np.ones(6)), settings)
    assert found.answer == "OPEN"
    assert found.reason == "the time of 0 s is over"
    assert found.lower < 5 < found.upper


def test_json_of_a_comparison_can_be_read(tmp_path):
    f = mlp(tmp_path / "f.onnx", [([[1.0]], [0.0])])
    document = json.loads(compare(f, f, unit_box(1), ABSOLUTE).to_json())
    assert document["answer"] == "PROVED"
    assert document["arithmetic"] == "float32"
    assert len(document["models"][0]) == 64


def test_a_closeness_has_a_certificate_that_the_checker_accepts(tmp_path):
    layers = random_layers(1, (3, 8, 2))
    f, q = mlp(tmp_path / "f.onnx", layers), mlp(tmp_path / "q.onnx", rounded(layers, 0.05))
    found = compare(f, q, unit_box(3), ABSOLUTE)
    verdict, text = prove(f, q, unit_box(3), found.upper, ABSOLUTE)
    assert verdict.answer == "unsat"
    verdict.certificate.write(tmp_path / "proof")
    (tmp_path / "claim.vnnlib").write_text(text)
    assert check(tmp_path / "proof", (f, q), tmp_path / "claim.vnnlib").accepted
    assert not check(tmp_path / "proof", (q, f), tmp_path / "claim.vnnlib").accepted


def test_a_limit_below_the_difference_is_refuted_with_a_witness(tmp_path):
    layers = random_layers(1, (3, 8, 2))
    f, q = mlp(tmp_path / "f.onnx", layers), mlp(tmp_path / "q.onnx", rounded(layers, 0.05))
    found = compare(f, q, unit_box(3), ABSOLUTE)
    verdict, _ = prove(f, q, unit_box(3), found.lower / 2, ABSOLUTE)
    assert verdict.answer == "sat"
    y = verdict.witness.y
    assert np.abs(y[:2] - y[2:]).max() >= found.lower / 2


def test_models_that_do_not_fit_are_refused(tmp_path):
    f = mlp(tmp_path / "f.onnx", random_layers(0, (2, 2)))
    q = mlp(tmp_path / "q.onnx", random_layers(0, (3, 2)))
    with pytest.raises(InvalidInputError, match="maps 2 elements to 2.*3 to 2"):
        compare(f, q, unit_box(2), ABSOLUTE)
    with pytest.raises(InvalidInputError, match="box has 3 elements"):
        compare(f, f, unit_box(3), ABSOLUTE)


def test_nothing_is_relative_to_zero(tmp_path):
    zero = mlp(tmp_path / "f.onnx", [([[0.0]], [0.0])])
    with pytest.raises(InvalidInputError, match="hint: ask with --absolute"):
        compare(zero, zero, unit_box(1), ClosenessSettings())


def test_largest_magnitude_over_a_box_without_float32_inputs_has_no_witness(tmp_path):
    network = read_onnx(mlp(tmp_path / "f.onnx", [([[1.0]], [0.0])]))
    between = np.nextafter(np.array([1.0]), 2)
    found = maximise(
        (network,), (between, between), lambda x: np.abs(x), MaximumSettings(timeout_s=1)
    )
    assert (found.lower, found.where) == (0, None)
    assert found.upper >= 1


def test_a_model_that_onnxruntime_would_change_is_refused(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "o"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "o"], ["d"]),
        helper.make_node("Gemm", ["d", "w"], ["z"], "dense"),
        helper.make_node("QuantizeLinear", ["z", "s", "o"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "s", "o"], ["y"]),
    ]
    arrays = {"s": np.float32(0.01), "o": np.int8(0), "w": np.full((1, 1), 0.3, np.float32)}
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in "xy"]
    q = save(tmp_path / "q.onnx", nodes, info[:1], info[1:], tensors)
    f = mlp(tmp_path / "f.onnx", [([[0.3]], [0.0])])
    with pytest.raises(UnsupportedError, match=r"float weights of node dense .*hint: "):
        compare(f, q, unit_box(1), ABSOLUTE)


def test_a_search_that_would_hold_too_many_boxes_says_so(tmp_path):
    layers = random_layers(2, (6, 40, 40, 3))
    network = read_onnx(mlp(tmp_path / "f.onnx", layers))
    found = maximise(
        (network,),
        (-np.ones(6), np.ones(6)),
        lambda x: np.abs(network.evaluate(x[None].astype(np.float64))[0]),
        MaximumSettings(timeout_s=20, precision=1.0001, max_boxes=100),
    )
    assert found.reason == "more than 100 boxes are open"
    assert found.lower <= found.upper


def test_every_output_has_a_bound_of_its_own(tmp_path):
    # |y_0| <= 1 and |y_1| <= 3: the search ends with the larger one, but both are reported.
    network = read_onnx(mlp(tmp_path / "f.onnx", [(np.diag([1.0, 3.0]), np.zeros(2))]))
    found = maximise(
        (network,),
        (-np.ones(2), np.ones(2)),
        lambda x: np.abs(network.evaluate(x[None].astype(np.float64))[0]),
        MaximumSettings(timeout_s=20),
    )
    assert found.uppers == pytest.approx([1, 3], rel=1e-5)
    assert found.lower == 3
