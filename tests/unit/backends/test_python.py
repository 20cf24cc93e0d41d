"""A user's model.py: what it may do, and what it is told when it does not."""

import json
import logging

import numpy as np
import pytest

from lrai.backends.base import BackendSpec, BatchFaultError
from lrai.backends.python import PythonBackend
from lrai.errors import ModelLoadError

DECLARED = "INPUTS = [('x', 'FP32', [-1, 2])]\nOUTPUTS = [('y', 'FP32', [-1, 2])]\n"
ROWS = np.arange(4, dtype=np.float32).reshape(2, 2)


@pytest.fixture
def model(tmp_path, runner):
    def model(text, declared=DECLARED, **options):
        (tmp_path / "model.py").write_text(declared + text)
        return runner(PythonBackend(BackendSpec(str(tmp_path), options=options)))

    return model


def test_load_sees_the_folder_and_the_options(model, tmp_path):
    (tmp_path / "factor.txt").write_text("3")
    text = (
        "def load(context):\n"
        "    global factor\n"
        "    factor = float((context.path / 'factor.txt').read_text())\n"
        "    factor *= float(context.options['more'])\n"
        "def predict(inputs):\n"
        "    return {'y': inputs['x'] * factor}\n"
    )
    (y,) = model(text, more="2").run(ROWS)
    assert (y == ROWS * 6).all()


def test_the_configuration_may_declare_the_tensors(model):
    tensors = {
        "inputs": json.dumps([["a", "INT64", [-1]]]),
        "outputs": json.dumps([["b", "INT64", [-1]]]),
    }
    backend = model("def predict(inputs): return {'b': inputs['a'] + 1}", declared="", **tensors)
    assert backend.run(np.array([1, 2]))[0].tolist() == [2, 3]


def test_helpers_beside_the_model_can_be_imported(model, tmp_path):
    (tmp_path / "helper_of_test.py").write_text("def twice(x): return x * 2")
    text = "from helper_of_test import twice\ndef predict(inputs): return {'y': twice(inputs['x'])}"
    assert (model(text).run(ROWS)[0] == ROWS * 2).all()


def test_inputs_are_read_only_views(model):
    backend = model("def predict(inputs):\n    inputs['x'][0] = 1\n    return {'y': inputs['x']}")
    with pytest.raises(BatchFaultError, match="read-only"):
        backend.run(ROWS)


def test_a_view_that_is_kept_is_warned_of_once(model, caplog):
    backend = model(
        "kept = []\ndef predict(inputs):\n    kept.append(inputs['x'][0])\n    return {'y': inputs['x']}"
    )
    with caplog.at_level(logging.WARNING):
        backend.run(ROWS)
        backend.run(ROWS)
    assert caplog.text.count("predict kept an input after it returned") == 1


def test_a_copy_or_an_answer_that_is_the_input_is_no_kept_view(model, caplog):
    backend = model(
        "kept = []\ndef predict(inputs):\n    kept.append(inputs['x'].copy())\n    return inputs | {'y': inputs['x']}"
    )
    with caplog.at_level(logging.WARNING):
        backend.run(ROWS)
    assert "kept" not in caplog.text


@pytest.mark.parametrize(
    ("predict", "message", "code"),
    [
        ("raise ValueError('too cold')", "^too cold$", 1),
        ("raise KeyError('y')", "predict raised KeyError: 'y'", 0),
        ("return None", "predict returned NoneType, the output 'y' is missing", 0),
        ("return {'z': 1}", r"predict returned \['z'\], the output 'y' is missing", 0),
        ("return {'y': inputs['x'][:1]}", r"shape \[1, 2\], expected is \[2, 2\]", 0),
        ("return {'y': 'text'}", "predict's 'y' is no array", 0),
    ],
)
def test_what_is_wrong_with_an_answer_is_told(model, predict, message, code):
    with pytest.raises(BatchFaultError, match=message) as fault:
        model(f"def predict(inputs): {predict}").run(ROWS)
    assert fault.value.code == code


def test_running_out_of_memory_is_no_batch_fault(model):
    with pytest.raises(MemoryError):
        model("def predict(inputs): raise MemoryError").run(ROWS)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("", "INPUTS of .* declares no tensors"),
        ("INPUTS = [('x', 'FLOAT', [1])]", "gives 'x' the datatype 'FLOAT' hint: the datatypes"),
        ("INPUTS = [('x', 'FP32')]", "declares no tensor"),
    ],
)
def test_a_model_that_declares_no_tensors_is_refused(model, declared, message):
    with pytest.raises(ModelLoadError, match=message):
        model("\ndef predict(inputs): return {}", declared=declared)


def test_a_model_without_predict_is_refused(model):
    with pytest.raises(ModelLoadError, match="has no function predict hint: define"):
        model("")


def test_strings_are_bytes_in_and_text_or_bytes_out(model):
    declared = "INPUTS = [('x', 'BYTES', [-1])]\nOUTPUTS = [('y', 'BYTES', [-1])]\n"
    text = "def predict(inputs): return {'y': [inputs['x'][0].decode().upper(), inputs['x'][1]]}"
    assert model(text, declared).run(np.array([b"a", b"\xff"], object)) == [[b"A", b"\xff"]]
