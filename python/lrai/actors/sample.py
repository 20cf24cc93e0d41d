"""A small summary of a batch's outputs, for whoever watches the model from outside."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lrai.backends.base import Place
from lrai.backends.tensors import view
from lrai.core.model import Signature

# Enough for a mean, and never more than some 30 microseconds of a batch.
_MAX_ELEMENTS = 4096
_SILENT = ("BYTES", "BF16")


def summarise(signature: Signature, slot: memoryview, places: Sequence[Place]) -> dict[str, Any]:
    """Return mean, minimum, maximum and number of NaN of each numeric output's first elements."""
    outputs = []
    for tensor, place in zip(signature.outputs, places, strict=True):
        if tensor.datatype in _SILENT or not place[1]:
            continue
        values = view(slot, place, tensor.datatype).reshape(-1)[:_MAX_ELEMENTS].astype(np.float64)
        finite = values[np.isfinite(values)]
        outputs.append(
            {
                "name": tensor.name,
                "rows": place[2][0] if place[2] else 1,
                "nan": int(np.count_nonzero(np.isnan(values))),
                "mean": float(np.add.reduce(finite)) / finite.size if finite.size else None,
                "min": float(np.minimum.reduce(finite)) if finite.size else None,
                "max": float(np.maximum.reduce(finite)) if finite.size else None,
            }
        )
    return {"outputs": outputs}
