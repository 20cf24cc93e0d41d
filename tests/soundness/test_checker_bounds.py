"""The checker's own reading and bounds: deployed values never leave them, and stay near them."""

import ast
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

import lrai.verifier.checker
from lrai.verifier.checker.bounds import Bounds
from lrai.verifier.checker.graph import RefusedError
from lrai.verifier.checker.model import read_models

F = np.float32


def n(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def weights(*shape):
    return (np.random.default_rng(sum(shape)).normal(size=shape) / np.sqrt(shape[-1])).astype(F)


def quantised(bits, step, zero=3):
    kind = {8: np.uint8, 16: np.int16}[bits]
    return [
        n("Relu", "g", "h"),
        n("QuantizeLinear", "h s z", "q"),
        n("DequantizeLinear", "q s z", "y"),
    ], {"s": F(step), "z": kind(zero)}


VECTOR, IMAGE = [1, 6], [1, 2, 6, 6]
DENSE = [n("Gemm", "x w b", "g", transB=1, alpha=0.5, beta=2.0)]
DENSE_CONSTANTS = {"w": weights(5, 6), "b": weights(5)}
CONV = [n("Conv", "x w b", "g", pads=[1, 0, 1, 2], strides=[1, 2], dilations=[2, 1])]
CONV_CONSTANTS = {"w": weights(4, 2, 3, 3), "b": weights(4)}
NETWORKS = {
    "relu": (VECTOR, [*DENSE, n("Relu", "g", "y")], DENSE_CONSTANTS),
    "leaky relu": (VECTOR, [*DENSE, n("LeakyRelu", "g", "y", alpha=0.3)], DENSE_CONSTANTS),
    "abs": (VECTOR, [*DENSE, n("Abs", "g", "y")], DENSE_CONSTANTS),
    "clip": (
        VECTOR,
        [*DENSE, n("Clip", "g l h", "y")],
        DENSE_CONSTANTS | {"l": F(-0.2), "h": F(0.4)},
    ),
    "clip above": (VECTOR, [*DENSE, n("Clip", "g  h", "y")], DENSE_CONSTANTS | {"h": F(0.1)}),
    "scaled and shifted": (
        VECTOR,
        [
            n("Sub", "x m", "c"), n("Div", "c d", "e"), n("MatMul", "e w", "f"),
            n("Mul", "f k", "g"), n("Relu", "g", "h"), n("Sub", "o h", "y"),
        ],
        {"m": weights(6), "d": F(3), "w": weights(6, 4), "k": weights(4), "o": F(1)},
    ),
    "a sum that is used twice": (
        VECTOR,
        [
            n("MatMul", "x w", "f"), n("Identity", "f", "i"), n("Add", "i k", "g"),
            n("Relu", "g", "h"), n("Add", "h f", "y"),
        ],
        {"w": weights(6, 4), "k": weights(4) + 2},
    ),
    "biases that are no batch": (
        VECTOR,
        [
            n("MatMul", "x w", "f"), n("Add", "f k", "g"), n("Relu", "g", "h"),
            n("Add", "h k", "i"), n("Add", "x l", "j"), n("ReduceMean", "j a", "m", keepdims=0),
            n("Add", "m m", "o"), n("Sub", "i o", "y"),
        ],
        {
            "w": weights(6, 6), "k": weights(3, 1, 6), "l": weights(6, 6), "a": np.array([0]),
        },
    ),
    "a bias behind what was moved": (
        VECTOR,
        [
            n("MatMul", "x w", "f"), n("Gather", "f i", "g", axis=1), n("Add", "g k", "h"),
            n("Concat", "h f", "j", axis=1), n("Add", "j l", "m"), n("Relu", "m", "y"),
        ],
        {
            "w": weights(6, 4), "i": np.array([3, 1, 1, 0]), "k": weights(4), "l": weights(8),
        },
    ),
    "residual": (
        VECTOR,
        [
            n("Gemm", "x w b", "g"), n("Relu", "g", "h"), n("Gemm", "h w b", "i"),
            n("Add", "i x", "j"), n("Relu", "j", "k"), n("Relu", "k", "y"),
        ],
        {"w": weights(6, 6), "b": weights(6)},
    ),
    "convolution": (IMAGE, [*CONV, n("Relu", "g", "y")], CONV_CONSTANTS),
    "convolution in groups": (
        IMAGE,
        [n("Conv", "x w", "g", group=2, auto_pad="SAME_UPPER"), n("Relu", "g", "y")],
        {"w": weights(4, 1, 2, 2)},
    ),
    "batch norm": (
        IMAGE,
        [*CONV, n("BatchNormalization", "g s t m v", "h", epsilon=0.01), n("Relu", "h", "y")],
        CONV_CONSTANTS | {"s": weights(4), "t": weights(4), "m": weights(4), "v": weights(4) ** 2},
    ),
    "largest of windows": (
        IMAGE,
        [
            *CONV,
            n("MaxPool", "g", "p", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
            n("Flatten", "p", "f"), n("Relu", "f", "y"),
        ],
        CONV_CONSTANTS,
    ),
    "means of windows": (
        IMAGE,
        [
            *CONV, n("Relu", "g", "h"),
            n("AveragePool", "h", "p", kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
            n("Relu", "p", "q"), n("GlobalAveragePool", "q", "y"),
        ],
        CONV_CONSTANTS,
    ),
    "moved": (
        IMAGE,
        [
            n("Transpose", "x", "a", perm=[0, 2, 3, 1]), n("Slice", "a i j k", "b"),
            n("Gather", "b r", "c", axis=2), n("Concat", "c b", "d", axis=2),
            n("Reshape", "d t", "e"), n("Relu", "e", "y"),
        ],
        {
            "i": np.array([1]), "j": np.array([6]), "k": np.array([1]),
            "r": np.array([0, 0, 3]), "t": np.array([1, -1]),
        },
    ),
    "moved in other ways": (
        IMAGE,
        [
            n("SpaceToDepth", "x", "a", blocksize=2), n("Tile", "a i", "b"), n("Neg", "b", "c"),
            n("Expand", "k s", "e"), n("Squeeze", "c j", "d"), n("Add", "d e", "f"),
            n("Relu", "f", "y"),
        ],
        {
            "i": np.array([1, 1, 2, 1]), "j": np.array([0]), "k": weights(8, 1, 1),
            "s": np.array([8, 6, 3]),
        },
    ),
    "split and summed": (
        IMAGE,
        [
            helper.make_node("Split", ["x", "s"], ["b", "c"], axis=1),
            n("Sum", "b c b", "d"), n("ReduceMean", "d i", "e", keepdims=0),
            n("ReduceSum", "c i", "f", keepdims=0), n("Sub", "e f", "g"), n("Relu", "g", "y"),
        ],
        {
            "s": np.array([1, 1]), "i": np.array([2]),
        },
    ),
    "largest, smallest and bent": (
        VECTOR,
        [
            *DENSE, n("PRelu", "g o", "a"), n("Max", "a g k", "c"), n("Min", "c l", "d"),
            n("Dropout", "d", "y"),
        ],
        DENSE_CONSTANTS
        | {"o": abs(weights(5)), "k": weights(5) - F(0.4), "l": weights(5) + F(0.5)},
    ),
    "eight bits, read with another step": (
        VECTOR,
        [*DENSE, *quantised(8, 0.02)[0][:2], n("DequantizeLinear", "q t z", "y")],
        DENSE_CONSTANTS | quantised(8, 0.02)[1] | {"t": F(0.01)},
    ),
    "eight bits, a step for each channel": (
        IMAGE,
        [
            n("QuantizeLinear", "x s z", "q", axis=1), n("Transpose", "q", "r", perm=[0, 2, 3, 1]),
            n("DequantizeLinear", "r s z", "y", axis=3),
        ],
        {"s": np.array([0.02, 0.001], F), "z": np.array([3, -5], np.int8)},
    ),
    "eight bits": (VECTOR, [*DENSE, *quantised(8, 0.02)[0]], DENSE_CONSTANTS | quantised(8, 0.02)[1]),
    "eight bits, saturated": (
        VECTOR, [*DENSE, *quantised(8, 0.001)[0]], DENSE_CONSTANTS | quantised(8, 0.001)[1],
    ),
    "sixteen bits": (
        VECTOR, [*DENSE, *quantised(16, 1e-4)[0]], DENSE_CONSTANTS | quantised(16, 1e-4)[1],
    ),
    "eight-bit weights": (
        VECTOR,
        [n("DequantizeLinear", "v s z", "w", axis=0), n("MatMul", "x w", "g"), n("Relu", "g", "y")],
        {
            "v": np.arange(-12, 12, dtype=np.int8).reshape(6, 4),
            "s": np.linspace(0.01, 0.06, 6, dtype=F), "z": np.zeros(6, np.int8),
        },
    ),
}  # fmt: skip


def deployed(path, points, shape):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    rows = [session.run(None, {"x": one.reshape(shape)})[0] for one in points]
    return np.stack(rows).reshape(len(points), -1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("radius", [1.0, 0.05, 0.0])
def test_deployed_values_never_leave_the_bounds(bench, name, radius):
    shape, nodes, constants = NETWORKS[name]
    path = bench.model(nodes, constants, shape)
    graph, outputs = read_models([path.read_bytes()], np.zeros(0, np.intp))
    bounds = Bounds(graph, is_float32=True)
    rng = np.random.default_rng(11)
    size = int(np.prod(shape))
    steps = rng.uniform(-1, 1, (200, size))
    steps[:100] = np.sign(steps[:100])
    # The box of the points: a corner that is rounded to float32 must not leave it.
    points = (rng.normal(size=size) + radius * steps).astype(F)
    box = np.stack([points.min(axis=0), points.max(axis=0)]).astype(float)
    state = bounds.regions(box[:, None], np.zeros((1, len(graph.hidden)), np.int8))
    values = deployed(path, points, shape)
    low, high = state.lower[0, outputs], state.upper[0, outputs]
    assert (values >= low).all()
    assert (values <= high).all()
    functions = rng.normal(size=(20, outputs.size))
    rows = np.zeros((20, graph.slots))
    np.add.at(rows, (slice(None), outputs), functions)
    bound = bounds.lower(rows, state, np.zeros(20, int))
    found = (values @ functions.T).min(axis=0)
    assert (bound <= found).all()
    if radius == 0.0:
        # A point has no relaxation: what is left is rounding, and steps of quantised values.
        step = (
            np.max(constants.get("s", 0.0)) if name.startswith(("eight bits", "sixteen")) else 0.0
        )
        assert (high - low <= 1.001 * step + 1e-3).all()
        assert (found - bound <= 1.001 * step * np.abs(functions).sum(axis=1) + 1e-3).all()


@pytest.mark.parametrize(
    "nodes",
    [
        [n("Sigmoid", "x", "y")],
        [n("Softmax", "x", "y")],
        [n("Mul", "x x", "y")],
        [n("Relu", "nowhere", "y")],
        [n("Relu", "x", "y", strange=1)],
        [n("Reshape", "x z", "y")],
        [n("QuantizeLinear", "x s", "q"), n("Relu", "q", "y")],
        [n("Pad", "x p", "y")],
        [n("Div", "s x", "y")],
        [n("MatMul", "x x", "y")],
        [n("Gather", "t x", "y")],
        [n("QuantizeLinear", "x s", "y", block_size=2)],
        [n("BatchNormalization", "x t t t t", "y", training_mode=1)],
        [n("Dropout", "x s r", "y")],
        [n("Reshape", "x i", "h"), n("MaxPool", "h", "y", kernel_shape=[1, 1], pads=[1, 1, 1, 1])],
        [n("Reshape", "x i", "h"), n("MaxPool", "h", "y", kernel_shape=[2, 2], ceil_mode=1)],
    ],
)
def test_what_the_checker_does_not_know_is_refused_by_name(bench, nodes):
    constants = {
        "s": F(0.1),
        "t": weights(3),
        "z": np.array([7]),
        "i": np.array([1, 1, 2, 3]),
        "p": np.array([0, 1, 0, 1]),
        "r": np.array(True),
    }
    path = bench.model(nodes, constants, VECTOR)
    with pytest.raises(RefusedError, match=nodes[-1].op_type):
        read_models([path.read_bytes()], np.zeros(0, np.intp))


def test_the_checker_imports_nothing_of_the_search():
    folder = Path(lrai.verifier.checker.__file__).parent
    modules = [
        name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [])
        if name.startswith("lrai")
    ]
    assert modules
    assert all(name.startswith("lrai.verifier.checker") for name in modules)
