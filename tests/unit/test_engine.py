"""`lrai.Engine` answers like onnxruntime, in the caller's process."""

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lrai import Engine
from lrai.errors import InferenceError, InvalidInputError, ModelLoadError
from lrai.testing.models import identity, mlp, sum_and_difference


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mlp(tmp_path_factory.mktemp("engine") / "mlp.onnx")


def rows(count: int) -> Any:
    return np.random.default_rng(count).normal(size=(count, 30)).astype(np.float32)


def test_answers_are_onnxruntimes_for_any_number_of_rows(model: Path) -> None:
    session = onnxruntime.InferenceSession(model)
    with Engine(model, threads=1) as engine:
        for count in (1, 2, 700, 1, 0):
            x = rows(count)
            result = engine.predict({"x": x})
            expected = session.run(None, {"x": x})[0]
            np.testing.assert_allclose(result.outputs["y"], expected, atol=1e-6)
            assert result.latency_ms > 0


def test_copies_outlive_the_next_prediction_and_views_do_not(model: Path) -> None:
    with Engine(model, threads=1) as engine:
        first = engine.predict(rows(1)).outputs["y"]
        kept = first.copy()
        view = engine.predict(rows(1), copy=False).outputs["y"]
        assert not view.flags.writeable
        engine.predict(rows(1) * 3)
        np.testing.assert_array_equal(first, kept)
        assert not np.array_equal(view, kept)


async def test_async_predictions_leave_the_event_loop_free(model: Path) -> None:
    with Engine(model, threads=1) as engine:
        answers = await asyncio.gather(*(engine.predict_async(rows(n)) for n in (1, 2, 3)))
        assert [answer.outputs["y"].shape for answer in answers] == [(1, 2), (2, 2), (3, 2)]


def test_a_missed_target_calls_back_and_is_counted(model: Path) -> None:
    late = []
    with Engine(model, target_latency_ms=0.0, on_violation=late.append) as engine:
        results = [engine.predict(rows(1)) for _ in range(3)]
        assert late == results
        stats = engine.stats()
    assert (stats.count, stats.violations) == (3, 3)
    assert 0 < stats.p50_ms <= stats.p99_ms <= stats.max_ms


def test_stats_before_the_first_prediction_are_zeros(model: Path) -> None:
    with Engine(model) as engine:
        assert engine.stats().count == 0


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.ones((1, 30), np.float32), "z": 1}, "no input 'z'"),
        (np.ones((1, 29), np.float32), r"\[-1, 30\], and \[1, 29\]"),
        (np.ones((30,), np.float32), r"and \[30\] was given"),
        (np.full((1, 30), "a"), "is FP32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(model: Path, inputs: Any, text: str) -> None:
    with Engine(model) as engine, pytest.raises(InvalidInputError, match=text):
        engine.predict(inputs)


def test_several_inputs_need_names(tmp_path: Path) -> None:
    x = np.arange(16, dtype=np.int32).reshape(1, 16)
    with Engine(sum_and_difference(tmp_path / "simple.onnx")) as engine:
        outputs = engine.predict({"INPUT0": x, "INPUT1": x + 1}).outputs
        np.testing.assert_array_equal(outputs["OUTPUT0"], 2 * x + 1)
        np.testing.assert_array_equal(outputs["OUTPUT1"], np.full_like(x, -1))
        with pytest.raises(InvalidInputError, match="2 inputs"):
            engine.predict(x)


def test_strings_go_through(tmp_path: Path) -> None:
    with Engine(identity(tmp_path / "text.onnx", "BYTES", ["N"])) as engine:
        outputs = engine.predict(["a", "été", ""]).outputs["y"]
        assert list(outputs) == [b"a", "été".encode(), b""]


def test_a_broken_file_is_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelLoadError, match=r"broken\.onnx"):
        Engine(broken)


def test_a_python_model_that_raises_is_an_inference_error(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        'INPUTS = [("x", "FP32", [-1])]\nOUTPUTS = [("y", "FP32", [-1])]\n'
        "def load(context):\n    pass\n"
        'def predict(inputs):\n    return {"y": 1 / inputs["x"][0] if 0 else 1 // 0}\n'
    )
    with Engine(tmp_path) as engine, pytest.raises(InferenceError, match="division"):
        engine.predict(np.ones(1, np.float32))


def test_pinned_threads_stay_on_one_processor(model: Path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        with Engine(model, threads=1, pin_threads=True) as engine:
            engine.predict(rows(1))
            assert os.sched_getaffinity(0) == {min(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)
