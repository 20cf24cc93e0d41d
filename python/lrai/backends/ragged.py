"""Whether sequences of different lengths can share a batch: which axis is their length, how the
outputs' lengths follow, and whether padding with zeros leaves the answers as they are.

The declared shapes tell the axis. Everything else is measured: runs on generated inputs, alone
and padded, are compared. So a model without a mask passes too if it treats positions one by one,
and one with a mask that it does not honour is found out.
"""

import time
from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np

from lrai.backends.base import BatchFaultError, Padding
from lrai.backends.onnx_signature import Dim, Graph, Run, Tensor
from lrai.backends.tensors import NUMPY_TYPES, Array
from lrai.core.model import Cut, Ragged, first_edges

# Pairs of lengths to measure with, the longer ones first: many common strides divide their
# differences, and tables of positions may be short.
_SPANS: Final = ((32, 128), (8, 32), (4, 16))
_LONGEST: Final = 8192
# Longer inputs are tried as long as the next one is expected to end in this time.
_SEARCH_S: Final = 2.0
# The size of dimensions that are free and not the length.
_OTHER: Final = 16
# Numbers of a vocabulary: small ones exist in every model.
_VOCABULARIES: Final = (8, 2)
_FLOATS: Final = ("FP16", "FP32", "FP64")
_HINT: Final = "hint: padding = accept pads all the same, padding = off checks nothing"


class UnclearLengthError(Exception):
    """Why the declared shapes do not tell which dimension is the length."""


class _RefusedError(Exception):
    """Why padding would not be right."""


def find_ragged(graph: Graph, run: Run, padding: Padding) -> Ragged:
    """Return how lengths share a batch; one without inputs, perhaps with a note, if they do not.

    `run` is called on generated inputs of a batchable graph: about twenty times, and then with
    longer ones for about a second, to learn how long inputs may be. It raises `BatchFaultError`
    for inputs that the model does not take, and MemoryError.
    """
    note = "requests of different lengths do not share a batch:"
    try:
        axes = length_axes(graph, padding.dimension)
    except UnclearLengthError as why:
        # Pictures of any height and width are no sequences, and need no word about it.
        is_asked = padding.mode == "accept" or padding.dimension
        return Ragged(note=f"{note} {why}") if is_asked else Ragged()
    if not any(axes):
        return Ragged()
    try:
        return _measure(_Trial(graph, run, axes, padding), padding)
    except _RefusedError as why:
        return Ragged(note=f"{note} {why}")
    except BatchFaultError as why:
        return Ragged(note=f"{note} not every length runs: {why}")


def length_axes(graph: Graph, dimension: str = "") -> tuple[int, ...]:
    """Return each input's axis of the length, 0 for none.

    It is the only free dimension behind the batch, under one name or without any; `dimension`
    names it where there are several. Raises `UnclearLengthError`.
    """
    free = [
        [(axis, dim) for axis, dim in enumerate(tensor.dims) if axis and not isinstance(dim, int)]
        for tensor in graph.inputs
    ]
    names: set[Dim] = {dim for dims in free for _, dim in dims}
    if dimension:
        if dimension not in names:
            known = ", ".join(sorted(map(str, names))) or "none"
            raise UnclearLengthError(f"no input has the dimension '{dimension}', free are: {known}")
        free = [[pair for pair in dims if pair[1] == dimension] for dims in free]
    elif len(names) > 1:
        listed = ", ".join(sorted(map(str, names)))
        raise UnclearLengthError(
            f"several dimensions are free ({listed}), length_dimension names one"
        )
    if any(len(dims) > 1 for dims in free):
        raise UnclearLengthError("an input has its length in two dimensions")
    if not any(free):
        return (0,) * len(free)
    if any(not tensor.is_plain for tensor in (*graph.inputs, *graph.outputs)):
        raise UnclearLengthError("strings cannot be padded")
    return tuple(dims[0][0] if dims else 0 for dims in free)


