import numpy as np

from lrai.monitor.sample import summarise


def test_a_summary_leaves_out_what_is_no_number():
    values = np.array([1, np.nan, np.inf, 3], np.float32)
    outputs = [
        ("score", values.reshape(2, 2)),
        ("empty", np.empty((0,), np.float32)),
        ("broken", np.array(np.nan, np.float32)),
    ]
    score, broken = summarise(outputs)["outputs"]
    assert score == {"name": "score", "rows": 2, "nan": 1, "mean": 2.0, "min": 1.0, "max": 3.0}
    assert (broken["rows"], broken["nan"], broken["mean"]) == (1, 1, None)
