"""Both versions of VNN-LIB: what a file says is what the property holds, and junk is refused."""

import gzip
import os
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lrai.errors import PropertyError
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.vnnlib import parse_vnnlib, read_vnnlib
from lrai.verifier.vnnlib2 import read_vnnlib2

DATA = Path(os.environ["LRAI_DATA"]) / "vnncomp" if "LRAI_DATA" in os.environ else None
needs_data = pytest.mark.skipif(DATA is None, reason="LRAI_DATA does not name a data folder")

DECLARED = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 -2) (<= X_1 (- 1))))"


def read(formula: str, box: str = BOX):
    return parse_vnnlib(f"{DECLARED}{box}(assert {formula})", 2, 2)


def is_unsafe(found, x, y) -> bool:
    return any(case.contains(np.array(x, float), np.array(y, float)) for case in found.cases)


def test_box_row_and_offset_are_what_the_file_says() -> None:
    (case,) = read("(<= (+ (* 2 Y_0) (- Y_1) 1) (* 3 X_0))").cases
    np.testing.assert_array_equal(case.lower, [0, -2])
    np.testing.assert_array_equal(case.upper, [1, -1])
    # 2 y0 - y1 - 3 x0 <= -1, divided by 4.
    np.testing.assert_array_equal(case.output_rows, [[0.5, -0.25]])
    np.testing.assert_array_equal(case.input_rows, [[-0.75, 0]])
    np.testing.assert_array_equal(case.offset, [-0.25])


def test_decimals_are_rounded_outward() -> None:
    box = "(assert (and (>= X_0 0.1) (<= X_0 0.3) (>= X_1 -0.1) (<= X_1 -0.1)))"
    (case,) = read("(<= Y_0 0.7)", box).cases
    assert Fraction(float(case.lower[0])) <= Fraction("0.1")
    assert Fraction(float(case.upper[0])) >= Fraction("0.3")
    assert Fraction(float(case.lower[1])) <= Fraction("-0.1") <= Fraction(float(case.upper[1]))
    assert Fraction(float(case.offset[0])) >= Fraction("0.7")
    assert float(case.upper[0]) - 0.3 < 1e-15


def test_or_over_boxes_and_outputs_multiplies_out() -> None:
    boxes = "(assert (or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 3) (<= X_0 4))))"
    sides = "(assert (and (>= X_1 0) (<= X_1 1)))"
    found = read("(and (or (<= Y_0 0) (<= Y_1 0)) (or (>= Y_0 -5) (>= Y_1 -5)))", boxes + sides)
    assert len(found.cases) == 8
    assert is_unsafe(found, [3.5, 0], [-1, 9])
    assert not is_unsafe(found, [2, 0], [-1, 9])
    assert not is_unsafe(found, [3.5, 0], [-6, -6])


def test_a_clause_that_no_input_satisfies_is_left_out() -> None:
    assert read("(and (>= X_0 2) (<= Y_0 0))").cases == ()


def test_an_equation_is_both_of_its_inequalities() -> None:
    found = read("(= Y_0 X_0)")
    assert is_unsafe(found, [0.5, -1], [0.5, 0])
    assert not is_unsafe(found, [0.5, -1], [0.75, 0])


def test_a_strict_row_is_not_met_by_equality() -> None:
    found = read("(< Y_0 0)")
    assert not is_unsafe(found, [0.5, -1], [0, 0])
    assert is_unsafe(found, [0.5, -1], [-1e-30, 0])


