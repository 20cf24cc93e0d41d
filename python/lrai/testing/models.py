"""Small real ONNX models for tests; made with onnx, which only tests need."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lrai.core.model import DATATYPES

ELEMENTS = {name: datatype.onnx_number for name, datatype in DATATYPES.items()}
"""ONNX element types by the protocol's names."""

Dims = list[int | str]
Layers = Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Weights `(n_in, n_out)` and bias `(n_out,)` of each."""


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto] | None = None,
    opset: int = 17,
) -> Path:
    """Write a model; its folders are made."""
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def identity(path: Path, datatype: str = "FP32", shape: Dims | None = None) -> Path:
    """`y = x`, of any datatype and shape."""
    shape = ["N", 4] if shape is None else shape
    element = ELEMENTS[datatype]
    value = [helper.make_tensor_value_info(name, element, shape) for name in ("x", "y")]
    return save(path, [helper.make_node("Identity", ["x"], ["y"])], value[:1], value[1:])


def sum_and_difference(path: Path, shape: Dims | None = None) -> Path:
    """`OUTPUT0 = INPUT0 + INPUT1`, `OUTPUT1 = INPUT0 - INPUT1`, INT32: the protocol's examples."""
    shape = ["N", 16] if shape is None else shape
    info = [
        helper.make_tensor_value_info(name, TensorProto.INT32, shape)
        for name in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
    ]
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    return save(path, nodes, info[:2], info[2:])


def mlp(path: Path, sizes: tuple[int, ...] = (30, 64, 32, 2), seed: int = 0) -> Path:
    """A perceptron with seeded random weights: `x [N, first] -> y [N, last]`, FP32."""
    random = np.random.default_rng(seed)
    layers = [
        (random.normal(0, rows**-0.5, (rows, columns)), random.normal(0, rows**-0.5, columns))
        for rows, columns in pairwise(sizes)
    ]
    return dense(path, layers)


def dense(path: Path, layers: Layers, rows: int | str = "N") -> Path:
    """`x [rows, n_in] -> y [rows, n_out]`, FP32: layers with a Relu behind all but the last."""
    nodes, weights, name = [], [], "x"
    for layer, arrays in enumerate(layers):
        for kind, array in zip("wb", arrays, strict=True):
            weights.append(numpy_helper.from_array(array.astype(np.float32), f"{kind}{layer}"))
        is_last = layer == len(layers) - 1
        sum_name = "y" if is_last else f"sum{layer}"
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], [sum_name]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [sum_name], [f"h{layer}"]))
        name = f"h{layer}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, len(layers[0][0])])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, len(layers[-1][1])])
    return save(path, nodes, [x], [y], weights)


def encoder(
    path: Path,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    longest: int = 128,
    *,
    is_masked: bool = True,
) -> Path:
    """A transformer encoder over tokens 0 to 999, with seeded random weights.

    `input_ids [N, T]` and `attention_mask [N, T]`, INT64 -> `hidden [N, T, width]` and, the mean
    over the mask, `pooled [N, width]`, FP32; T at most `longest`. Without `is_masked`, attention
    does not look at the mask, so that padding changes its answers.
    """
    graph = _Encoder(width, heads)
    current = graph.embed(longest)
    bias = graph.mask_bias() if is_masked else graph.constant(0.0)
    for _ in range(layers):
        current = graph.layer(current, bias)
    graph.add("Identity", current, name="hidden")
    graph.pool(current)
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "sequence", width]),
        helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", width]),
    ]
    return save(path, graph.nodes, tokens, outputs, graph.weights)


class _Encoder:
    """The nodes and weights of an encoder, as they are added."""

    def __init__(self, width: int, heads: int) -> None:
        self.width, self.heads = width, heads
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(3)

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: object, kind: type = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def linear(self, source: str, inner: int, outer: int) -> str:
        weight = self.constant(self._random.normal(0, inner**-0.5, (inner, outer)))
        bias = self.constant(self._random.normal(0, 0.02, outer))
        return self.add("Add", self.add("MatMul", source, weight), bias)

    def normalize(self, source: str) -> str:
        scale, bias = self.constant(np.ones(self.width)), self.constant(np.zeros(self.width))
        return self.add("LayerNormalization", source, scale, bias, axis=-1)

    def embed(self, longest: int) -> str:
        words = self.constant(self._random.normal(0, 1, (1000, self.width)))
        places = self.constant(self._random.normal(0, 0.2, (longest, self.width)))
        length = self.add("Shape", "input_ids", start=1, end=2)
        first, axis = self.constant([0], np.int64), self.constant([0], np.int64)
        place = self.add("Slice", places, first, length, axis)
        return self.normalize(self.add("Add", self.add("Gather", words, "input_ids"), place))

    def mask_bias(self) -> str:
        mask = self.add("Cast", "attention_mask", to=TensorProto.FLOAT)
        hidden = self.add("Sub", self.constant(1.0), mask)
        axes = self.constant([1, 2], np.int64)
        return self.add("Mul", self.add("Unsqueeze", hidden, axes), self.constant(-10000.0))

    def attention(self, source: str, bias: str) -> str:
        each = self.width // self.heads
        split = self.constant([0, 0, self.heads, each], np.int64)
        query, key, value = (
            self.add(
                "Transpose",
                self.add("Reshape", self.linear(source, self.width, self.width), split),
                perm=order,
            )
            for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        scores = self.add("Div", self.add("MatMul", query, key), self.constant(each**0.5))
        shares = self.add("Softmax", self.add("Add", scores, bias), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", shares, value), perm=[0, 2, 1, 3])
        merged = self.constant([0, 0, self.width], np.int64)
        return self.linear(self.add("Reshape", mixed, merged), self.width, self.width)

    def layer(self, source: str, bias: str) -> str:
        mixed = self.normalize(self.add("Add", self.attention(source, bias), source))
        inner = self.add("Relu", self.linear(mixed, self.width, 4 * self.width))
        return self.normalize(
            self.add("Add", self.linear(inner, 4 * self.width, self.width), mixed)
        )

    def pool(self, source: str) -> None:
        mask = self.add("Cast", "attention_mask", to=TensorProto.FLOAT)
        column = self.add("Unsqueeze", mask, self.constant([2], np.int64))
        along = self.constant([1], np.int64)
        total = self.add("ReduceSum", self.add("Mul", source, column), along, keepdims=0)
        self.add("Div", total, self.add("ReduceSum", column, along, keepdims=0), name="pooled")
