"""The checker's own reading of ONNX files; each supported node becomes linear maps and Relus.

ONNX's reference evaluator tells what a node does: it runs what depends on constants alone, it moves
slots as data, and it maps unit vectors times the imaginary unit, so that the matrix of a linear
node comes out as the imaginary part and its bias as the real one.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from lrai.verifier.checker.graph import ONE, Graph, RefusedError, Slots, Value

_MOVES: Final = {
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "Identity"),
    *("Reshape", "Shape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
    "Unsqueeze",
}
"""Not Pad: onnxruntime 1.31 merges it into a MaxPool as if it padded with the least number."""
_FOLDED: Final = _MOVES | {"Add", "Cast", "Constant", "DequantizeLinear", "Div", "Mul", "Sub"}
_SUMS: Final = ("Add", "Sub", "Sum")
_LINEAR: Final = {
    *("AveragePool", "BatchNormalization", "Conv", "Div", "Gemm", "GlobalAveragePool", "MatMul"),
    *("Mul", "Neg", "ReduceMean", "ReduceSum", *_SUMS),
}
_SLACK: Final = 2.0**-20
_CHUNK: Final = 1 << 20


def read_models(contents: Sequence[bytes], shared: Slots) -> tuple[Graph, Slots]:
    """Read models one after the other: their graph, and the slots of all outputs.

    `shared` numbers the inputs of all models; they stay as they are where it is empty. RefusedError
    names what the checker does not know.
    """
    from onnx import ModelProto

    models = [ModelProto.FromString(content) for content in contents]
    shapes = [_inputs(model.graph) for model in models]
    sizes = [math.prod(shape) for one in shapes for shape in one.values()]
    shared = shared if shared.size else np.arange(sum(sizes))
    if shared.size != sum(sizes) or not all(sizes):
        raise RefusedError("the inputs of the models have no shape, or another than the property's")
    graph, outputs = Graph(int(shared.max()) + 1), []
    places = iter(np.split(ONE + 1 + shared, np.cumsum(sizes)))
    for model, one in zip(models, shapes, strict=True):
        values = {name: Value(next(places).reshape(shape)) for name, shape in one.items()}
        outputs += _read(graph, model, values)
    return graph, np.concatenate(outputs)


def _inputs(graph: Any) -> dict[str, list[int]]:
    """Shapes of what is no constant; an open first dimension is the batch: one row at a time."""
    constants = {one.name for one in graph.initializer}
    given = {one.name: one.type.tensor_type for one in graph.input if one.name not in constants}
    if any(one.elem_type != 1 for one in given.values()):
        raise RefusedError("an input of the model is not of float32")
    return {
        name: [axis.dim_value or int(place == 0) for place, axis in enumerate(one.shape.dim)]
        for name, one in given.items()
    }


def _read(graph: Graph, model: Any, values: dict[str, Any]) -> list[Slots]:
    from onnx import numpy_helper

    nodes, constants = model.graph.node, model.graph.initializer
    tensors = [*constants, *(one.t for node in nodes for one in node.attribute)]
    if any(one.data_location for one in tensors):
        raise RefusedError("the model has constants outside of its file")
    (opset,) = (one.version for one in model.opset_import if not one.domain)
    values |= {"": None} | {one.name: numpy_helper.to_array(one) for one in constants}
    for node in nodes:
        try:
            made = _read_node(graph, node, opset, [values[name] for name in node.input])
        except Exception as error:
            what = f"{node.op_type} {node.name or list(node.output)}"
            raise RefusedError(f"the checker does not know this {what}: {error!r}") from error
        values |= zip(node.output, made, strict=False)
    return [values[one.name].slots.ravel() for one in model.graph.output]


def _read_node(graph: Graph, node: Any, opset: int, arguments: list[Any]) -> Sequence[Any]:
    from onnx import defs, helper

    kind, run = node.op_type, partial(_run, node, opset)
    values = [one for one in arguments if isinstance(one, Value)]
    found = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    unknown = set(found) - set(defs.get_schema(kind, opset).attributes)
    if node.domain or unknown or found.get("training_mode") or found.get("ceil_mode"):
        raise ValueError("an unknown domain, attribute or mode")
    is_quantised = any(one.is_quantised for one in values)
    if is_quantised and kind not in (*_MOVES, "DequantizeLinear"):
        raise ValueError("a calculation with quantised values")
    if not values and kind in _FOLDED:
        return run(arguments)
    is_first_alone = len(values) == 1 and isinstance(arguments[0], Value)
    if kind in _MOVES and (is_first_alone or (kind == "Concat" and len(values) == len(arguments))):
        moved = run([one.slots if isinstance(one, Value) else one for one in arguments])
        return moved if kind == "Shape" else [Value(one, is_quantised) for one in moved]
    is_either = kind in _SUMS or (len(values) == 1 and kind in ("MatMul", "Mul"))
    if kind in _LINEAR and (is_first_alone or is_either):
        return [graph.linear(*_elements(run, arguments, kind), rounds=True)]
    return [_BENT[kind](graph, found, *arguments)]


def _run(node: Any, opset: int, arrays: list[Any]) -> list[Any]:
    """What the reference evaluator says of one node."""
    from onnx import NodeProto, helper
    from onnx.reference import ReferenceEvaluator

    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [name and str(place) for place, name in enumerate(node.input)]
    given = {name: one for name, one in zip(copy.input, arrays, strict=True) if name}
    # The evaluator knows DequantizeLinear in its latest versions only.
    opsets = [helper.make_opsetid("", max(opset, 21 * (node.op_type == "DequantizeLinear")))]
    function = helper.make_function("lrai", "node", list(given), node.output, [copy], opsets)
    return [np.asarray(one) for one in ReferenceEvaluator(function).run(None, given, {})]


def _elements(run: Callable[..., Any], arguments: list[Any], kind: str = "") -> tuple[Any, Any]:
    """What a linear node's matrix is made of: rows, slots and weights; and its output's shape."""
    zeros = [np.zeros(x.slots.shape, complex) if isinstance(x, Value) else x for x in arguments]
    zeros = [x.astype(complex) if getattr(x, "dtype", 0) == np.float32 else x for x in zeros]
    shifts = [run(zeros)[0].real]
    if kind == "BatchNormalization":
        # What mean and bias add may cancel; the roundings do not.
        bias = run([*zeros[:3], 0 * zeros[3], zeros[4]])[0].real
        shifts += [bias, -bias]
    shape, size = shifts[0].shape, shifts[0].size
    parts = [(np.arange(size), np.full(size, ONE), one.ravel()) for one in shifts]
    for place, x in enumerate(arguments):
        slots = x.slots.ravel() if isinstance(x, Value) else np.zeros(0, np.intp)
        # Unit vectors in a batch, where the first dimension is one and stays it.
        is_batch = slots.size > 0 and (len(x.slots), *shape[:1]) == (1, 1)
        count = max(_CHUNK // max(slots.size, size), 1) if is_batch else 1
        for start in range(0, slots.size, count):
            units = 1j * np.eye(min(count, slots.size - start), slots.size, start)
            batch = [*zeros[:place], units.reshape(-1, *x.slots.shape[1:]), *zeros[place + 1 :]]
            made = run(batch)[0].imag
            if made.shape[1:] != shape[1:]:
                raise ValueError("it does not keep a batch")
            made = made.reshape(len(units), size)
            unit, row = np.nonzero(made)
            parts.append((row, slots[start + unit], made[unit, row]))
    return tuple(np.concatenate(side) for side in zip(*parts, strict=True)), shape


def _max_pool(graph: Graph, found: Any, x: Value) -> Value:
    from onnx import helper

    # What the mean of a window consists of is the window; a short one repeats its last element.
    used = {one: found[one] for one in found if one != "storage_order"} | {"count_include_pad": 1}
    run = partial(_run, helper.make_node("AveragePool", ["x"], ["y"], **used), 19)
    (rows, slots, weights), shape = _elements(run, [x])
    rows, slots = rows[weights != 0], slots[weights != 0]
    counts = np.bincount(rows, minlength=math.prod(shape))
    if not counts.all():
        raise ValueError("an empty window")
    order, ends = np.argsort(rows, kind="stable"), np.cumsum(counts)
    places = (np.minimum(ends - counts + step, ends - 1) for step in range(counts.max()))
    best: Value = _extreme(graph, 1.0, *(Value(slots[order[at]].reshape(shape)) for at in places))
    return best


def _extreme(graph: Graph, sign: float, *parts: Any) -> Any:
    """The largest of values for the sign 1, the smallest for -1."""
    if len(parts) == 1:
        return parts[0]
    ends = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    first, last = (_extreme(graph, sign, *some) for some in ends)
    return graph.limit(first, last, sign)


def _clip(graph: Graph, found: Any, x: Value, low: Any = None, high: Any = None) -> Value:
    for bound, sign in ((found.get("min", low), 1.0), (found.get("max", high), -1.0)):
        if bound is not None and bound != -sign * np.inf:
            x = graph.limit(x, np.float64(bound), sign)
    return x


def _quantisation(found: Any, x: Value, scale: Any, zero: Any) -> tuple[Any, Any, Any]:
    """Scale and zero point in the shape of x, and the limits of the quantised type."""
    if set(found) - {"axis", "saturate"}:
        raise ValueError("blocks, or another type")
    zero, shape = np.zeros(scale.shape, np.uint8) if zero is None else zero, [1] * x.slots.ndim
    shape[found.get("axis", 1) * (scale.size > 1)] = scale.size
    step, shift = (one.astype(np.float64).reshape(shape) for one in (scale, zero))
    return step, shift, np.iinfo(zero.dtype)


def _quantize(graph: Graph, found: Any, x: Value, scale: Any, zero: Any = None) -> Value:
    step, shift, limits = _quantisation(found, x, scale, zero)
    inside = _clip(graph, {}, graph.combine((1.0 / step, x), (1.0, shift)), limits.min, limits.max)
    # Half a step, and what roundings of the quotient may add next to a tie.
    noise = 0.5 + _SLACK * (limits.max - limits.min + 1.0)
    return Value(graph.combine((1.0, inside), noise=noise).slots, is_quantised=True)


def _dequantize(graph: Graph, found: Any, x: Value, scale: Any, zero: Any = None) -> Value:
    step, shift, _ = _quantisation(found, x, scale, zero)
    return graph.combine((step, x), (-step, shift), rounds=True)


def _bend(graph: Graph, x: Value, below: Any, above: Any, *, rounds: bool = True) -> Value:
    return graph.combine((below, x), (above - below, graph.relu(x)), rounds=rounds)


_BENT: Final[dict[str, Callable[..., Value]]] = {
    "Abs": lambda graph, _, x: _bend(graph, x, -1.0, 1.0, rounds=False),
    "Clip": _clip,
    "DequantizeLinear": _dequantize,
    "Dropout": lambda _graph, _, x, _ratio=None: Value(x.slots),
    "LeakyRelu": lambda graph, found, x: _bend(graph, x, found.get("alpha", 0.01), 1.0),
    "Max": lambda graph, _, *parts: _extreme(graph, 1.0, *parts),
    "MaxPool": _max_pool,
    "Min": lambda graph, _, *parts: _extreme(graph, -1.0, *parts),
    "PRelu": lambda graph, _, x, slope: _bend(graph, x, slope, 1.0),
    "QuantizeLinear": _quantize,
    "Relu": lambda graph, _, x: graph.relu(x, is_hidden=True),
}