def test_a_packed_file_reads_like_a_plain_one(tmp_path: Path) -> None:
    text = f"{DECLARED}{BOX}(assert (<= Y_0 0)) ; a comment)"
    (tmp_path / "plain.vnnlib").write_text(text)
    (tmp_path / "packed.vnnlib.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = (read_vnnlib(path, 2, 2) for path in sorted(tmp_path.iterdir(), reverse=True))
    assert plain.digest == packed.digest
    assert plain.text == packed.text == text


BAD = {
    "": "asserts nothing",
    "(": "ends inside",
    "x": "outside of any command",
    ")": "outside of any command",
    "(assert (<= Y_0 0))": "before it is declared",
    "(declare-const X_7 Real)": "the model has 2 inputs",
    "(declare-const Z Real)": "'Z' is neither",
    "(declare-const X_0 Int)": "cannot read the command",
    DECLARED + "(assert (<= (* Y_0 X_0) 0))": "multiplies two variables",
    DECLARED + "(assert (=> Y_0 0))": "cannot read the formula",
    DECLARED + "(assert (<= (f Y_0) 0))": "cannot read the term",
    DECLARED + "(assert (<= Y_0 1e999999999))": "neither a number",
    DECLARED + "(assert (<= Y_0 0))": "X_0 has no lower bound",
    DECLARED + BOX + "(assert (<= Y_0 1e400))": "too large",
    DECLARED + BOX + "(assert (<= (+ Y_0 (* 1e-30 Y_1)) 0))": "no common scale",
    DECLARED + "(assert " + "(and " * 10_000 + "(<= Y_0 0)" + ")" * 10_001: "nested",
    DECLARED + BOX + "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 20: "cases after its ORs",
}


@pytest.mark.parametrize("text", BAD, ids=BAD.values())
def test_a_bad_file_is_refused_with_its_reason(text: str) -> None:
    with pytest.raises(PropertyError, match=r".*") as caught:
        parse_vnnlib(text, 2, 2)
    assert BAD[text] in str(caught.value)
    assert "hint: " in str(caught.value)


@pytest.mark.parametrize("content", [b"\x1f\x8bjunk", b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "property.vnnlib"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PropertyError, match=r"property\.vnnlib"):
        read_vnnlib(path, 2, 2)


NUMBERS = st.integers(-4, 4).map(lambda value: value / 2)
TERMS = st.recursive(
    st.sampled_from(["X_0", "X_1", "Y_0", "Y_1"]) | NUMBERS.map(str),
    lambda part: st.tuples(st.sampled_from("+-"), part, part).map(lambda t: f"({' '.join(t)})"),
    max_leaves=4,
)
FORMULAS = st.recursive(
    st.tuples(st.sampled_from(["<=", ">=", "<", ">", "="]), TERMS, TERMS).map(
        lambda t: f"({' '.join(t)})"
    ),
    lambda part: st.tuples(st.sampled_from(["and", "or"]), part, part, part).map(
        lambda t: f"({' '.join(t)})"
    ),
    max_leaves=7,
)


def truth(expression, values) -> bool | float:
    if isinstance(expression, str):
        return values[expression] if expression in values else float(expression)
    head, *rest = expression
    parts = [truth(part, values) for part in rest]
    match head:
        case "and":
            return all(parts)
        case "or":
            return any(parts)
        case "+":
            return parts[0] + parts[1]
        case "-":
            return parts[0] - parts[1]
    left, right = parts
    return {
        "<=": left <= right,
        ">=": left >= right,
        "<": left < right,
        ">": left > right,
        "=": left == right,
    }[head]


def nested(text: str):
    tokens = text.replace("(", " ( ").replace(")", " ) ").split()
    stack: list[list] = [[]]
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return stack[0][0]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(formula=FORMULAS)
def test_a_property_means_what_its_formula_means(formula: str) -> None:
    box = "(assert (and (>= X_0 -1) (<= X_0 1) (>= X_1 -1) (<= X_1 1)))"
    found, tree = read(formula, box), nested(formula)
    for x0, x1, y0, y1 in product([-1, 0.5, 1], [-0.5, 0], [-1, 0, 2], [-0.5, 1]):
        values = {"X_0": x0, "X_1": x1, "Y_0": y0, "Y_1": y1}
        assert is_unsafe(found, [x0, x1], [y0, y1]) == truth(tree, values)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text(st.sampled_from("()<>=+-*;. 01eXY_\n") | st.characters(), max_size=60)
    | st.lists(
        st.sampled_from(["(", ")", "assert", "and", "or", "<=", "X_0", "Y_1", "1", "-", "*"]),
        max_size=30,
    ).map(" ".join)
)
def test_junk_is_read_or_refused_but_never_fails_otherwise(text: str) -> None:
    try:
        parse_vnnlib(DECLARED + text, 2, 2)
    except PropertyError as error:
        assert "hint: " in str(error)  # noqa: PT017 - many texts raise nothing


@needs_data
@pytest.mark.parametrize("name", ["acasxu", "mnistfc"])
def test_every_instance_of_a_benchmark_reads(name: str) -> None:
    folder = DATA / name
    rows = [line.split(",") for line in (folder / f"{name}_instances.csv").read_text().split()]
    networks = {row[0]: read_onnx(folder / row[0]) for row in rows}
    sizes = {(row[1], networks[row[0]].input_size, networks[row[0]].output_size) for row in rows}
    found = {path: read_vnnlib(folder / path, inputs, outputs) for path, inputs, outputs in sizes}
    assert len(rows) == {"acasxu": 186, "mnistfc": 90}[name]
    assert all(item.cases for item in found.values())
    random = np.random.default_rng(0)
    for path, network in networks.items():
        session = onnxruntime.InferenceSession(folder / path)
        (given_input,) = session.get_inputs()
        x = random.uniform(-0.5, 0.5, (8, network.input_size)).astype(np.float32)
        shape = [1 if isinstance(size, str) else size for size in given_input.shape]
        expected = np.array(
            [session.run(None, {given_input.name: row.reshape(shape)})[0].reshape(-1) for row in x]
        )
        difference = network.evaluate(x.astype(np.float64)) - expected
        assert np.abs(difference).max() <= 1e-5 * np.abs(expected).max()


# ---- version 2.0


def linear_model(path: Path, weights, shape=(1, 2)) -> Path:
    weights = np.asarray(weights, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


ONE = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1, 2]) (declare-output Y float32 [1, 2]))
(assert (and (>= X[0,0] -0.1) (<= X[0,0] 0.3) (>= X[0,1] 0.0) (<= X[0,1] 1.0)))
"""
TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1, 2]) (declare-output Y float32 [1, 2]))
(declare-network g (RELATION f) (declare-input V float32 [1, 2]) (declare-output W float32 [1, 2]))
(assert (and (>= X[0,0] -0.1) (<= X[0,0] 0.3) (>= X[0,1] 0.0) (<= X[0,1] 1.0)))
(assert (and (== X[0,0] V[0,0]) (== V[0,1] X[0,1])))
(assert (or (>= (- Y[0,1] W[0,1]) 0.01) (>= (- W[0,1] Y[0,1]) 0.01)))
"""


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "property.vnnlib").write_text(text)
    return tmp_path / "property.vnnlib"


