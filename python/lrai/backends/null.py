"""A backend without an engine: copies its inputs to its outputs, for tests and benchmarks."""

import time
from typing import Final

from lrai.backends.base import (
    Backend,
    BackendSpec,
    Batch,
    Place,
    has_batch_dimension,
    optional_tensors,
)
from lrai.backends.tensors import read_inputs, write_outputs
from lrai.core.model import Signature, TensorInfo
from lrai.errors import ModelLoadError

_DEFAULT: Final = (TensorInfo("input", "FP32", (-1, 4)),)


class NullBackend(Backend):
    """Output i is a copy of input i, under the name `<input>_copy`.

    Options: `inputs`, a JSON list of `[name, datatype, shape]`; `delay_ms`, how long a batch takes.
    """

    def __init__(self, spec: BackendSpec) -> None:
        """Declare the tensors that the options name, or one FP32 input of four columns."""
        inputs = optional_tensors(spec.options, "inputs") or _DEFAULT
        try:
            self._delay_s = float(spec.options.get("delay_ms", "0")) / 1000
        except ValueError as error:
            raise ModelLoadError(f"delay_ms is no number: {error}") from error
        self.signature = Signature(
            platform="null",
            inputs=inputs,
            outputs=tuple(TensorInfo(f"{t.name}_copy", t.datatype, t.shape) for t in inputs),
            batchable=has_batch_dimension(inputs),
        )

    def run(self, batch: Batch) -> list[Place]:
        """Wait `delay_ms`, then copy."""
        if self._delay_s:
            time.sleep(self._delay_s)
        inputs = read_inputs(self.slabs, batch, self.signature.inputs)
        return write_outputs(self.slabs, batch, self.signature.outputs, inputs.values())
