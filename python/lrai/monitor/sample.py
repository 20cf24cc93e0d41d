"""A small summary of a batch's outputs, for whoever watches the model from outside."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Enough for a mean, and never more than some 30 microseconds of a batch.
_MAX_ELEMENTS = 4096


def summarise(outputs: Iterable[tuple[str, NDArray[Any]]]) -> dict[str, Any]:
    """Return mean, minimum, maximum and number of NaN of each numeric output's first elements."""
    return {"outputs": [_summary(name, array) for name, array in outputs if array.size]}


def _summary(name: str, array: NDArray[Any]) -> dict[str, Any]:
    values = array.reshape(-1)[:_MAX_ELEMENTS].astype(np.float64)
    finite = values[np.isfinite(values)]
    return {
        "name": name,
        "rows": array.shape[0] if array.ndim else 1,
        "nan": int(np.count_nonzero(np.isnan(values))),
        "mean": float(np.add.reduce(finite)) / finite.size if finite.size else None,
        "min": float(np.minimum.reduce(finite)) if finite.size else None,
        "max": float(np.maximum.reduce(finite)) if finite.size else None,
    }
