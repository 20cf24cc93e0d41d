"""Every operator: equal to the reference evaluator, near the deployed one, never outside its bounds."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.backend import test as backend_test
from onnx.reference import ReferenceEvaluator

from lrai.errors import UnsupportedOperatorError, VerifierError
from lrai.verifier.bounds import Bounds
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.operators import smooth, softmax
from lrai.verifier.operators.base import Box

F = np.float32
UNIT32, UNIT64 = 2.0**-24, 2.0**-53


def n(kind: str, inputs: str, output: str = "y", **attributes) -> onnx.NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    domain = attributes.pop("domain", "")
    return helper.make_node(
        kind, names, output.split(), name=f"{kind}_{output}", domain=domain, **attributes
    )


def model(shape, nodes, opset=21, **constants) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def r(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(F)


def i64(*values) -> np.ndarray:
    return np.array(values, np.int64)


QDQ = [n("QuantizeLinear", "x s z", "q"), n("DequantizeLinear", "q s z")]
IMAGE = [1, 2, 6, 5]
CASES = {
    "gemm": model([1, 5], [n("Gemm", "x w b", alpha=0.5, beta=2.0, transB=1)], w=r(4, 5), b=r(4)),
    "gemm-rows": model([3, 5], [n("Gemm", "x w b")], w=r(5, 4), b=r(4)),
    "matmul": model([1, 5], [n("MatMul", "x w")], w=r(5, 4)),
    "matmul-add": model([1, 5], [n("MatMul", "x w", "m"), n("Add", "m b")], w=r(5, 4), b=r(4)),
    "matmul-last-axis": model([1, 3, 5], [n("MatMul", "x w")], w=r(5, 4)),
    "matmul-vector": model([1, 3, 5], [n("MatMul", "x w")], w=r(5)),
    "matmul-left": model([1, 3, 5], [n("MatMul", "w x")], w=r(4, 3)),
    "matmul-two": model(
        [1, 2, 3, 4], [n("Transpose", "x", "t", perm=[0, 1, 3, 2]), n("MatMul", "x t")]
    ),
    "matmul-broadcast": model(
        [1, 2, 3, 4],
        [
            n("ReduceSum", "x a", "s", keepdims=0),
            n("Transpose", "s", "t", perm=[0, 2, 1]),
            n("MatMul", "x t"),
        ],
        a=i64(1),
    ),
    "add": model([1, 3, 4], [n("Add", "x b")], b=r(4)),
    "sub-left": model([1, 3, 4], [n("Sub", "b x")], b=r(3, 1)),
    "add-two": model([1, 4], [n("Relu", "x", "h"), n("Sub", "x h")]),
    "add-grows": model([1, 1, 4], [n("Add", "x b")], b=r(3, 1)),
    "sum": model([1, 4], [n("Relu", "x", "h"), n("Sum", "x h x")]),
    "mul": model([1, 3, 4], [n("Mul", "x b")], b=r(4)),
    "mul-two": model([1, 4], [n("Relu", "x", "h"), n("Add", "h b", "g"), n("Mul", "x g")], b=r(4)),
    "mul-self": model([1, 4], [n("Mul", "x x")]),
    "div": model([1, 4], [n("Div", "x b")], b=r(4) + 3),
    "div-two": model([1, 4], [n("Exp", "x", "e"), n("Div", "x e")]),
    "div-left": model([1, 4], [n("Exp", "x", "e"), n("Div", "b e")], b=r(4)),
    "neg": model([1, 4], [n("Neg", "x")]),
    "pow-2": model([1, 4], [n("Pow", "x e")], e=F(2)),
    "pow-3": model([1, 4], [n("Pow", "x e")], e=F(3)),
    "sqrt": model([1, 4], [n("Exp", "x", "e"), n("Sqrt", "e")]),
    "reciprocal": model([1, 4], [n("Exp", "x", "e"), n("Neg", "e", "m"), n("Reciprocal", "m")]),
    "exp": model([1, 4], [n("Exp", "x")]),
    "relu": model([1, 6], [n("Relu", "x")]),
    "leaky": model([1, 6], [n("LeakyRelu", "x", alpha=0.1)]),
    "leaky-steep": model([1, 6], [n("LeakyRelu", "x", alpha=1.5)]),
    "prelu": model([1, 3, 2], [n("PRelu", "x a")], a=np.array([[0.2], [1.5], [-0.5]], F)),
    "abs": model([1, 6], [n("Abs", "x")]),
    "clip": model([1, 6], [n("Clip", "x a b")], a=F(-0.3), b=F(0.4)),
    "clip-low": model([1, 6], [n("Clip", "x a")], a=F(0.1)),
    "clip-6": model([1, 6], [n("Clip", "x", min=-0.2, max=0.9)], opset=6),
    "sigmoid": model([1, 6], [n("Sigmoid", "x")]),
    "tanh": model([1, 6], [n("Tanh", "x")]),
    "erf": model([1, 6], [n("Erf", "x")]),
    "gelu": model([1, 6], [n("Gelu", "x")]),
    "gelu-tanh": model([1, 6], [n("Gelu", "x", approximate="tanh")]),
    "softmax": model([1, 3, 4], [n("Softmax", "x", axis=-1)]),
    "softmax-axis": model([1, 3, 4], [n("Softmax", "x", axis=1)]),
    "softmax-old": model([1, 3, 4], [n("Softmax", "x")], opset=11),
    "layer-norm": model([1, 3, 4], [n("LayerNormalization", "x w b", axis=-1)], w=r(4), b=r(4)),
    "batch-norm": model(
        [1, 3, 2, 2],
        [n("BatchNormalization", "x s b m v")],
        s=r(3),
        b=r(3),
        m=r(3),
        v=abs(r(3)) + 0.1,
    ),
    "conv": model(
        IMAGE, [n("Conv", "x w b", pads=[1, 0, 1, 2], strides=[2, 1])], w=r(4, 2, 3, 2), b=r(4)
    ),
    "conv-dilated": model(IMAGE, [n("Conv", "x w", dilations=[2, 1])], w=r(3, 2, 2, 3)),
    "conv-groups": model(IMAGE, [n("Conv", "x w", group=2, pads=[1, 1, 1, 1])], w=r(4, 1, 3, 3)),
    "conv-same": model(
        IMAGE, [n("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])], w=r(2, 2, 3, 2)
    ),
    "conv-batch": model(
        [2, 2, 4, 3], [n("Conv", "x w b", pads=[1, 0, 0, 0])], w=r(3, 2, 2, 2), b=r(3)
    ),
    "conv-1d": model([1, 2, 7], [n("Conv", "x w", pads=[1, 1])], w=r(3, 2, 3)),
    "max-pool": model(
        IMAGE, [n("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])]
    ),
    "average-pool": model(IMAGE, [n("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 1])]),
    "average-pool-pad": model(
        IMAGE, [n("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    ),
    "average-pool-count": model(
        IMAGE, [n("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)]
    ),
    "global-average-pool": model(IMAGE, [n("GlobalAveragePool", "x")]),
    "reduce-mean": model(IMAGE, [n("ReduceMean", "x a", keepdims=0)], a=i64(1, 3)),
    "reduce-mean-old": model(IMAGE, [n("ReduceMean", "x", axes=[-1])], opset=13),
    "reduce-sum": model(IMAGE, [n("ReduceSum", "x a")], a=i64(2)),
    "max": model([1, 4], [n("Neg", "x", "h"), n("Max", "x b h")], b=r(4)),
    "min": model([1, 3, 4], [n("Neg", "x", "h"), n("Min", "x h b")], b=r(3, 1)),
    "concat": model([1, 2, 3], [n("Relu", "x", "h"), n("Concat", "x b h", axis=1)], b=r(1, 1, 3)),
    "split": model(
        [1, 6], [n("Split", "x s", "a b", axis=1), n("Concat", "b a x", axis=1)], s=i64(2, 4)
    ),
    "slice": model([1, 6], [n("Slice", "x a b c d")], a=i64(5), b=i64(0), c=i64(1), d=i64(-2)),
    "gather": model([1, 6], [n("Gather", "x i", axis=1)], i=i64(3, 0, 3)),
    "transpose": model([1, 2, 3], [n("Transpose", "x", perm=[2, 0, 1])]),
    "expand": model([1, 1, 3], [n("Expand", "x s")], s=i64(1, 2, 3)),
    "pad": model([1, 3], [n("Pad", "x p c")], p=i64(0, 1, 0, 2), c=F(0.7)),
    "pad-edge": model([1, 3], [n("Pad", "x p", mode="edge")], p=i64(0, 1, 0, 2)),
    "where": model([1, 3], [n("Where", "c x b")], c=np.array([[True, False, True]]), b=r(1, 3)),
    "reshape-by-shape": model(
        [1, 2, 3],
        [
            n("Shape", "x", "s"),
            n("Gather", "s i", "g", axis=0),
            n("Concat", "g k", "t", axis=0),
            n("Reshape", "x t"),
        ],
        i=i64(0),
        k=i64(-1),
    ),
    "squeeze": model([1, 1, 3], [n("Squeeze", "x a", "u"), n("Unsqueeze", "u a")], a=i64(1)),
    "dropout": model([1, 3], [n("Dropout", "x", "d"), n("Identity", "d")]),
    "qdq": model([1, 9], QDQ, s=F(0.05), z=np.uint8(120)),
    "qdq-saturates": model([1, 9], QDQ, s=F(0.004), z=np.int8(10)),
    "qdq-16": model([1, 9], QDQ, s=F(0.0001), z=np.int16(0)),
    "qdq-16-contrib": model(
        [1, 9],
        [
            n("QuantizeLinear", "x s z", "q", domain="com.microsoft"),
            n("Transpose", "q", "t", perm=[1, 0]),
            n("DequantizeLinear", "t s z", domain="com.microsoft"),
        ],
        opset=17,
        s=F(0.0001),
        z=np.uint16(30000),
    ),
    "qdq-13": model(
        [1, 4],
        [
            n("DequantizeLinear", "w t u", "v", axis=1),
            n("QuantizeLinear", "x s z", "q"),
            n("DequantizeLinear", "q s z", "d"),
            n("Gemm", "d v", "g"),
            n("QuantizeLinear", "g s z", "p"),
            n("DequantizeLinear", "p s z"),
        ],
        opset=13,
        s=F(0.05),
        z=np.int8(3),
        w=np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        t=abs(r(3)) * F(0.1),
        u=np.zeros(3, np.int8),
    ),
    "weight-only": model(
        [1, 5],
        [n("DequantizeLinear", "w s z", "v", axis=1), n("MatMul", "x v")],
        w=np.arange(-10, 10, dtype=np.int8).reshape(5, 4),
        s=abs(r(4)),
        z=np.zeros(4, np.int8),
    ),
}
# The standard's evaluator has no operators of other domains, and today's Softmax and Q/DQ only.
STANDARD = sorted(set(CASES) - {"qdq-16-contrib", "qdq-13", "softmax-old"})


def saved(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def shape_of(proto: onnx.ModelProto) -> list[int]:
    return [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]


def gamma(terms: int, unit: float) -> float:
    return terms * unit / (1 - terms * unit)


def points(box: Box, count: int, random: np.random.Generator) -> np.ndarray:
    """Points inside one box `(1, n)`: uniform, corners, and mixtures."""
    share = random.uniform(0, 1, (count, box.lower.shape[1]))
    corners = (share > 0.5).astype(float)
    share = np.where(random.uniform(0, 1, (count, 1)) < 0.4, corners, share)
    return np.clip(box.lower + share * (box.upper - box.lower), box.lower, box.upper)


def boxes_of(network, box: Box) -> list[Box]:
    """Interval bounds of every node."""
    found: list[Box] = []
    for index, node in enumerate(network.nodes):
        found.append(
            box if index == 0 else node.operator.interval(*(found[i] for i in node.inputs))
        )
    return found


@pytest.mark.parametrize("name", STANDARD)
def test_values_equal_the_reference_evaluator(name: str, tmp_path: Path) -> None:
    proto = CASES[name]
    network = read_onnx(saved(tmp_path, proto))
    reference = ReferenceEvaluator(proto)
    for seed in range(5):
        x = r(*shape_of(proto), seed=seed) * 2
        expected = reference.run(None, {"x": x})[0]
        found = network.evaluate(x.reshape(1, -1).astype(np.float64))
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(CASES))
def test_deployed_values_stay_within_the_stated_roundings(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, CASES[name])
    options = onnxruntime.SessionOptions()
    # Its default quantises the *activations* of a product with INT8 weights, which the model
    # does not ask for: errors of 1 % instead of 1e-7.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    network, session = read_onnx(path), onnxruntime.InferenceSession(path, options)
    for seed in range(20):
        x = (r(*shape_of(CASES[name]), seed=seed) * F(4)).astype(F)
        expected = session.run(None, {"x": x})[0].reshape(-1).astype(np.float64)
        values = network.values(x.reshape(1, -1).astype(np.float64))
        # First-order propagation of every node's own error to the output.
        errors: list[np.ndarray] = []
        for index, node in enumerate(network.nodes):
            if index == 0:
                errors.append(np.zeros_like(values[0]))
                continue
            inputs = [Box(values[i] - errors[i], values[i] + errors[i]) for i in node.inputs]
            spread = node.operator.interval(*inputs)
            own = gamma(node.operator.terms, UNIT32) * node.operator.magnitude(*inputs)
            moved = np.maximum(spread.upper - values[index], values[index] - spread.lower)
            errors.append(np.maximum(moved, 0) + own + 1e-37)
        (output,) = network.outputs
        assert np.all(np.abs(expected - values[output]) <= errors[output])


@pytest.mark.parametrize("width", [0.0, 1e-7, 0.3, 3.0])
@pytest.mark.parametrize("name", sorted(CASES))
def test_samples_never_leave_interval_and_backward(name: str, width: float, tmp_path: Path) -> None:
    proto = CASES[name]
    network = read_onnx(saved(tmp_path, proto))
    size = network.input_size
    for seed in range(6):
        random = np.random.default_rng([seed, int(width * 100)])
        centre = random.normal(0, 1, (1, size))
        radius = width * random.uniform(0, 1, (1, size))
        found = boxes_of(network, Box(centre - radius, centre + radius))
        for index, node in enumerate(network.nodes[1:], start=1):
            inputs = tuple(found[i] for i in node.inputs)
            check_operator(node.operator, inputs, found[index], random)


def check_operator(
    operator, inputs: tuple[Box, ...], box: Box, random: np.random.Generator
) -> None:
    samples = [points(item, 40, random) for item in inputs]
    values = operator.evaluate(*samples)
    magnitude = operator.magnitude(*inputs)
    assert np.all(np.abs(values) <= magnitude * (1 + 1e-9) + 1e-30)
    slack = gamma(operator.terms + values.shape[1] + 64, UNIT64) * magnitude + 1e-30
    assert np.all(values >= box.lower - slack)
    assert np.all(values <= box.upper + slack)
    count = 8
    rows = random.normal(0, 1, (count, values.shape[1]))
    rows[: values.shape[1] // 2] *= random.integers(0, 2, (1, values.shape[1]))
    spread = tuple(item.take(np.zeros(count, np.intp)) for item in inputs)
    for slopes in (None, random.uniform(0, 1, rows.shape)):
        coefficients, constants = operator.backward(rows, spread, slopes)
        exact = rows @ values.T
        bound = constants[:, None] + sum(
            c @ x.T for c, x in zip(coefficients, samples, strict=True)
        )
        sizes = sum(np.abs(c) @ np.abs(x).T for c, x in zip(coefficients, samples, strict=True))
        rounding = 1e-13 * (
            sizes + np.abs(constants)[:, None] + (np.abs(rows) @ slack.T) / UNIT64 * 1e-3
        )
        assert np.all(bound <= exact + rounding + np.abs(rows) @ slack.T)


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_samples_never_leave_the_bounds_of_the_engine(
    name: str, arithmetic: str, tmp_path: Path
) -> None:
    network = read_onnx(saved(tmp_path, CASES[name]))
    random = np.random.default_rng(9)
    bounds, rows = Bounds(network, arithmetic), np.eye(network.output_size)
    rows = np.concatenate([rows, -rows])
    for width in (0.0, 0.05, 0.5):
        centre = random.normal(0, 1, (1, network.input_size))
        radius = width * random.uniform(0, 1, centre.shape)
        box = Box(centre - radius, centre + radius)
        regions = bounds.regions(box)
        lowest = bounds.lower(rows, regions, np.zeros(len(rows), np.intp))
        values = network.values(points(box, 100, random))
        assert np.all(lowest <= (network.evaluate(values[0]) @ rows.T).min(axis=0))
        for found, inside in zip(values, regions.boxes, strict=True):
            assert np.all(inside.lower <= found)
            assert np.all(found <= inside.upper)


@pytest.mark.parametrize(
    "name", ["conv", "gemm", "sigmoid", "mul-two", "softmax", "layer-norm", "qdq"]
)
def test_backward_at_a_point_is_tight(name: str, tmp_path: Path) -> None:
    network = read_onnx(saved(tmp_path, CASES[name]))
    x = np.random.default_rng(3).normal(0, 0.5, (1, network.input_size))
    values = network.values(x)
    for index, node in enumerate(network.nodes[1:], start=1):
        rows = np.random.default_rng(index).normal(0, 1, (1, node.size))
        inputs = tuple(Box(values[i], values[i]) for i in node.inputs)
        coefficients, constants = node.operator.backward(rows, inputs)
        bound = constants + sum(
            (c * values[i]).sum() for c, i in zip(coefficients, node.inputs, strict=True)
        )
        assert bound == pytest.approx((rows * values[index]).sum(), abs=1e-9)


@pytest.mark.parametrize(
    "name", ["conv", "conv-groups", "gelu", "tanh", "softmax", "layer-norm", "matmul-two"]
)
def test_backward_at_a_point_is_the_gradient(name: str, tmp_path: Path) -> None:
    network = read_onnx(saved(tmp_path, CASES[name]))
    x = np.random.default_rng(3).normal(0, 0.5, (1, network.input_size))
    values = network.values(x)
    rows = [np.zeros_like(value) for value in values]
    (output,) = network.outputs
    rows[output] = np.random.default_rng(4).normal(0, 1, rows[output].shape)
    for index in range(len(values) - 1, 0, -1):
        node = network.nodes[index]
        inputs = tuple(Box(values[i], values[i]) for i in node.inputs)
        for source, part in zip(
            node.inputs, node.operator.backward(rows[index], inputs)[0], strict=True
        ):
            rows[source] = rows[source] + part
    step = 1e-6 * np.random.default_rng(5).normal(0, 1, x.shape)
    rise = (rows[output] * (network.evaluate(x + step) - network.evaluate(x - step))).sum() / 2
    assert (rows[0] * step).sum() == pytest.approx(rise, rel=1e-4)


@pytest.mark.parametrize("name", sorted(CASES))
def test_no_rows_are_no_problem(name: str, tmp_path: Path) -> None:
    network = read_onnx(saved(tmp_path, CASES[name]))
    values = network.values(np.zeros((0, network.input_size)))
    for index, node in enumerate(network.nodes[1:], start=1):
        inputs = tuple(Box(values[i], values[i]) for i in node.inputs)
        assert node.operator.interval(*inputs).lower.shape == (0, node.size)
        found, constants = node.operator.backward(values[index], inputs)
        assert [item.shape for item in found] == [(0, network.nodes[i].size) for i in node.inputs]
        assert constants.shape == (0,)


def test_saturation_is_modelled(tmp_path: Path) -> None:
    network = read_onnx(saved(tmp_path, CASES["qdq-saturates"]))
    box = boxes_of(network, Box(np.full((1, 9), -5.0), np.full((1, 9), 5.0)))[1]
    scale = float(F(0.004))
    np.testing.assert_allclose(box.lower, -138 * scale)
    np.testing.assert_allclose(box.upper, 117 * scale)


def test_a_value_on_a_tie_may_be_either_level(tmp_path: Path) -> None:
    network = read_onnx(saved(tmp_path, model([1, 1], QDQ, s=F(0.5), z=np.uint8(0))))
    box = boxes_of(network, Box(np.full((1, 1), 0.75), np.full((1, 1), 0.75)))[1]
    assert (box.lower[0, 0], box.upper[0, 0]) == (0.5, 1.0)


def test_a_pole_and_a_negative_root_have_no_bounds(tmp_path: Path) -> None:
    for kind in ("Reciprocal", "Sqrt"):
        network = read_onnx(saved(tmp_path, model([1, 1], [n(kind, "x")])))
        box = boxes_of(network, Box(np.full((1, 1), -1.0), np.full((1, 1), 1.0)))[1]
        assert not np.isfinite(box.lower).any()
        assert not np.isfinite(box.upper).any()


def test_an_added_constant_shares_the_node_of_its_product(tmp_path: Path) -> None:
    network = read_onnx(saved(tmp_path, CASES["matmul-add"]))
    assert [node.name for node in network.nodes] == ["x", "Add_y"]


def test_a_product_that_is_read_twice_keeps_its_own_node(tmp_path: Path) -> None:
    nodes = [n("MatMul", "x w", "m"), n("Add", "m b", "s"), n("Mul", "m s")]
    proto = model([1, 3], nodes, w=r(3, 3), b=r(3))
    network = read_onnx(saved(tmp_path, proto))
    x = r(1, 3, seed=7)
    expected = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    np.testing.assert_allclose(network.evaluate(x.astype(np.float64)), expected, rtol=1e-6)


UNSUPPORTED = {
    "unknown": (model([1, 1, 3], [n("Sin", "x")]), "Sin", "Sin_y"),
    "group": (
        model([1, 3], [n("Gather", "b i", axis=1), n("Cast", "x", "i", to=7)][::-1], b=r(1, 3)),
        "Cast",
        "Cast_i",
    ),
    "ceil": (
        model(IMAGE, [n("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)]),
        "ceil_mode",
        "MaxPool_y",
    ),
    "integer": (
        model([1, 3], [n("DynamicQuantizeLinear", "x", "q s z"), n("DequantizeLinear", "q s z")]),
        "QDQ",
        "DynamicQuantizeLinear_q s z",
    ),
    "scales": (
        model(
            [1, 3],
            [n("QuantizeLinear", "x s z", "q"), n("DequantizeLinear", "q t z")],
            s=F(0.5),
            t=F(0.25),
            z=np.uint8(0),
        ),
        "another scale",
        "DequantizeLinear_y",
    ),
    "folded": (
        model([1, 3], [n("MatMul", "a b", "w"), n("MatMul", "x w")], a=r(3, 3), b=r(3, 3)),
        "round differently",
        "MatMul_w",
    ),
    "empty": (
        model([1, 3], [n("Slice", "x a a b")], a=i64(1), b=i64(1)),
        "0 elements",
        "Slice_y",
    ),
    "exponent": (model([1, 3], [n("Pow", "x e")], e=F(2.5)), "exponent 2.5", "Pow_y"),
}


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_not_supported_is_named_with_its_node(name: str, tmp_path: Path) -> None:
    proto, what, node = UNSUPPORTED[name]
    with pytest.raises(UnsupportedOperatorError) as caught:
        read_onnx(saved(tmp_path, proto))
    assert what in str(caught.value)
    assert node in str(caught.value)
    assert "hint: " in str(caught.value)


def test_erf_is_exact_to_float64() -> None:
    x = np.concatenate(
        [np.linspace(-7, 7, 20_001), np.logspace(-300, 0, 1000), [0.0, np.inf, -np.inf]]
    )
    expected = np.array([math.erf(value) for value in x])
    np.testing.assert_allclose(smooth.erf(x), expected, rtol=8e-16, atol=0)
    assert np.isnan(smooth.erf(np.array([np.nan]))).all()


def test_softmax_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    centre, rows = random.normal(0, 1, (7, 12)), random.normal(0, 1, (7, 12))
    box = Box(centre - 0.1, centre + 0.1)
    whole = softmax.Softmax(4, 3)
    expected, bounds = whole.interval(box), whole.backward(rows, (box,))
    monkeypatch.setattr(softmax, "_CHUNK", 100)
    np.testing.assert_array_equal(whole.interval(box).lower, expected.lower)
    found = whole.backward(rows, (box,))
    np.testing.assert_array_equal(found[0][0], bounds[0][0])
    np.testing.assert_array_equal(found[1], bounds[1])


def test_what_onnx_ships_as_its_own_tests_has_the_stated_outputs() -> None:
    """Models and data of onnx.backend.test; those with other operators are refused by name."""
    folder, equal, refused = Path(backend_test.__file__).parent / "data", [], []
    for path in sorted(folder.glob("pytorch-*/*/model.onnx")):
        files = sorted((path.parent / "test_data_set_0").glob("*put_*.pb"))
        data = {item.name: numpy_helper.to_array(onnx.load_tensor(item)) for item in files}
        x, y = (
            np.concatenate(
                [
                    a.reshape(-1).astype(np.float64)
                    for key, a in data.items()
                    if key.startswith(side)
                ]
            )
            for side in ("input", "output")
        )
        try:
            network = read_onnx(path)
        except VerifierError as error:
            assert "hint: " in str(error)  # noqa: PT017 - most models raise nothing
            refused.append(path.parent.name)
            continue
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(network.evaluate(x[None])[0], y, rtol=1e-4, atol=1e-5)
        equal.append(path.parent.name)
    assert len(equal) >= 65
    assert "test_Conv2d_groups" in equal
    assert "test_Embedding" in refused


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(
        CASES[
            data.draw(st.sampled_from(["conv", "matmul-add", "qdq", "slice"]))
        ].SerializeToString()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        else:
            del content[place : place + data.draw(st.integers(1, 8))]
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    try:
        read_onnx(path)
    except VerifierError as error:
        assert "hint: " in str(error)  # noqa: PT017 - some damage does no harm


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = onnx.ModelProto()
    proto.CopyFrom(CASES["matmul"])
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(UnsupportedOperatorError, match="other files"):
        read_onnx(path)


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_a_file_that_is_no_model_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VerifierError, match=r"model\.onnx"):
        read_onnx(path)
