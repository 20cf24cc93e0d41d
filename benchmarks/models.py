"""Builds the benchmark models: random seeded weights, real structures, cached in a folder.

`python -m benchmarks.models` builds all of them. Their speed is that of trained
models of the same shape; their answers mean nothing, so the int8 model says nothing about
accuracy.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""Old enough for every peer, new enough for LayerNormalization."""

IR_VERSION = 10
"""Pinned so that a peer with an older onnxruntime still loads the file."""

VOCABULARY = 30522
SEQUENCE = 128
MLP_WIDTHS = (30, 64, 32, 2)
LARGE_MLP_WIDTHS = (512, 1024, 1024, 16)

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class BenchModel:
    """A benchmark model: what it is called, how it is built, and one request for it."""

    name: str
    build: Callable[[Path], None]
    """Writes the model to the given path."""
    sample: Callable[[int], dict[str, Array]]
    """Inputs for that many rows, the same ones every time."""
    output: str
    """Name of its only output."""


@dataclass
class _Graph:
    """A graph under construction; names are made up as nodes are added."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: Array) -> str:
        """Adds a constant."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def normal(self, shape: tuple[int, ...], scale: float) -> str:
        """Adds random weights with that standard deviation."""
        return self.constant(self.rng.normal(0.0, scale, shape).astype(np.float32))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def save(
        self,
        path: Path,
        inputs: Mapping[str, tuple[int, tuple[int, ...]]],
        output: tuple[str, int],
    ) -> None:
        """Writes the model; every tensor gets a dynamic batch dimension in front."""
        name, width = output
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [
                helper.make_tensor_value_info(key, kind, ["batch", *shape])
                for key, (kind, shape) in inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])],
            initializer=self.weights,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="lrai-benchmarks",
        )
        onnx.checker.check_model(model)
        onnx.save(model, path)


def _build_mlp(path: Path, widths: tuple[int, ...] = MLP_WIDTHS) -> None:
    """Writes an MLP, and its weights as bare floats for the C server."""
    graph = _Graph(np.random.default_rng(1))
    current = "input"
    layers = list(pairwise(widths))
    for index, (inner, outer) in enumerate(layers):
        last = index == len(layers) - 1
        weight = graph.normal((inner, outer), (2.0 / inner) ** 0.5)
        bias = graph.normal((outer,), 0.1)
        outputs = ["output"] if last else [f"hidden{index}"]
        graph.nodes.append(helper.make_node("Gemm", [current, weight, bias], outputs))
        current = outputs[0] if last else graph.add("Relu", outputs[0])
    graph.save(path, {"input": (TensorProto.FLOAT, (widths[0],))}, ("output", widths[-1]))
    floats = [numpy_helper.to_array(weight).astype("<f4").tobytes() for weight in graph.weights]
    path.with_suffix(".floats").write_bytes(b"".join(floats))


