import numpy as np

from lrai.actors.sample import summarise
from lrai.core.model import Signature, TensorInfo


def test_a_summary_leaves_out_what_is_no_number():
    outputs = (
        TensorInfo("score", "FP32", (-1, 2)),
        TensorInfo("word", "BYTES", (-1,)),
        TensorInfo("empty", "FP32", (0,)),
        TensorInfo("broken", "FP32", (1,)),
    )
    values = np.array([1, np.nan, np.inf, 3], np.float32)
    slot = memoryview(values.tobytes() + b"\1\0\0\0a")
    places = [(0, 16, (2, 2)), (16, 5, (1,)), (0, 0, (0,)), (4, 4, (1,))]
    score, broken = summarise(Signature("p", (), outputs, True), slot, places)["outputs"]
    assert score == {"name": "score", "rows": 2, "nan": 1, "mean": 2.0, "min": 1.0, "max": 3.0}
    assert broken["nan"] == 1
    assert broken["mean"] is None
