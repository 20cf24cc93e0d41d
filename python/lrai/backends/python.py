"""Runs a user's `model.py`: custom models, and work before and after another model.

    INPUTS = [("x", "FP32", [-1, 4])]
    OUTPUTS = [("y", "FP32", [-1])]

    def load(context):            # optional; context.path, context.options, context.threads
        global weights
        weights = numpy.load(context.path / "weights.npy")

    def predict(inputs):          # {"x": read-only array} -> {"y": array}
        return {"y": inputs["x"] @ weights}

Arrays of inputs lie in shared memory and die with the batch: copy what you keep. BYTES are arrays
of `bytes`; BF16 shows as unsigned 16-bit numbers. `predict` may raise `ValueError` to refuse an
input; any other exception is the model's fault.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from lrai.backends.base import (
    Backend,
    BackendSpec,
    Batch,
    BatchFaultError,
    Place,
    declared_tensors,
    has_batch_dimension,
    optional_tensors,
)
from lrai.backends.tensors import NUMPY_TYPES, Array, read_inputs, write_outputs
from lrai.core.model import Signature, TensorInfo
from lrai.errors import ModelLoadError
from lrai.log import get_log

_FILE: Final = "model.py"

Predict = Callable[[Mapping[str, Array]], Mapping[str, Any]]


@dataclass(frozen=True)
class Context:
    """What `load` is given."""

    path: Path
    """The model's folder."""
    options: Mapping[str, str]
    """Parameters of the model's configuration."""
    threads: int
    """Processors that one batch may use."""


class PythonBackend(Backend):
    """A folder with a `model.py` that has `predict`, and `load` if it wants."""

    def __init__(self, spec: BackendSpec) -> None:
        """Import `model.py` and call its `load`."""
        # Forks must not draw the same numbers.
        np.random.seed()
        folder = Path(spec.path)
        module = _import_model(folder)
        self._predict: Predict = module.predict
        inputs, outputs = (
            optional_tensors(spec.options, kind.lower())
            or declared_tensors(getattr(module, kind, None), f"{kind} of {folder / _FILE}")
            for kind in ("INPUTS", "OUTPUTS")
        )
        if load := getattr(module, "load", None):
            load(Context(folder, dict(spec.options), spec.threads))
        self.signature = Signature(
            platform="python",
            inputs=inputs,
            outputs=outputs,
            batchable=has_batch_dimension(inputs + outputs),
        )
        self._has_warned = False

    def run(self, batch: Batch) -> list[Place]:
        """Call `predict` on views of the batch and copy what it returns."""
        views = read_inputs(self.slabs, batch, self.signature.inputs)
        before = _references(views)
        try:
            answer = self._predict(dict(views))
        except ValueError as error:
            raise BatchFaultError(str(error) or "predict refused the input", code=1) from error
        except MemoryError:
            raise
        except Exception as error:
            raise BatchFaultError(f"predict raised {type(error).__name__}: {error}") from error
        first, outputs = batch.inputs[0], self.signature.outputs
        rows = first[2][0] if first and self.signature.batchable else None
        arrays = (_checked(answer, tensor, rows) for tensor in outputs)
        places = write_outputs(self.slabs, batch, outputs, arrays)
        del answer
        self._warn_of_kept_views(before, _references(views))
        return places

    def _warn_of_kept_views(self, before: list[int], after: list[int]) -> None:
        if after > before and not self._has_warned:
            self._has_warned = True
            get_log("backends").warning(
                "view_kept",
                "predict kept an input after it returned; it will show other requests' data "
                "hint: keep inputs[...].copy()",
            )


def _checked(answer: object, tensor: TensorInfo, rows: int | None) -> Array:
    """Return one output as an array of the declared type and shape; `rows` if they are shared."""
    if not isinstance(answer, Mapping) or tensor.name not in answer:
        names = sorted(answer) if isinstance(answer, Mapping) else type(answer).__name__
        raise BatchFaultError(f"predict returned {names}, the output '{tensor.name}' is missing")
    try:
        array = np.asarray(answer[tensor.name], NUMPY_TYPES[tensor.datatype])
    except (TypeError, ValueError) as error:
        raise BatchFaultError(f"predict's '{tensor.name}' is no array: {error}") from error
    if rows is not None:
        tensor = replace(tensor, shape=(rows, *tensor.shape[1:]))
    if not tensor.fits(array.shape):
        have, want = list(array.shape), list(tensor.shape)
        raise BatchFaultError(f"predict's '{tensor.name}' has shape {have}, expected is {want}")
    return array


def _references(views: Mapping[str, Array]) -> list[int]:
    """Count who holds each input; slices and reshapes of a view hold its base."""
    return [sys.getrefcount(held) for name in views for held in (views[name], views[name].base)]


def _import_model(folder: Path) -> ModuleType:
    """Import `model.py`; its folder comes first on the path, so that it can have helpers."""
    if not (folder / _FILE).is_file():
        raise ModelLoadError(
            f"{folder / _FILE} does not exist",
            hint="a model of the python backend is a folder with model.py",
        )
    sys.path.insert(0, str(folder))
    sys.modules.pop("model", None)
    importlib.invalidate_caches()
    module = importlib.import_module("model")
    if not callable(getattr(module, "predict", None)):
        raise ModelLoadError(
            f"{folder / _FILE} has no function predict", hint="define def predict(inputs): ..."
        )
    return module
