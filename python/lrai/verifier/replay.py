"""Runs a counterexample through the deployed models before anybody may call it one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from lrai.errors import VerifierError
from lrai.verifier.property import Case
from lrai.verifier.verdict import Witness

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.float64]
Feeds = dict[str, NDArray[Any]]
Engine = Callable[[Feeds], list[NDArray[Any]]]

# ONNX's numbers of the floating-point types that a float32 value fits into exactly.
_DTYPES: Final[dict[int, type[np.floating[Any]]]] = {1: np.float32, 11: np.float64}

_QUANTISATION: Final = 19


@dataclass(frozen=True)
class Part:
    """A model and its place in the network that was verified."""

    path: Path
    inputs: NDArray[np.intp] | None = None
    """Which elements of the flat input vector feed it, in the order of its inputs; None: all."""
    outputs: NDArray[np.float64] | None = None
    """`(n_out, n)`: how its flat outputs enter those of the network; None: side by side."""


@dataclass
class Replay:
    """The reference evaluator and onnxruntime, loaded once; several parts make a product network.

    Raises VerifierError where a model cannot be read or run.
    """

    parts: Sequence[Part]
    _models: "list[_Model]" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Load every model in both engines."""
        self._models = [_Model(part.path) for part in self.parts]

    def outputs(self, x: NDArray[np.float32]) -> tuple[Array, Array]:
        """Flat outputs `(n_out,)` of a flat input, by the reference evaluator and onnxruntime."""
        return self._outputs(x, "reference"), self._outputs(x, "onnxruntime")

    def confirm(self, case: Case, x: Array) -> Witness | None:
        """The witness, if both engines call `x`, rounded to float32 in the box, unsafe."""
        rounded = float32_inside(x, case.lower, case.upper)
        if rounded is None:
            return None
        reference, runtime = self.outputs(rounded)
        exact = rounded.astype(np.float64)
        if not (case.contains(exact, reference) and case.contains(exact, runtime)):
            return None
        return Witness(exact, runtime)

    def _outputs(self, x: NDArray[np.float32], engine: str) -> Array:
        found: list[Array] = []
        total: Array | None = None
        for part, model in zip(self.parts, self._models, strict=True):
            y = model.run(engine, x if part.inputs is None else x[part.inputs])
            if part.outputs is None:
                found.append(y)
            else:
                share = part.outputs @ y
                total = share if total is None else total + share
        return np.concatenate(found) if total is None else total


def float32_inside(x: Array, lower: Array, upper: Array) -> NDArray[np.float32] | None:
    """The float32 values nearest to `x` in the box; None if one of its sides contains none."""
    with np.errstate(over="ignore"):
        rounded = np.clip(x, lower, upper).astype(np.float32)
    above, below = np.float32(np.inf), np.float32(-np.inf)
    rounded = np.where(rounded < lower, np.nextafter(rounded, above), rounded)
    rounded = np.where(rounded > upper, np.nextafter(rounded, below), rounded)
    inside = (rounded >= lower) & (rounded <= upper) & np.isfinite(rounded)
    return rounded.astype(np.float32) if bool(inside.all()) else None


class _Model:
    """One file in both engines."""

    def __init__(self, path: Path) -> None:
        import onnx

        try:
            model = onnx.load(path)
            constants = {tensor.name for tensor in model.graph.initializer}
            self._inputs = [
                _Input.read(value) for value in model.graph.input if value.name not in constants
            ]
            self._engines = {"reference": _reference(model), "onnxruntime": _onnxruntime(path)}
        except VerifierError:
            raise
        except Exception as error:  # both engines raise many kinds
            raise VerifierError(
                f"{path} cannot be loaded for the replay: {error}", "run onnx.checker on the file"
            ) from error

    def run(self, engine: str, x: NDArray[np.float32]) -> Array:
        parts = np.split(x, np.cumsum([value.size for value in self._inputs])[:-1])
        feeds = {
            value.name: part.astype(value.dtype).reshape(value.shape)
            for value, part in zip(self._inputs, parts, strict=True)
        }
        outputs = self._engines[engine](feeds)
        return np.concatenate([np.asarray(y, np.float64).ravel() for y in outputs])


@dataclass(frozen=True)
class _Input:
    name: str
    shape: tuple[int, ...]
    dtype: type[np.floating[Any]]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @classmethod
    def read(cls, value: "onnx.ValueInfoProto") -> "_Input":
        tensor = value.type.tensor_type
        if tensor.elem_type not in _DTYPES:
            raise VerifierError(
                f"input {value.name!r} has ONNX type {tensor.elem_type}, not a float.",
                "export the model with float32 inputs",
            )
        # A dimension without a value is the batch: one row.
        shape = tuple(dim.dim_value or 1 for dim in tensor.shape.dim)
        return cls(value.name, shape, _DTYPES[tensor.elem_type])


def _reference(model: "onnx.ModelProto") -> Engine:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(_with_quantisation(model))

    def run(feeds: Feeds) -> list[NDArray[Any]]:
        with np.errstate(all="ignore"):
            return list(evaluator.run(None, feeds))

    return run


def _with_quantisation(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model in an opset whose Quantize- and DequantizeLinear the evaluator has."""
    import onnx

    opsets = [one for one in model.opset_import if not one.domain]
    kinds = {node.op_type for node in model.graph.node}
    if not kinds & {"QuantizeLinear", "DequantizeLinear"} or opsets[0].version >= _QUANTISATION:
        return model
    # For 8 bits both mean the same in all opsets; onnxruntime has to agree anyway.
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    next(one for one in raised.opset_import if not one.domain).version = _QUANTISATION
    return raised


def _onnxruntime(path: Path) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Without it, int8 weights behind DequantizeLinear make onnxruntime round activations to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: list(session.run(None, feeds))
