"""Turns what a person has (JSON, .npy, an image) into tensors, and tensors into what one reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from lrai.backends.tensors import NUMPY_TYPES, Array, join_strings, view
from lrai.errors import ConfigError, UnsupportedError

# BF16 is shown and given as FP32, and cut to its upper half on the wire.
_NUMPY_TYPES: Final = {**NUMPY_TYPES, "BF16": np.dtype(np.float32)}
_IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_CHANNELS: Final = (1, 3, 4)
_IMAGE_RANK: Final = 3


def read_array(value: str, datatype: str, shape: Sequence[int]) -> Array:
    """Read a value of the command line as a tensor that fits the model's shape."""
    suffix = Path(value).suffix.lower()
    try:
        if suffix in _IMAGES:
            array = _read_image(Path(value), datatype, shape)
        elif suffix == ".npy":
            array = np.load(value, allow_pickle=False)
        else:
            text = Path(value).read_text(encoding="utf-8") if suffix == ".json" else value
            array = _from_values(json.loads(text), datatype)
    except OSError as error:
        raise ConfigError(f"{value} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        message = f"the input {value!r} is no {datatype} tensor: {error}"
        raise ConfigError(message, hint="write JSON such as [[1, 2]], or name a file") from error
    if array.ndim == len(shape) - 1:
        array = array[np.newaxis]
    return array.astype(_NUMPY_TYPES[datatype], copy=False)


def encode_tensor(array: Array, datatype: str) -> bytes:
    """Return the tensor's bytes as the binary tensor extension wants them."""
    if datatype == "BYTES":
        return join_strings(array)
    if datatype == "BF16":
        return (array.astype("<f4").reshape(-1).view("<u4") >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(array).tobytes()


def decode_tensor(data: bytes | Sequence[Any], datatype: str, shape: Sequence[int]) -> Array:
    """Read a tensor from the bytes, or from the JSON values, of an answer."""
    if not isinstance(data, bytes):
        return _from_values(data, datatype).reshape(shape)
    array = view(memoryview(data), (0, len(data), tuple(shape)), datatype)
    return (array.astype("<u4") << 16).view("<f4") if datatype == "BF16" else array


def zeros(datatype: str, shape: Sequence[int]) -> Array:
    """Return a tensor of zeros."""
    return np.zeros(shape, _NUMPY_TYPES[datatype])


def plain_values(array: Array) -> list[Any]:
    """Return flat values that JSON can carry; bytes that are no text are shown with escapes."""
    return [
        value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        for value in array.reshape(-1).tolist()
    ]


def _from_values(values: Any, datatype: str) -> Array:
    return np.asarray(values, dtype=_NUMPY_TYPES[datatype])


def _read_image(file: Path, datatype: str, shape: Sequence[int]) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError("images need Pillow", hint="pip install pillow") from error
    dims = list(shape[-_IMAGE_RANK:])
    if len(dims) < _IMAGE_RANK:
        raise ValueError(f"the model wants {list(shape)}, which is no image")
    is_channels_first = dims[0] in _CHANNELS or dims[-1] not in _CHANNELS
    channels, height, width = dims if is_channels_first else (dims[2], dims[0], dims[1])
    with Image.open(file) as picture:
        image = picture.convert({1: "L", 4: "RGBA"}.get(channels, "RGB"))
        size = (width if width > 0 else image.width, height if height > 0 else image.height)
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    pixels = pixels.reshape(size[1], size[0], -1)
    if is_channels_first:
        pixels = pixels.transpose(2, 0, 1)
    return pixels / np.float32(255) if datatype in ("FP16", "BF16", "FP32", "FP64") else pixels
