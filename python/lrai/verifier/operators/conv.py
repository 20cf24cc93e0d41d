"""Convolution of any number of spatial axes."""

import math
from dataclasses import dataclass

import numpy as np

from lrai.verifier.operators.base import Array, Linear


@dataclass(frozen=True)
class Window:
    """How a window moves over the spatial axes; one entry per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    """Padding before the first element."""
    end: tuple[int, ...]

    def output(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of positions on each axis of an input of that spatial shape."""
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        room = [n + b + e for n, b, e in zip(shape, self.begin, self.end, strict=True)]
        return tuple((n - r) // s + 1 for n, r, s in zip(room, reach, self.strides, strict=True))

    def slices(self, offset: tuple[int, ...], output: tuple[int, ...]) -> tuple[slice, ...]:
        """Where the kernel's element at `offset` reads the padded input."""
        starts = [k * d for k, d in zip(offset, self.dilations, strict=True)]
        return tuple(
            slice(start, start + stride * (size - 1) + 1, stride)
            for start, stride, size in zip(starts, self.strides, output, strict=True)
        )


class Conv(Linear):
    """y = conv(x, weights) + bias, by direct summation in any order (not Winograd or FFT)."""

    def __init__(
        self, weights: Array, bias: Array, shape: tuple[int, ...], window: Window, groups: int
    ) -> None:
        """Take weights `(O, C / groups, *kernel)`, a bias `(O,)`, the shape `(N, C, *spatial)`."""
        outputs = weights.shape[0] // groups
        self._weights = weights.reshape(groups, outputs, *weights.shape[1:])
        self._sizes = np.abs(self._weights)
        self._batch, self._shape = shape[0], shape[1:]
        self._window, self._groups = window, groups
        self.output = window.output(shape[2:])
        self._places = math.prod(self.output)
        self.bias = np.tile(np.repeat(bias, self._places), self._batch)
        # Eight more than the sum: runtimes fold a following BatchNormalization into the weights.
        self.terms = int(np.prod(weights.shape[1:])) + 8

    def map(self, *values: Array) -> Array:
        """See Linear."""
        return self._gather(values[0], self._weights)

    def spread(self, *radii: Array) -> Array:
        """See Linear."""
        return self._gather(radii[0], self._sizes)

    def transpose(self, rows: Array) -> tuple[Array, ...]:
        """See Linear."""
        count, window = len(rows) * self._batch, self._window
        shaped = rows.reshape(count, self._groups, self._weights.shape[1], self._places)
        padded = np.zeros((count, *self._padded()))
        part = (count, self._shape[0], *self.output)
        taps = self._weights.reshape(*self._weights.shape[:3], -1)
        for index, offset in enumerate(np.ndindex(*window.kernel)):
            weights = np.swapaxes(taps[..., index], 1, 2)
            places = (slice(None), slice(None), *window.slices(offset, self.output))
            padded[places] += np.matmul(weights, shaped).reshape(part)
        inside = padded[(slice(None), slice(None), *self._inside())]
        return (inside.reshape(len(rows), self._batch * math.prod(self._shape)),)

    def _gather(self, values: Array, weights: Array) -> Array:
        count, window = len(values) * self._batch, self._window
        padded = np.zeros((count, *self._padded()))
        inside = (slice(None), slice(None), *self._inside())
        padded[inside] = values.reshape(count, *self._shape)
        part = (count, self._groups, weights.shape[2], self._places)
        total = np.zeros((count, self._groups, weights.shape[1], self._places))
        taps = weights.reshape(*weights.shape[:3], -1)
        for index, offset in enumerate(np.ndindex(*window.kernel)):
            places = (slice(None), slice(None), *window.slices(offset, self.output))
            total += np.matmul(taps[..., index], padded[places].reshape(part))
        return total.reshape(len(values), self.bias.size)

    def _padded(self) -> tuple[int, ...]:
        spatial = zip(self._shape[1:], self._window.begin, self._window.end, strict=True)
        return (self._shape[0], *(size + begin + end for size, begin, end in spatial))

    def _inside(self) -> tuple[slice, ...]:
        spatial = zip(self._shape[1:], self._window.begin, strict=True)
        return tuple(slice(begin, begin + size) for size, begin in spatial)