class _Trial:
    """A model that is run on generated inputs of chosen lengths."""

    def __init__(self, graph: Graph, run: Run, axes: Sequence[int], padding: Padding) -> None:
        self.graph, self.axes = graph, axes
        self._run, self._masks = run, padding.mask_inputs
        self.vocabulary = _VOCABULARIES[0]
        self.shapes = cache(self._shapes)

    def rows(self, length: int) -> list[Array]:
        """Return one row of every input; the same ones every time."""
        random = np.random.default_rng(length)
        pairs = zip(self.graph.inputs, self.axes, strict=True)
        return [self._generate(tensor, axis, length, random) for tensor, axis in pairs]

    def pad(self, arrays: Sequence[Array], edge: int) -> list[Array]:
        """Append zeros along the length up to `edge`."""
        padded = []
        for array, axis in zip(arrays, self.axes, strict=True):
            widths = [(0, 0)] * array.ndim
            if axis:
                widths[axis] = (0, edge - array.shape[axis])
            padded.append(np.pad(array, widths))
        return padded

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the model; raises `BatchFaultError` and MemoryError."""
        names = (tensor.info.name for tensor in self.graph.inputs)
        return list(map(np.asarray, self._run(dict(zip(names, arrays, strict=True)))))

    def runs(self, length: int) -> bool:
        """Whether the model takes that length; memory may end before it does."""
        try:
            self.shapes(length)
        except (BatchFaultError, MemoryError):
            return False
        return True

    def _shapes(self, length: int) -> list[tuple[int, ...]]:
        return [output.shape for output in self.run(self.rows(length))]

    def _generate(
        self, tensor: Tensor, axis: int, length: int, random: np.random.Generator
    ) -> Array:
        name, datatype = tensor.info.name.lower(), tensor.info.datatype
        shape = [1, *(dim if isinstance(dim, int) else _OTHER for dim in tensor.dims[1:])]
        if axis:
            shape[axis] = length
        kind = NUMPY_TYPES[datatype]
        if tensor.info.name in self._masks or "mask" in name:
            return np.ones(shape, kind)
        if datatype in _FLOATS:
            return random.normal(size=shape).astype(kind)
        if not axis and "len" in name:
            return np.full(shape, length, kind)
        if axis and "position" in name:
            along = [length if at == axis else 1 for at in range(len(shape))]
            return np.broadcast_to(np.arange(length).reshape(along), shape).astype(kind)
        low, high = (0, 2) if datatype == "BOOL" or "type" in name else (1, self.vocabulary)
        return random.integers(low, high, shape).astype(kind)


def _measure(trial: _Trial, padding: Padding) -> Ragged:
    low, high = _span(trial)
    cuts = tuple(_cut(trial, index, low, high) for index in range(len(trial.graph.outputs)))
    if padding.mode == "auto":
        for edge, lengths in ((high, (high, high - 1, (low + high) // 2, low)), (low, (low // 2,))):
            _compare(trial, cuts, edge, lengths, padding.tolerance)
    longest = _longest(trial, high)
    return Ragged(
        inputs=tuple(trial.axes), outputs=cuts, edges=first_edges(longest), longest=longest
    )


def _span(trial: _Trial) -> tuple[int, int]:
    """Return a short and a long length that the model takes, whatever its vocabulary."""
    for trial.vocabulary in _VOCABULARIES:
        for low, high in _SPANS:
            if trial.runs(low) and trial.runs(high):
                return low, high
        trial.shapes.cache_clear()
    raise _RefusedError("it does not run on generated inputs")


def _cut(trial: _Trial, index: int, low: int, high: int) -> Cut:
    """Measure how one output's shape follows the length."""
    name = trial.graph.outputs[index].info.name
    short, long = trial.shapes(low)[index], trial.shapes(high)[index]
    axes = [axis for axis, sizes in enumerate(zip(short, long, strict=True)) if len(set(sizes)) > 1]
    if not axes:
        return Cut()
    axis, grown = axes[0], long[axes[0]] - short[axes[0]]
    if len(axes) > 1 or not axis or grown < 0 or (high - low) % grown:
        raise _RefusedError(f"output '{name}' goes from {list(short)} to {list(long)}")
    stride = (high - low) // grown
    # The first length that gives one position more; between two lengths there is only one.
    at, beyond = 0, stride
    while beyond - at > 1:
        middle = (at + beyond) // 2
        is_more = trial.shapes(low + middle)[index][axis] > short[axis]
        at, beyond = (at, middle) if is_more else (middle, beyond)
    return Cut(axis, stride, (short[axis] + 1) * stride - low - beyond)


def _compare(
    trial: _Trial, cuts: Sequence[Cut], edge: int, lengths: Sequence[int], tolerance: float
) -> None:
    """Hold a padded batch against each of its rows alone."""
    rows = [trial.rows(length) for length in lengths]
    padded = [trial.pad(row, edge) for row in rows]
    batch = trial.run([np.concatenate(column) for column in zip(*padded, strict=True)])
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        outputs = zip(trial.graph.outputs, cuts, trial.run(row), batch, strict=True)
        for tensor, cut, alone, whole in outputs:
            part = whole[at : at + 1]
            if cut.axis:
                part = part.take(range(cut.length(length)), cut.axis)
            error = _relative_error(alone, part)
            if not error <= tolerance:
                raise _RefusedError(
                    f"padded from {length} to {edge}, output '{tensor.info.name}' differs by"
                    f" {error:.2g} of its scale, more than {tolerance:g} {_HINT}"
                )


def _relative_error(expected: Array, got: Array) -> float:
    """Return the largest difference, as a part of the largest value; infinite for other shapes."""
    if expected.shape != got.shape or expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    scale = float(np.max(np.abs(expected), initial=0.0))
    return float(np.max(np.abs(expected - got), initial=0.0)) / (scale or 1.0)


def _longest(trial: _Trial, length: int) -> int:
    """Return the longest length that was seen to run: doubled until it fails or takes too long."""
    ended_s = time.monotonic() + _SEARCH_S
    while length < _LONGEST:
        started_s = time.monotonic()
        if not trial.runs(2 * length):
            return length
        length *= 2
        now_s = time.monotonic()
        # Attention over twice the length takes up to four times as long.
        if now_s + 4 * (now_s - started_s) > ended_s:
            break
    return length
