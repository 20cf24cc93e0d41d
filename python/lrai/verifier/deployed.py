"""A model as it is deployed: onnxruntime on flat float32 rows, many at a time where that works."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from lrai.errors import InvalidInputError, ModelLoadError, UnsupportedError

if TYPE_CHECKING:
    import onnx

Float32Array = NDArray[np.float32]

_CHUNK: Final = 16_384
# Batches and single rows may be summed in different orders, but not differ by more than that.
_SAME: Final = 1e-4
_REQUANTIZED: Final = frozenset(("Conv", "ConvTranspose", "Gemm"))
_QUANTIZING: Final = frozenset(("QuantizeLinear", "Relu", "LeakyRelu", "Clip"))


class DeployedModel:
    """One model file in one single-threaded onnxruntime session on the CPU.

    Raises `ModelLoadError` where onnxruntime refuses the file and `UnsupportedError` where an
    input is not a float32 tensor of known size.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; its first dimension becomes free where that changes no answer."""
        data = _read(path)
        self.digest = hashlib.sha256(data).hexdigest()
        """SHA-256 of the file, in hexadecimal."""
        self._session = _open(data, path)
        self._names = [value.name for value in self._session.get_inputs()]
        self._shapes = [_row_shape(value, path) for value in self._session.get_inputs()]
        self._sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self._shapes]
        self.input_size = sum(self._sizes)
        """Elements of one flat input row."""
        self.is_batched = all(
            isinstance(v.shape[0], str | None) for v in self._session.get_inputs()
        )
        """Whether many rows go through the session at once."""
        if not self.is_batched:
            self._free_batch(data, path)

    def evaluate(self, x: Float32Array) -> Float32Array:
        """Flat outputs `(N, n_out)` of flat inputs `(N, input_size)`."""
        if x.ndim != 2 or x.shape[1] != self.input_size:
            raise InvalidInputError(
                f"rows of shape {x.shape} do not fit a model with {self.input_size} inputs"
            )
        step = _CHUNK if self.is_batched else 1
        starts = range(0, max(len(x), 1), step)
        return np.concatenate([self._run(x[start : start + step]) for start in starts])

    def _run(self, x: Float32Array) -> Float32Array:
        parts = np.split(x, np.cumsum(self._sizes)[:-1], axis=1)
        feeds = {
            name: np.ascontiguousarray(part.reshape(len(x), *shape), dtype=np.float32)
            for name, part, shape in zip(self._names, parts, self._shapes, strict=True)
        }
        return np.concatenate(
            [output.reshape(len(x), -1) for output in self._session.run(None, feeds)], axis=1
        )

    def _free_batch(self, data: bytes, path: Path) -> None:
        """Take the freed graph if two rows at once give what each gives alone."""
        import onnx
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        rows = np.random.default_rng(0).random((2, self.input_size), dtype=np.float32)
        alone = np.concatenate([self._run(rows[:1]), self._run(rows[1:])])
        fixed, freed = self._session, _with_free_batch(onnx.load_from_string(data))
        try:
            self._session = _open(freed.SerializeToString(), path)
            together = self._run(rows)
        except (ModelLoadError, ValueError, failures.Fail, failures.InvalidArgument):
            self._session = fixed
            return
        scale = float(np.abs(alone).max(initial=1.0))
        self.is_batched = together.shape == alone.shape and bool(
            (np.abs(together - alone) <= _SAME * scale).all()
        )
        if not self.is_batched:
            self._session = fixed


def changed_by_runtime(path: Path) -> str | None:
    """The node whose float weights or bias onnxruntime quantises by itself when it opens the file.

    It does so for Conv, ConvTranspose and Gemm between DequantizeLinear and QuantizeLinear; what
    is proved of such a file is not true of what runs. None where there is no such node.
    """
    import onnx

    graph = onnx.load_from_string(_read(path)).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    floats |= {output for output, maker in makers.items() if maker == "Constant"}
    # An activation in between does not keep the runtime from it.
    followers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            followers.setdefault(name, set()).add(node.op_type)
    for node in graph.node:
        weights = floats.intersection(node.input[1:3])
        is_fed = makers.get(node.input[0] if node.input else "") == "DequantizeLinear"
        after = followers.get(node.output[0], set())
        if node.op_type in _REQUANTIZED and weights and is_fed and after & _QUANTIZING:
            return str(node.name or node.output[0])
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelLoadError(
            f"{path} cannot be read: {error.strerror or error}", "give the path of an .onnx file"
        ) from error


def _open(data: bytes, path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Without it, int8 weights behind DequantizeLinear make onnxruntime round activations to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its failures share no base class
        raise ModelLoadError(
            f"onnxruntime refuses {path}: {error}", "check it with onnx.checker"
        ) from error


def _row_shape(value: Any, path: Path) -> tuple[int, ...]:
    row = tuple(value.shape[1:])
    whole = value.shape[:1] in ([1], [None]) or (value.shape and isinstance(value.shape[0], str))
    if value.type != "tensor(float)" or not whole or not all(isinstance(d, int) for d in row):
        raise UnsupportedError(
            f"input {value.name} of {path} is a {value.type} of shape {value.shape}",
            "float32 inputs with a batch dimension of 1 or a free one are supported",
        )
    return row


def _with_free_batch(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Name the first dimension of every input and output, and forget the shapes in between."""
    constants = {tensor.name for tensor in model.graph.initializer}
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dims) > 0:
            dims[0].dim_param = "rows"
    return model
