"""Which axis is the length, how outputs follow it, and whether padding changes answers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrai.backends.base import BackendSpec, Padding
from lrai.backends.onnx_signature import Graph, Tensor
from lrai.backends.ort import OrtBackend
from lrai.backends.ragged import UnclearLengthError, length_axes
from lrai.core.model import Cut, Ragged, TensorInfo, first_edges
from lrai.testing.models import encoder

FLOAT = TensorProto.FLOAT


@pytest.fixture
def load(tmp_path):
    """Load a graph of these nodes from `x` to `y`; return what was found about lengths."""

    def load(nodes, x, y, weights=(), padding=None):
        values = [helper.make_tensor_value_info(n, FLOAT, dims) for n, dims in (("x", x), ("y", y))]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], list(weights))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / "model.onnx")
        spec = BackendSpec(str(tmp_path / "model.onnx"), padding=padding or Padding("auto"))
        return OrtBackend(spec).signature.ragged

    return load


def convolution(kernel, stride, pads):
    weight = np.ones((2, 2, kernel), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[stride], pads=pads)
    return [node], [numpy_helper.from_array(weight, "w")]


def graph(inputs, outputs=((("y", "FP32", ("n", 2))),)):
    def tensor(name, datatype, dims):
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in dims)
        return Tensor(TensorInfo(name, datatype, shape), tuple(dims), 1)

    return Graph(tuple(tensor(*one) for one in inputs), tuple(tensor(*one) for one in outputs))


@pytest.mark.parametrize(
    ("inputs", "dimension", "expected"),
    [
        ([("x", "FP32", ("n", 4))], "", (0,)),
        ([("x", "FP32", ("n", "t", 4))], "", (1,)),
        ([("x", "FP32", (None, 3, 48, None))], "", (3,)),
        ([("ids", "INT64", ("n", "t")), ("mask", "INT64", ("n", "t"))], "", (1, 1)),
        ([("ids", "INT64", ("n", "t")), ("size", "FP32", ("n", 2))], "", (1, 0)),
        ([("x", "FP32", ("n", "h", "w"))], "w", (2,)),
        ([("a", "FP32", ("n", "s")), ("b", "FP32", ("n", "t"))], "s", (1, 0)),
    ],
)
def test_the_length_is_the_only_free_dimension_or_the_named_one(inputs, dimension, expected):
    assert length_axes(graph(inputs), dimension) == expected


@pytest.mark.parametrize(
    ("inputs", "dimension", "why"),
    [
        ([("x", "FP32", ("n", "h", "w"))], "", "several dimensions are free (h, w)"),
        ([("x", "FP32", ("n", "t", "t"))], "", "in two dimensions"),
        ([("x", "FP32", ("n", None, None))], "", "in two dimensions"),
        ([("x", "FP32", ("n", "t"))], "w", "no input has the dimension 'w', free are: t"),
        ([("x", "BYTES", ("n", "t"))], "", "strings cannot be padded"),
    ],
)
def test_an_unclear_length_is_said(inputs, dimension, why):
    with pytest.raises(UnclearLengthError, match=why.replace("(", r"\(").replace(")", r"\)")):
        length_axes(graph(inputs), dimension)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        (1, 1, [0, 0]),
        (1, 2, [0, 0]),
        (1, 8, [0, 0]),
        (1, 3, [0, 2]),
        (2, 2, [0, 1]),
        (3, 4, [1, 1]),
    ],
)
def test_how_an_output_follows_is_measured(load, kernel, stride, pads):
    nodes, weights = convolution(kernel, stride, pads)
    found = load(nodes, ["n", 2, "t"], ["n", 2, None], weights, Padding("accept"))
    assert found.inputs == (2,)
    assert (found.outputs[0].axis, found.outputs[0].stride) == (2, stride)
    for length in range(8, 200):
        assert found.outputs[0].length(length) == (length + sum(pads) - kernel) // stride + 1


def test_a_model_that_treats_positions_one_by_one_is_padded_without_a_mask(load):
    nodes, weights = convolution(1, 1, [0, 0])
    found = load(nodes, ["n", 2, "t"], ["n", 2, "t"], weights)
    assert (found.inputs, found.outputs, found.note) == ((2,), (Cut(2, 1, 0),), "")


def test_a_mean_over_all_positions_is_found_out(load):
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2], keepdims=0)
    found = load([mean], ["n", 2, "t"], ["n", 2])
    assert found.inputs == ()
    assert "padded from 127 to 128, output 'y' differs by" in found.note
    assert "more than 0.0001 hint: padding = accept" in found.note


def test_the_tolerance_and_the_users_word_decide(load):
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2], keepdims=0)
    for padding in (Padding("auto", tolerance=10.0), Padding("accept")):
        assert load([mean], ["n", 2, "t"], ["n", 2], (), padding).inputs == (2,)
    assert load([mean], ["n", 2, "t"], ["n", 2], (), Padding("off")) == Ragged()


def test_pictures_of_any_size_are_no_sequences_and_need_no_word(load):
    node = helper.make_node("Relu", ["x"], ["y"])
    shape = ["n", 3, "h", "w"]
    assert load([node], shape, shape) == Ragged()
    assert "several dimensions are free" in load([node], shape, shape, (), Padding("accept")).note
    named = load([node], shape, shape, (), Padding("auto", dimension="w"))
    assert named.inputs == (3,)


def test_an_output_that_grows_in_two_directions_is_not_padded(load):
    nodes = [
        helper.make_node("Transpose", ["x"], ["z"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["z", "x"], ["y"]),
    ]
    found = load(nodes, ["n", 2, "t"], ["n", "t", "t"])
    assert "output 'y' goes from [1, 32, 32] to [1, 128, 128]" in found.note


def test_a_graph_that_does_not_run_on_generated_inputs_is_not_padded(load):
    shape = numpy_helper.from_array(np.array([0, 7]), "s")
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    assert "does not run on generated inputs" in load([node], ["n", "t"], ["n", 7], [shape]).note


def test_a_graph_that_takes_only_some_lengths_is_not_padded(load):
    shape = numpy_helper.from_array(np.array([0, -1, 4]), "s")
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    found = load([node], ["n", "t"], ["n", None, 4], [shape])
    assert found.inputs == ()
    assert "not every length runs: the model's Reshape node refused its input" in found.note


def test_an_encoder_with_a_mask_is_padded_as_far_as_its_table_of_positions(tmp_path):
    spec = BackendSpec(str(encoder(tmp_path / "e.onnx", longest=100)), padding=Padding("auto"))
    found = OrtBackend(spec).signature.ragged
    assert found == Ragged((1, 1), (Cut(1, 1, 0), Cut()), (16, 24, 32, 48, 64), 64, "")


def test_an_encoder_that_ignores_its_mask_is_found_out(tmp_path):
    path = encoder(tmp_path / "e.onnx", is_masked=False)
    found = OrtBackend(BackendSpec(str(path), padding=Padding("auto"))).signature.ragged
    assert found.inputs == ()
    assert "output 'hidden' differs" in found.note


def test_successors_are_alike_although_only_the_first_has_measured(tmp_path):
    path = str(encoder(tmp_path / "e.onnx"))
    first = OrtBackend(BackendSpec(path, padding=Padding("auto"))).signature
    assert first.ragged != OrtBackend(BackendSpec(path)).signature.ragged
    assert first == OrtBackend(BackendSpec(path)).signature


def test_first_edges_are_two_in_each_doubling_or_multiples_up_to_the_longest():
    assert first_edges(100) == (16, 24, 32, 48, 64, 96, 100)
    assert first_edges(64) == (16, 24, 32, 48, 64)
    assert first_edges(20) == (16, 20)
    assert first_edges(9) == (9,)
    assert first_edges(200, 64) == (64, 128, 192, 200)
