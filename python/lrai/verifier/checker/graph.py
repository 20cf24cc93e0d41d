"""What the checker makes of a network: linear maps with bounded noise, and maxima with zero.

Every scalar has a slot, a number; to move data is to move slots. Slot 0 holds one, and the inputs
follow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Slots = NDArray[np.intp]
Map = Callable[[Array], Array]
ONE: Final = 0
_ROUNDINGS: Final = 10
"""Of a term beyond those of its sum; runtimes may fold some factors into weights."""


class RefusedError(Exception):
    """Why something is not accepted, in a sentence."""


@dataclass(frozen=True)
class Linear:
    """`out = map(in)`, up to roundings and noise; a bias is the weight of the slot of one."""

    out: slice
    inputs: Slots | slice
    """In ascending order, each once."""
    map: Map
    sizes: Map
    """By the sums of the absolute values of what makes up an element of the matrix."""
    back: Map
    """By the transposed matrix."""
    terms: int
    """Roundings on the way of one term when deployed; 0: computed without any."""
    noise: Array
    """An unknown value of at most this size is added."""
    elements: Array
    """`(3, E)`: rows, slots and weights of its matrix."""


@dataclass(frozen=True)
class Relu:
    """`out = max(in, 0)`."""

    out: slice
    inputs: slice
    neurons: slice
    """Their numbers among the neurons of the models' Relu nodes; empty for other Relus."""


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input."""

    slots: Slots
    is_quantised: bool = False


@dataclass
class Graph:
    """Operations in topological order; they grow as models are read."""

    inputs: int
    hidden: list[int] = field(default_factory=list)
    """Slots of the inputs of hidden neurons."""
    operations: list[Linear | Relu] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with the slots of one and of the inputs."""
        self.slots = ONE + 1 + self.inputs

    def new(self, shape: tuple[int, ...]) -> Value:
        """Slots for new values."""
        first, self.slots = self.slots, self.slots + int(np.prod(shape))
        return Value(np.arange(first, self.slots).reshape(shape))

    def linear(
        self, elements: Any, shape: tuple[int, ...], *, rounds: bool = False, noise: Any = 0.0
    ) -> Value:
        """Append a map, given by the elements of its matrix: output, slot and weight of each."""
        matrix = np.stack([np.ravel(part) for part in elements])
        if not np.isfinite(matrix).all():
            raise RefusedError("the model has weights that are not finite")
        is_one, last = matrix[1] == ONE, self.operations[-1] if self.operations else None
        if isinstance(last, Linear) and last.terms and rounds:
            before = np.arange(self.slots)[last.out]
            if np.array_equal(
                matrix[:, ~is_one], [before - before[0], before, np.ones(len(before))]
            ):
                # A bias behind a sum belongs to it; what else uses the sum finds it as it was.
                matrix = np.append(last.elements, matrix[:, is_one], axis=1)
        matrix = matrix[:, matrix[2] != 0]
        weights, (rows, slots) = matrix[2], matrix[:2].astype(np.intp)
        inputs, columns = np.unique(slots, return_inverse=True)
        noise, out = np.broadcast_to(noise, shape).ravel(), self.new(shape)
        ahead = rows, columns, noise.size, inputs.size
        back = _matrix(weights, columns, rows, inputs.size, noise.size)
        maps = _matrix(weights, *ahead), _matrix(np.abs(weights), *ahead), back
        terms = (_ROUNDINGS + int(np.bincount(rows, minlength=1).max())) * rounds
        made = Linear(_run(out.slots), _run(inputs), *maps, terms, noise, matrix)
        self.operations.append(made)
        return out

    def combine(self, *parts: tuple[Any, Any], rounds: bool = False, noise: Any = 0.0) -> Value:
        """The sum of `factor * value`, element by element; a value may be an array of constants."""
        pairs = [(f, x.slots) if isinstance(x, Value) else (f * x, ONE) for f, x in parts]
        flat = np.broadcast_arrays(*(one for pair in pairs for one in pair))
        weights, slots, shape = np.stack(flat[::2]), np.stack(flat[1::2]), flat[0].shape
        rows = np.broadcast_to(np.arange(flat[0].size).reshape(shape), weights.shape)
        return self.linear((rows, slots, weights), shape, rounds=rounds, noise=noise)

    def relu(self, x: Value, is_hidden: bool = False) -> Value:
        """Append max(x, 0)."""
        x = x if isinstance(_run(x.slots), slice) else self.combine((1.0, x))
        inputs, out, first = _run(x.slots), self.new(x.slots.shape), len(self.hidden)
        self.hidden += range(inputs.start, inputs.stop if is_hidden else inputs.start)
        self.operations.append(Relu(_run(out.slots), inputs, slice(first, len(self.hidden))))
        return out

    def limit(self, x: Value, bound: Any, sign: float) -> Value:
        """max(x, bound) for the sign 1, min(x, bound) for -1."""
        beyond = self.relu(self.combine((sign, x), (-sign, bound)))
        return self.combine((1.0, bound), (sign, beyond))


def _run(slots: Slots) -> Any:
    """The slots, flat; as a slice, which is faster, where they follow each other."""
    flat = slots.ravel()
    is_run = flat.size > 0 and np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size))
    return slice(int(flat[0]), int(flat[-1]) + 1) if is_run else flat


def _matrix(values: Array, rows: Slots, columns: Slots, height: int, width: int) -> Map:
    """The product of a matrix, given by its elements, with each row of an array."""
    if 8 * values.size >= height * width:
        dense = np.zeros((width, height))
        np.add.at(dense, (columns, rows), values)
        return lambda x: x @ dense
    # Each row needs an element where sums of runs are taken.
    empty = np.setdiff1d(np.arange(height), rows)
    rows, columns = np.append(rows, empty), np.append(columns, 0 * empty)
    values, order = np.append(values, 0.0 * empty), np.argsort(rows, kind="stable")
    values, columns = values[order], columns[order]
    starts = np.searchsorted(rows[order], np.arange(height))
    return lambda x: np.add.reduceat(x[:, columns] * values, starts, axis=1)
