"""Sampled differences never exceed what was proved, whichever way the variant was made."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lrai.testing.models import save
from lrai.verifier.bounds import Bounds
from lrai.verifier.closeness import ClosenessSettings, compare
from lrai.verifier.deployed import DeployedModel
from lrai.verifier.differential import differential, product
from lrai.verifier.input_box import InputBox
from lrai.verifier.onnx_reader import read_onnx
from lrai.verifier.operators.base import Box
from lrai.verifier.operators.difference import ElementDifference
from lrai.verifier.operators.quantize import FakeQuantize
from lrai.verifier.operators.relu import Relu

SIZES = (4, 12, 10, 3)


def model(path, layers, kind):
    """`kind`: "float", or the bits of the activations; a quantizer may swallow the Relu ("relu-")."""
    nodes, tensors, value = [], [], "x"

    def constant(name, array, dtype=np.float32):
        tensors.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def quantize(value, number, zero):
        if kind == "float":
            return value
        levels = {"8": np.uint8, "16": np.uint16}[kind.removeprefix("relu-")]
        names = [
            constant(f"s{number}", 4 / np.iinfo(levels).max),
            constant(f"o{number}", zero * (np.iinfo(levels).max // 2), levels),
        ]
        nodes.append(helper.make_node("QuantizeLinear", [value, *names], [f"q{number}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{number}", *names], [f"d{number}"]))
        return f"d{number}"

    def parameter(name, array, levels):
        if kind == "float":
            return constant(name, array)
        scale = np.abs(array).max() / np.iinfo(levels).max
        inputs = [
            constant(f"{name}/levels", np.rint(array / scale), levels),
            constant(f"{name}/scale", scale),
        ]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name]))
        return name

    value = quantize(value, "x", 1)
    for number, (weights, bias) in enumerate(layers):
        names = parameter(f"w{number}", weights, np.int8), parameter(f"b{number}", bias, np.int32)
        nodes.append(helper.make_node("Gemm", [value, *names], [f"z{number}"]))
        value = f"z{number}"
        if number < len(layers) - 1:
            if not kind.startswith("relu-"):
                nodes.append(helper.make_node("Relu", [value], [f"a{number}"]))
                value = f"a{number}"
            value = quantize(value, number, 0)
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", SIZES[0]), (value, SIZES[-1]))
    ]
    return save(path, nodes, info[:1], info[1:], tensors, opset=21)


def layers(seed):
    random = np.random.default_rng(seed)
    return [
        (random.normal(size=(n, m)) / np.sqrt(n), random.normal(size=m) / 4)
        for n, m in pairwise(SIZES)
    ]


def int8(parts):
    scales = [np.abs(weights).max(axis=0) / 127 for weights, _ in parts]
    return [(np.rint(w / s) * s, b) for (w, b), s in zip(parts, scales, strict=True)]


def sampled(paths, box, count, seed=0):
    x = np.random.default_rng(seed).uniform(box.lower, box.upper, (count, len(box.lower)))
    x = np.clip(x.astype(np.float32), box.lower, box.upper).astype(np.float32)
    f, q = (DeployedModel(path).evaluate(x).astype(np.float64) for path in paths)
    return np.abs(f - q)


@pytest.mark.parametrize("radius", [0.05, 0.5, 2.5])  # the last one saturates the quantizers
@pytest.mark.parametrize("kind", ["float", "8", "16", "relu-8", "relu-16"])
def test_sampled_difference_stays_below_the_bound(tmp_path, kind, radius):
    parts = layers(len(kind))
    paths = (
        model(tmp_path / "f.onnx", parts, "float"),
        model(tmp_path / "q.onnx", int8(parts), kind),
    )
    centre = np.linspace(-0.5, 0.5, SIZES[0])
    box = InputBox(centre - radius, centre + radius)
    found = compare(*paths, box, ClosenessSettings(is_absolute=True, timeout_s=1.0))
    largest = sampled(paths, box, 20_000).max(axis=0)
    assert (largest <= found.uppers).all()
    assert found.lower <= found.upper
    x = np.array([found.x], np.float32)
    witnessed = [DeployedModel(path).evaluate(x).astype(np.float64) for path in paths]
    assert np.abs(witnessed[0] - witnessed[1]).max() >= found.lower * (1 - 1e-6)


@pytest.mark.parametrize("kind", ["float", "8", "16", "relu-8", "relu-16"])
@pytest.mark.parametrize("seed", range(4))
def test_every_node_of_the_differential_network_stays_in_its_box(tmp_path, kind, seed):
    parts = layers(seed)
    f = read_onnx(model(tmp_path / "f.onnx", parts, "float"))
    q = read_onnx(model(tmp_path / "q.onnx", int8(parts), kind))
    network = differential(f, q)
    assert network is not None
    random = np.random.default_rng(seed)
    centre = random.normal(size=(8, 4))
    radius = 10 ** random.uniform(-3, 0.5, size=(8, 1))
    box = Box(centre - radius, centre + radius)
    found = Bounds(network).regions(box)
    for _ in range(50):
        share = random.random(centre.shape)
        x = box.lower + share * (box.upper - box.lower)
        for value, bounds in zip(network.values(x), found.boxes, strict=True):
            assert (bounds.lower <= value).all()
            assert (value <= bounds.upper).all()
        np.testing.assert_allclose(network.evaluate(x), product(f, q).evaluate(x), atol=1e-12)


def test_networks_of_another_structure_have_no_differential(tmp_path):
    f = read_onnx(model(tmp_path / "f.onnx", layers(0), "float"))
    q = read_onnx(model(tmp_path / "q.onnx", layers(0)[:1] + layers(0)[1:], "relu-8"))
    assert differential(q, f) is None


finite = st.floats(-3, 3, allow_nan=False, width=32)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.tuples(finite, finite, finite, finite), finite, st.booleans(), st.integers(0, 3))
def test_planes_of_an_element_hold_at_random_points(ends, row, has_relu, quantizer):
    f = Relu() if has_relu else None
    levels = {1: (0, 255), 2: (-128, 127), 3: (0, 20)}
    q = FakeQuantize(0.01, *levels[quantizer]) if quantizer else f
    operator = ElementDifference(f, q)
    z, y = sorted(ends[:2]), sorted(ends[2:])
    random = np.random.default_rng(0)
    share = random.random((2, 64))
    points = np.stack(
        [low + part * (high - low) for (low, high), part in zip((z, y), share, strict=True)]
    )
    gaps = points[0] - points[1]
    boxes = [(z[0], z[1]), (y[0], y[1]), (gaps.min(), gaps.max())]
    boxes = tuple(Box(np.array([[low]]), np.array([[high]])) for low, high in boxes)
    coefficients, constant = operator.backward(np.array([[row]]), boxes)
    values = (points[0][:, None], points[1][:, None], gaps[:, None])
    bound = sum(value * part for value, part in zip(values, coefficients, strict=True))
    actual = operator.evaluate(*values)
    slack = 1e-9
    assert (row * actual >= bound + constant - slack).all()
    interval = operator.interval(*boxes)
    assert (interval.lower - slack <= actual).all()
    assert (actual <= interval.upper + slack).all()