def _convolution(
    graph: _Graph, source: str, channels: tuple[int, int], size: tuple[int, int], gain: float = 1.0
) -> str:
    """Adds a convolution; its batch normalization is folded in, as in deployed models."""
    inner, outer = channels
    kernel, stride = size
    scale = gain * (2.0 / (inner * kernel * kernel)) ** 0.5
    return graph.add(
        "Conv",
        source,
        graph.normal((outer, inner, kernel, kernel), scale),
        graph.normal((outer,), 0.05),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[kernel // 2] * 4,
    )


def _bottleneck(graph: _Graph, source: str, channels: tuple[int, int], stride: int) -> str:
    """Adds 1x1, 3x3, 1x1 beside a shortcut, which is a convolution where the shape changes."""
    inner, middle = channels
    outer = middle * 4
    left = graph.add("Relu", _convolution(graph, source, (inner, middle), (1, 1)))
    left = graph.add("Relu", _convolution(graph, left, (middle, middle), (3, stride)))
    # The small gain keeps sixteen untrained blocks from blowing the values up.
    left = _convolution(graph, left, (middle, outer), (1, 1), 0.3)
    right = source
    if inner != outer or stride != 1:
        right = _convolution(graph, source, (inner, outer), (1, stride), 0.7)
    return graph.add("Relu", graph.add("Add", left, right))


def _build_resnet50(path: Path) -> None:
    """Writes a ResNet-50 (version 1.5): 53 convolutions, 1000 classes, 224x224 pictures."""
    graph = _Graph(np.random.default_rng(2))
    current = graph.add("Relu", _convolution(graph, "input", (3, 64), (7, 2)))
    current = graph.add("MaxPool", current, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = 64
    for middle, blocks, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            current = _bottleneck(graph, current, (inner, middle), stride)
            inner = middle * 4
    current = graph.add("Flatten", graph.add("GlobalAveragePool", current))
    weight, bias = graph.normal((inner, 1000), inner**-0.5), graph.normal((1000,), 0.05)
    graph.nodes.append(helper.make_node("Gemm", [current, weight, bias], ["output"]))
    graph.save(path, {"input": (TensorProto.FLOAT, (3, 224, 224))}, ("output", 1000))


def _picture(rows: int) -> dict[str, Array]:
    """Random pictures, normalized, with four decimals: JSON bodies have the length of real ones."""
    values = np.random.default_rng(7).normal(0.0, 1.0, (rows, 3, 224, 224))
    return {"input": np.round(values, 4).astype(np.float32)}


def _build_resnet50_int8(path: Path) -> None:
    """Writes the int8 version: static QDQ, unsigned activations, signed weights per channel."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        """Eight random pictures, one at a time."""

        def __init__(self) -> None:
            self._rows: Iterator[Array] = iter(_picture(8)["input"])

        def get_next(self) -> dict[str, Array] | None:
            """The next picture, or nothing."""
            row = next(self._rows, None)
            return None if row is None else {"input": row[np.newaxis]}

    quantize_static(
        model_path(path.parents[1], "resnet50"),
        path,
        Pictures(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _linear(graph: _Graph, source: str, inner: int, outer: int) -> str:
    """Adds a matrix product and a bias."""
    product = graph.add("MatMul", source, graph.normal((inner, outer), inner**-0.5))
    return graph.add("Add", graph.normal((outer,), 0.02), product)


def _normalize(graph: _Graph, source: str, width: int) -> str:
    """Adds a layer normalization."""
    scale = graph.constant(np.ones(width, np.float32))
    bias = graph.constant(np.zeros(width, np.float32))
    return graph.add("LayerNormalization", source, scale, bias, axis=-1, epsilon=1e-12)


def _gelu(graph: _Graph, source: str) -> str:
    """Adds the exact GELU out of Erf: the operator of that name is younger than this opset."""
    root, one, half = (graph.constant(np.array(v, np.float32)) for v in (2.0**0.5, 1.0, 0.5))
    inner = graph.add("Add", graph.add("Erf", graph.add("Div", source, root)), one)
    return graph.add("Mul", graph.add("Mul", source, inner), half)


def _attention(graph: _Graph, source: str, bias: str, width: int, heads: int) -> str:
    """Adds multi-head self-attention; `bias` hides the padding."""
    split = graph.constant(np.array([0, 0, heads, width // heads], np.int64))
    merged = graph.constant(np.array([0, 0, width], np.int64))

    def project(order: list[int]) -> str:
        projected = graph.add("Reshape", _linear(graph, source, width, width), split)
        return graph.add("Transpose", projected, perm=order)

    query, key, value = project([0, 2, 1, 3]), project([0, 2, 3, 1]), project([0, 2, 1, 3])
    root = graph.constant(np.array((width // heads) ** 0.5, np.float32))
    scores = graph.add("Div", graph.add("MatMul", query, key), root)
    weights = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
    context = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    return _linear(graph, graph.add("Reshape", context, merged), width, width)


def _build_transformer(path: Path) -> None:
    """Writes a 6-layer, 384-wide, 12-head encoder with mean pooling over the mask."""
    width, heads, hidden = 384, 12, 1536
    graph = _Graph(np.random.default_rng(3))
    words = graph.add("Gather", graph.normal((VOCABULARY, width), 1.0), "input_ids")
    current = _normalize(
        graph, graph.add("Add", words, graph.normal((SEQUENCE, width), 0.2)), width
    )
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    axes = graph.constant(np.array([1, 2], np.int64))
    one = graph.constant(np.array(1.0, np.float32))
    hidden_bias = graph.constant(np.array(-10000.0, np.float32))
    bias = graph.add("Mul", graph.add("Sub", one, graph.add("Unsqueeze", mask, axes)), hidden_bias)
    for _ in range(6):
        attended = _attention(graph, current, bias, width, heads)
        current = _normalize(graph, graph.add("Add", attended, current), width)
        inner = _gelu(graph, _linear(graph, current, width, hidden))
        outer = _linear(graph, inner, hidden, width)
        current = _normalize(graph, graph.add("Add", outer, current), width)
    last = graph.constant(np.array([2], np.int64))
    second = graph.constant(np.array([1], np.int64))
    column = graph.add("Unsqueeze", mask, last)
    total = graph.add("ReduceSum", graph.add("Mul", current, column), second, keepdims=0)
    length = graph.add("ReduceSum", column, second, keepdims=0)
    graph.nodes.append(helper.make_node("Div", [total, length], ["output"]))
    inputs = {
        "input_ids": (TensorProto.INT64, (SEQUENCE,)),
        "attention_mask": (TensorProto.INT64, (SEQUENCE,)),
    }
    graph.save(path, inputs, ("output", width))


def _measurements(rows: int) -> dict[str, Array]:
    """Thirty numbers with four decimals, like the rows of a table."""
    values = np.random.default_rng(5).normal(0.0, 1.0, (rows, MLP_WIDTHS[0]))
    return {"input": np.round(values, 4).astype(np.float32)}


def _features(rows: int) -> dict[str, Array]:
    """What the large MLP reads."""
    values = np.random.default_rng(8).normal(0.0, 1.0, (rows, LARGE_MLP_WIDTHS[0]))
    return {"input": np.round(values, 4).astype(np.float32)}


def _tokens(rows: int) -> dict[str, Array]:
    """Random tokens without padding: every row costs the same."""
    rng = np.random.default_rng(6)
    ids = rng.integers(1000, VOCABULARY, (rows, SEQUENCE), np.int64)
    return {"input_ids": ids, "attention_mask": np.ones((rows, SEQUENCE), np.int64)}


MODELS = {
    model.name: model
    for model in (
        BenchModel("mlp", _build_mlp, _measurements, "output"),
        BenchModel("mlp_large", partial(_build_mlp, widths=LARGE_MLP_WIDTHS), _features, "output"),
        BenchModel("resnet50", _build_resnet50, _picture, "output"),
        BenchModel("resnet50_int8", _build_resnet50_int8, _picture, "output"),
        BenchModel("transformer", _build_transformer, _tokens, "output"),
    )
}
"""Every benchmark model by name."""


def model_path(cache: Path, name: str) -> Path:
    """The model's file in the cache, built now if it is not there."""
    path = cache / "models" / f"{name}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # A build that is interrupted leaves no file under the final name.
        partial = path.with_name(f"{name}.partial.onnx")
        MODELS[name].build(partial)
        for made in path.parent.glob(f"{name}.partial.*"):
            made.rename(made.with_name(made.name.replace(".partial", "")))
    return path


def default_cache() -> Path:
    """Where models and environments are kept unless a folder is named."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return caches / "lrai-benchmarks"


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """The flag that all programs of this folder share."""
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="keeps models and environments"
    )


def main() -> None:
    """Builds every model and says how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_cache_argument(parser)
    cache = parser.parse_args().cache
    for name in MODELS:
        started = time.perf_counter()
        path = model_path(cache, name)
        seconds = time.perf_counter() - started
        print(f"{name:14} {path.stat().st_size / 1e6:8.1f} MB  {seconds:5.1f} s  {path}")


if __name__ == "__main__":
    main()
