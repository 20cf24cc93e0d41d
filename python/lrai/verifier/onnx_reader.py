"""Reads an ONNX model as a Network: a walk over its nodes that folds constants exactly."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lrai.errors import LraiError, UnsupportedOperatorError, VerifierError
from lrai.verifier.network import Network
from lrai.verifier.onnx_graph import Graph, Value, evaluate
from lrai.verifier.onnx_operators import BUILDERS

if TYPE_CHECKING:
    import onnx

# Folded constants are exactly what every runtime computes: moved, integer, or rounded once.
_EXACT = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Sqrt", "Neg", "Abs", "Relu", "Max", "Min", "Clip", "Sign"),
        *("Floor", "Ceil", "Cast", "Constant", "ConstantOfShape", "Identity", "Dropout", "Reshape"),
        *("Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Gather"),
        *("Expand", "Tile", "Where", "Pad", "Shape", "Size", "Range"),
        *("DequantizeLinear", "QuantizeLinear"),
    )
)
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def read_onnx(path: str | Path) -> Network:
    """Read a model; an open first dimension of an input is the batch and becomes 1.

    Raises VerifierError where the file is no valid model or has other open dimensions, and
    UnsupportedOperatorError, with the node's name, where the verifier has no bounds.
    """
    model, digest = _load(Path(path))
    graph = Graph(
        opset=next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 1),
        consumers=Counter(name for node in model.graph.node for name in node.input),
    )
    graph.consumers.update(output.name for output in model.graph.output)
    _read_values(graph, model.graph)
    inputs = tuple(range(len(graph.nodes)))
    needed = _needed(model.graph)
    for node in model.graph.node:
        if needed.intersection(node.output):
            _read_node(graph, node)
    outputs = []
    for output in model.graph.output:
        value = graph.values[output.name]
        if value.constant is not None or value.levels is not None:
            raise VerifierError(
                f"{path}: the output {output.name} is constant or an integer.",
                "verify a model whose outputs are floating point numbers",
            )
        outputs.append(value.node)
    return Network(tuple(graph.nodes), inputs, tuple(outputs), (digest,))


def _load(path: Path) -> tuple["onnx.ModelProto", str]:
    import onnx

    try:
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf and the file system have no other base in common
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise VerifierError(
            f"cannot read the model {path}: {reason}.", "give a valid .onnx file"
        ) from error
    if not model.graph.input or not model.graph.output:
        raise VerifierError(
            f"the model {path} has no inputs or no outputs.", "give a valid .onnx file"
        )
    if any(tensor.data_location for tensor in model.graph.initializer):
        # The digest of the file must stand for the weights too.
        raise UnsupportedOperatorError(
            f"the model {path} keeps weights in other files.", "save it as one file"
        )
    return model, hashlib.sha256(content).hexdigest()


def _read_values(graph: Graph, proto: "onnx.GraphProto") -> None:
    import onnx

    for tensor in proto.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        graph.values[tensor.name] = Value(array.shape, constant=array)
    if proto.sparse_initializer:
        raise UnsupportedOperatorError(
            "the model has sparse initializers.", "export it with dense weights"
        )
    for item in proto.input:
        if item.name in graph.values:
            continue
        tensor_type = item.type.tensor_type
        if tensor_type.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            kind = onnx.TensorProto.DataType.Name(tensor_type.elem_type)
            raise UnsupportedOperatorError(
                f"the input {item.name} has the type {kind}.",
                "only float32 and float64 inputs have bounds",
            )
        shape = [dim.dim_value for dim in tensor_type.shape.dim]
        if any(size <= 0 for size in shape[1:]):
            raise VerifierError(
                f"the input {item.name} has open dimensions besides the batch: {shape}.",
                "export the model with fixed shapes",
            )
        fixed = tuple(shape[:1] if shape and shape[0] > 0 else [1] * len(shape[:1]))
        graph.values[item.name] = graph.add(item.name, None, (), fixed + tuple(shape[1:]))


def _needed(proto: "onnx.GraphProto") -> set[str]:
    names = {output.name for output in proto.output}
    for node in reversed(proto.node):
        if names.intersection(node.output):
            names.update(node.input)
    return names


def _read_node(graph: Graph, node: "onnx.NodeProto") -> None:
    missing = [name for name in node.input if name and name not in graph.values]
    if missing:
        raise VerifierError(
            f"{graph.name(node)} reads {missing[0]}, which no earlier node makes.",
            "give a valid .onnx file",
        )
    values = [graph.values[name] if name else None for name in node.input]
    if node.domain not in _DOMAINS:
        raise _unsupported(node, f"of the domain {node.domain} ")
    try:
        outputs = _build(graph, node, values)
    except LraiError:
        raise
    except Exception as error:  # a malformed node fails in any way; the file is to blame
        raise VerifierError(
            f"{graph.name(node)}: cannot read this {node.op_type}: {error}.",
            "check the model with onnx.checker",
        ) from error
    graph.values.update(zip(node.output, outputs, strict=False))


def _build(graph: Graph, node: "onnx.NodeProto", values: list[Value | None]) -> list[Value]:
    if all(value is None or value.constant is not None for value in values):
        return [Value(array.shape, constant=array) for array in _fold(graph, node, values)]
    if node.op_type == "Shape" and values[0] is not None:
        zeros = np.broadcast_to(np.float32(0), values[0].shape)
        return [
            Value(array.shape, constant=array) for array in evaluate(node, [zeros], graph.opset)
        ]
    if node.op_type not in BUILDERS:
        raise _unsupported(node)
    return list(BUILDERS[node.op_type](graph, node, values))


def _fold(graph: Graph, node: "onnx.NodeProto", values: list[Value | None]) -> Iterator[np.ndarray]:
    arrays = [None if value is None else value.constant for value in values]
    for array in evaluate(node, arrays, graph.opset):
        if array.dtype.kind == "f" and node.op_type not in _EXACT:
            raise UnsupportedOperatorError(
                f"{graph.name(node)}: {node.op_type} of constants may round differently in every "
                "runtime.",
                "fold the constants when exporting the model",
            )
        yield array


def _unsupported(node: "onnx.NodeProto", detail: str = "") -> UnsupportedOperatorError:
    hint = "simplify the model, or verify a part of it"
    if node.op_type.startswith(("QLinear", "QGemm", "DynamicQuantize", "ConvInteger", "MatMulInt")):
        hint = "quantise in QDQ format: QuantizeLinear and DequantizeLinear around float operators"
    return UnsupportedOperatorError(
        f"the operator {node.op_type} {detail}at {node.name or node.output[0]!r} has no bounds.",
        hint,
    )
