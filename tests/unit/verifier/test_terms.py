"""A line of TOML means what it says, and junk is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrai.errors import PropertyError
from lrai.verifier import terms
from lrai.verifier.input_box import InputBox
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.vnnlib import parse_vnnlib

BOX = "lower = [0.1, -1]\nupper = [0.3, 1.0]\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = relu(x) @ [[1, -1, 0], [0, 1, 2]]."""
    weights = np.array([[1, -1, 0], [0, 1, 2]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def read(model: Path, line: str, box: str = BOX):
    path = model.parent / "property.toml"
    path.write_text(f"{box}{line}\n")
    return terms.read_toml(path, [model])


def is_unsafe(network, found, *x: float) -> bool:
    point = np.array(x, float)
    y = network.evaluate(point[None])[0]
    return any(case.contains(point, y) for case in found.cases)


def test_a_class_is_lost_where_another_output_is_as_large(model: Path) -> None:
    network, found, _ = read(model, "holds = {class = 2}")
    assert not is_unsafe(network, found, 0.2, 0.5)
    assert is_unsafe(network, found, 0.25, 0.125)  # a tie with output 0
    assert is_unsafe(network, found, 0.3, 0.1)


def test_a_range_includes_its_ends(model: Path) -> None:
    network, found, _ = read(model, "holds = {output = 2, least = 0, greatest = 1.5}")
    assert not is_unsafe(network, found, 0.2, -1)
    assert not is_unsafe(network, found, 0.2, 0.75)
    assert is_unsafe(network, found, 0.2, 0.76)


def test_a_range_may_have_one_end(model: Path) -> None:
    network, found, _ = read(model, "holds = {output = 1, least = -0.2}")
    assert len(found.cases) == 1
    assert is_unsafe(network, found, 0.3, 0.0)


def test_monotonicity_compares_two_copies_that_differ_in_one_input(model: Path) -> None:
    network, found, parts = read(model, "holds = {rising_in = 0, output = 1, tolerance = 0.125}")
    assert (network.input_size, network.output_size, len(parts)) == (3, 6, 2)
    # Output 1 falls as input 0 grows.
    assert is_unsafe(network, found, 0.125, 0.5, 0.25)
    assert not is_unsafe(network, found, 0.125, 0.5, 0.1875)
    assert not is_unsafe(network, found, 0.25, 0.5, 0.125)
    _, falling, _ = read(model, "holds = {falling_in = 0, output = 1, tolerance = 0.01}")
    assert not is_unsafe(network, falling, 0.125, 0.5, 0.25)


def test_the_box_may_be_a_ball(model: Path) -> None:
    box = "centre = [0.25, 0.75]\nradius = 0.5\nleast = 0\ngreatest = 1\n"
    _, found, _ = read(model, "holds = {class = 2}", box)
    np.testing.assert_array_equal(found.cases[0].lower, [0, 0.25])
    np.testing.assert_array_equal(found.cases[0].upper, [0.75, 1])


def test_the_text_is_vnnlib_and_reads_the_same(model: Path) -> None:
    network, found, _ = read(model, "holds = {class = 2}")
    again = parse_vnnlib(found.text, network.input_size, network.output_size)
    assert again.digest == found.digest
    assert len(again.cases) == len(found.cases) == 2


def test_python_states_the_same_in_a_line(model: Path) -> None:
    box = InputBox(np.array([0.1, -1.0]), np.array([0.3, 1.0]))
    found = parse_vnnlib(terms.has_class(box, 2, 3), 2, 3)
    np.testing.assert_array_equal(found.cases[0].lower, box.lower)
    np.testing.assert_array_equal(found.cases[0].upper, box.upper)
    text = terms.is_monotone(box, read_onnx(model), (0, 1), 0.5)
    assert "(equal-to f)" in text


BAD = [
    ("holds = 3", BOX),
    ("", BOX),
    ("holds = {class = 9}", BOX),
    ("holds = {class = -1}", BOX),
    ("holds = {klass = 1}", BOX),
    ("holds = {output = 0, least = 'low'}", BOX),
    ("holds = {output = 0}", BOX),
    ("holds = {output = 0, least = 2, greatest = 1}", BOX),
    ("holds = {output = 0, least = nan}", BOX),
    ("holds = {rising_in = 7, output = 0, tolerance = 1}", BOX),
    ("holds = {rising_in = 0, output = 0, tolerance = 0}", BOX),
    ("holds = {class = 1}", "lower = [0]\nupper = [1]\n"),
    ("holds = {class = 1}", "lower = [0, 0]\nupper = [1, nan]\n"),
    ("holds = {class = 1}", "holds = }"),
]


@pytest.mark.parametrize(("line", "box"), BAD, ids=range(len(BAD)))
def test_what_makes_no_sense_is_refused(line: str, box: str, model: Path) -> None:
    with pytest.raises(PropertyError, match=r"property\.toml.*hint: "):
        read(model, line, box)
