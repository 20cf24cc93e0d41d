"""What `onnx_reader` knows while it walks over a model: values, nodes, and how to evaluate one."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrai.errors import UnsupportedOperatorError, VerifierError
from lrai.verifier.network import Node
from lrai.verifier.operators.base import Array, Linear, Operator
from lrai.verifier.operators.linear import Select

if TYPE_CHECKING:
    import onnx

_LARGEST = 1 << 26


@dataclass(frozen=True)
class Value:
    """A tensor of the model: a constant, or a node of the network in row-major order."""

    shape: tuple[int, ...]
    node: int = -1
    constant: NDArray[Any] | None = None
    levels: tuple[float, float] | None = None
    """Scale s and zero point z of an integer tensor, whose levels are `node / s + z`."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def floats(self) -> Array:
        """The constant as float64; raises VerifierError where the value is none."""
        if self.constant is None:
            raise VerifierError("a constant is missing.", "give the model its initializers")
        return np.asarray(self.constant, np.float64)


@dataclass
class Graph:
    """The network as far as it is read."""

    opset: int
    consumers: Counter[str]
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def add(
        self,
        name: str,
        operator: Operator | None,
        inputs: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> Value:
        """Append a node; its value has that ONNX shape, batch dimension included.

        Raises UnsupportedOperatorError for a value that is empty or too large to bound.
        """
        size = math.prod(shape)
        if not 0 < size <= _LARGEST:
            raise UnsupportedOperatorError(
                f"{name}: a value of {size} elements has no bounds.",
                f"values of 1 to {_LARGEST} elements have",
            )
        kept = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
        self.nodes.append(Node(name, operator, inputs, kept))
        return Value(shape, len(self.nodes) - 1)

    def select(
        self, name: str, inputs: tuple[Value, ...], indices: NDArray[np.int64], constants: Array
    ) -> Value:
        """A value made of elements of others; the very same elements make no node."""
        sizes = tuple(value.size for value in inputs)
        flat = indices.reshape(-1).astype(np.intp)
        if len(inputs) == 1 and np.array_equal(flat, np.arange(sizes[0])):
            return replace(inputs[0], shape=indices.shape)
        operator = Select(flat, sizes, constants)
        return self.add(name, operator, tuple(value.node for value in inputs), indices.shape)

    def broadcast(self, name: str, value: Value, shape: tuple[int, ...]) -> Value:
        """The value repeated along the axes that it lacks."""
        indices = np.broadcast_to(np.arange(value.size).reshape(value.shape), shape)
        return self.select(name, (value,), indices, np.empty(0))

    def add_bias(self, name: str, source: str, value: Value, bias: Array) -> Value | None:
        """The value of `source` plus a constant inside its own node, where that is the same sum."""
        operator = self.nodes[value.node].operator
        if self.consumers[source] != 1 or not isinstance(operator, Linear) or operator.bias.any():
            return None
        if operator.terms < 2 or operator.bias.size != bias.size:
            return None
        fused = copy.copy(operator)
        fused.bias = bias.reshape(-1)
        self.nodes[value.node] = replace(self.nodes[value.node], name=name, operator=fused)
        return value

    def loosen(self, value: Value, terms: int) -> None:
        """Allow more roundings to a linear operator whose weights runtimes fold into others."""
        node = self.nodes[value.node]
        if isinstance(node.operator, Linear) and node.operator.terms:
            loose = copy.copy(node.operator)
            loose.terms += terms
            self.nodes[value.node] = replace(node, operator=loose)

    def groups(self, name: str, value: Value, axes: tuple[int, ...]) -> Value:
        """The value with these axes moved behind the others and flattened into one."""
        kept = tuple(axis for axis in range(len(value.shape)) if axis not in axes)
        order = np.arange(value.size).reshape(value.shape).transpose(kept + axes)
        shape = tuple(value.shape[axis] for axis in kept)
        return self.select(name, (value,), order.reshape(*shape, -1), np.empty(0))

    def name(self, node: "onnx.NodeProto") -> str:
        """The node's name, or its output's where it has none."""
        return str(node.name or node.output[0])


Inputs = Sequence[Value | None]
Builder = Callable[[Graph, "onnx.NodeProto", Inputs], Sequence[Value]]


def refuse(graph: Graph, node: "onnx.NodeProto", what: str) -> UnsupportedOperatorError:
    """The error for a node that is supported only in another form."""
    return UnsupportedOperatorError(
        f"{graph.name(node)}: {node.op_type} with {what} has no bounds.",
        "simplify the model, or verify a part of it",
    )


def unpack(graph: Graph, node: "onnx.NodeProto", inputs: Inputs, count: int) -> list[Value]:
    """The first inputs, all given and none an integer tensor."""
    found = [value for value in inputs[:count] if value is not None and value.levels is None]
    if len(found) != count:
        raise refuse(graph, node, f"fewer than {count} floating point inputs")
    return found


def constant(graph: Graph, node: "onnx.NodeProto", inputs: Inputs, place: int) -> Array | None:
    """The constant input at that place as float64; None where it is left out."""
    value = inputs[place] if place < len(inputs) else None
    if value is not None and value.constant is None:
        raise refuse(graph, node, f"an input {place} that varies")
    return None if value is None else value.floats


def attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    """The attributes that a node states; strings as str."""
    import onnx

    found = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()
    }


def evaluate(
    node: "onnx.NodeProto", arrays: list[NDArray[Any] | None], opset: int
) -> list[NDArray[Any]]:
    """The outputs of one node by ONNX's reference evaluator; raises UnsupportedOperatorError."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    inputs, outputs = (
        [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names) if name]
        for names in (node.input, node.output)
    )
    graph = onnx.helper.make_graph([plain], "node", inputs, outputs)
    # The evaluator has no older versions of these two, which mean the same; the 16-bit types of
    # `com.microsoft` came with opset 21.
    is_quantisation = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    version = max(opset, 21) if is_quantisation else opset
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if name}
    try:
        return list(ReferenceEvaluator(model).run(None, feeds))
    except Exception as error:
        raise UnsupportedOperatorError(
            f"{node.name or node.output[0]}: the reference evaluator cannot run {node.op_type}: "
            f"{error}.",
            "check the node with onnx.checker",
        ) from error
