"""An inference server for ONNX models, and the same engine inside your own process.

>>> from lrai import Engine
>>> engine = Engine("model.onnx")

Importing `lrai` is cheap: what it offers is loaded at first use.
"""

import sys

if sys.platform != "linux":
    raise ImportError(f"lrai runs on Linux only, and this is {sys.platform} hint: use a container")
if sys.version_info < (3, 11):
    found = ".".join(map(str, sys.version_info[:2]))
    raise ImportError(f"lrai needs Python 3.11 or newer, and this is {found}")

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrai._native import __version__
    from lrai.engine import Engine
    from lrai.errors import LraiError

__all__ = ["Engine", "LraiError", "__version__"]

_PLACES = {"Engine": "lrai.engine", "LraiError": "lrai.errors", "__version__": "lrai._native"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'lrai' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