def test_one_network_of_version_2(tmp_path: Path) -> None:
    model = linear_model(tmp_path / "f.onnx", [[1, 2], [3, 4]])
    path = write(tmp_path, ONE + "(assert (< (+ Y[0,0] (* 2.0 Y[0,1]) -1.0) X[0,1]))")
    network, found, parts = read_vnnlib2(path, [model])
    (case,) = found.cases
    assert [part.path for part in parts] == [model]
    np.testing.assert_array_equal(case.output_rows, [[0.5, 1]])
    np.testing.assert_array_equal(case.input_rows, [[0, -0.5]])
    np.testing.assert_array_equal(case.offset, [0.5])
    assert case.strict == (0,)
    np.testing.assert_allclose(network.evaluate(np.array([[0.1, 0.5]])), [[1.6, 2.2]], rtol=1e-6)


def test_two_networks_share_the_inputs_that_are_equal(tmp_path: Path) -> None:
    models = [
        linear_model(tmp_path / "f.onnx", [[1, 2], [3, 4]]),
        linear_model(tmp_path / "g.onnx", [[1, 2], [3, 5]]),
    ]
    path = write(tmp_path, TWO.replace("RELATION", "isomorphic-to"))
    network, found, parts = read_vnnlib2(path, models)
    assert (network.input_size, network.output_size, len(found.cases)) == (2, 4, 2)
    assert len(network.digests) == 2
    y = network.evaluate(np.array([[0.1, 0.5]]))[0]
    np.testing.assert_allclose(y, [1.6, 2.2, 1.6, 2.7], rtol=1e-6)
    assert is_unsafe(found, [0.1, 0.5], y)
    assert not is_unsafe(found, [0.1, 0.0], network.evaluate(np.array([[0.1, 0.0]]))[0])
    for part in parts:
        np.testing.assert_array_equal(part.inputs, [0, 1])


