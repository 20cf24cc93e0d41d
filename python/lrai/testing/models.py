"""Small real ONNX models for tests; made with onnx, which only tests need."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lrai.core.model import DATATYPES

ELEMENTS = {name: datatype.onnx_number for name, datatype in DATATYPES.items()}
"""ONNX element types by the protocol's names."""

Dims = list[int | str]


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
    nodes, weights, name = [], [], "x"
    for layer, (rows, columns) in enumerate(pairwise(sizes)):
        scale = 1 / np.sqrt(rows)
        for kind, shape in (("w", (rows, columns)), ("b", (columns,))):
            array = random.normal(0, scale, shape).astype(np.float32)
            weights.append(numpy_helper.from_array(array, f"{kind}{layer}"))
        is_last = layer == len(sizes) - 2
        sum_name = "y" if is_last else f"sum{layer}"
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], [sum_name]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [sum_name], [f"h{layer}"]))
        name = f"h{layer}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", sizes[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", sizes[-1]])
    return save(path, nodes, [x], [y], weights)