def test_one_input_may_differ_between_two_copies_of_a_network(tmp_path: Path) -> None:
    model = linear_model(tmp_path / "f.onnx", [[1, 2], [3, 4]])
    text = TWO.replace("RELATION", "equal-to").replace("(== V[0,1] X[0,1])", "(<= X[0,1] V[0,1])")
    text += "(assert (and (>= V[0,1] 0.0) (<= V[0,1] 1.0)))"
    network, found, parts = read_vnnlib2(write(tmp_path, text), [model])
    assert network.input_size == 3
    np.testing.assert_array_equal([part.inputs for part in parts], [[0, 1], [0, 2]])
    # The order of the two inputs is a row of every case.
    assert all(case.input_rows is not None for case in found.cases)
    y = network.evaluate(np.array([[0.1, 0.5, 0.25]]))[0]
    np.testing.assert_allclose(y, [1.6, 2.2, 0.85, 1.2], rtol=1e-6)
    assert not is_unsafe(found, [0.1, 0.5, 0.25], y)
    y = network.evaluate(np.array([[0.1, 0.25, 0.5]]))[0]
    assert is_unsafe(found, [0.1, 0.25, 0.5], y)


def test_networks_that_are_called_isomorphic_must_be(tmp_path: Path) -> None:
    models = [
        linear_model(tmp_path / "f.onnx", [[1, 2], [3, 4]]),
        linear_model(tmp_path / "g.onnx", [[1, 2], [3, 5]], shape=(1, 1, 2)),
    ]
    with pytest.raises(PropertyError, match="differ in more than weights"):
        read_vnnlib2(write(tmp_path, TWO.replace("RELATION", "isomorphic-to")), models)


BAD2 = {
    ONE.replace("[1, 2]", "[1, 3]", 1): "3].*2 elements",
    ONE.replace("[1, 2]", "[99999999999999999999]", 1): "no VNN-LIB 2.0",
    ONE.replace("[1, 2]", "[999999999, 999999999]", 1): "2 elements",
    ONE + "(assert (<= Z[0] 0.0))": "Undeclared variable Z",
    ONE + "(assert (<= Y[0,7] 0.0))": "Index out of bounds",
    ONE + "(assert (<= (* Y[0,0] Y[0,1]) 0.0))": "multiplies two variables",
    ONE + "(assert " + "(and " * 100_000: "nested more than",
    "(vnnlib-version <2.0>)": "no VNN-LIB 2.0",
    TWO.replace("(RELATION f) ", ""): "declares 2 networks",
}


@pytest.mark.parametrize("text", BAD2, ids=range(len(BAD2)))
def test_a_bad_file_of_version_2_is_refused_with_its_reason(text: str, tmp_path: Path) -> None:
    model = linear_model(tmp_path / "f.onnx", [[1, 2], [3, 4]])
    with pytest.raises(PropertyError, match=BAD2[text]):
        read_vnnlib2(write(tmp_path, text), [model])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    tokens=st.lists(
        st.sampled_from(
            ["(", ")", "assert", "and", "or", "<=", "X[0,0]", "Y[0,1]", "1.0", "-", "*", "!="]
        ),
        max_size=25,
    )
)
def test_junk_of_version_2_is_read_or_refused(tokens: list[str], tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp()
    model = linear_model(folder / "f.onnx", [[1, 2], [3, 4]])
    try:
        read_vnnlib2(write(folder, ONE + " ".join(tokens)), [model])
    except PropertyError as error:
        assert "hint: " in str(error)  # noqa: PT017 - many texts raise nothing
