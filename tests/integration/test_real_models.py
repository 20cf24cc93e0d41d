"""Trained models that arrive with a package: served, and compared with onnxruntime in this process."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton

from lrai.testing import start_server

EXAMPLE = Path(__file__).parents[2] / "examples/ocr.py"
PACKAGES = {"rapidocr": ("models", 3), "silero_vad": ("data", 6)}
IMAGES = {
    "PP-OCRv6_det_small": [(1, 3, 64, 96), (2, 3, 128, 64), (1, 3, 160, 320)],
    "PP-OCRv6_rec_small": [(1, 3, 48, 32), (3, 3, 48, 104), (1, 3, 48, 320)],
    "ch_ppocr_mobile_v2.0_cls_mobile": [(1, 3, 48, 192), (5, 3, 48, 192), (2, 3, 32, 64)],
}
# Samples of sound per row, rows, and the rate where the model asks for it.
SOUNDS = {
    "silero_vad": [(512, 1, 16000), (512, 3, 16000), (256, 2, 8000), (576, 1, 16000)],
    "silero_vad_16k_op15": [(512, 1, 16000), (576, 4, 16000)],
    "silero_vad_half": [(512, 1, None), (512, 3, None)],
    "silero_vad_op18_ifless": [(512, 1, 16000), (512, 2, 16000), (256, 3, 8000)],
    "silero_vad_openvino_16k": [(576, 1, None)],
    "silero_vad_16k_sequence": [(576, 1, None), (576, 20, None)],
}
CASES = [
    (name, case) for table in (IMAGES, SOUNDS) for name, cases in table.items() for case in cases
]


def installed(package):
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0], PACKAGES[package][0])
    return sorted(folder.glob("*.onnx"))


FILES = {file.stem: file for package in PACKAGES for file in installed(package)}


def feeds(name, case):
    """Seeded inputs of the model for one case."""
    random = np.random.default_rng(7)
    if name in IMAGES:
        return {"x": random.uniform(-1, 1, case).astype(np.float32)}
    samples, rows, rate = case
    sound = (0.3 * np.sin(np.arange(rows * samples) / 9)).reshape(rows, samples)
    inputs = {"input": (sound + random.normal(0, 0.05, sound.shape)).astype(np.float32)}
    if name == "silero_vad_16k_sequence":
        return inputs | {key: np.zeros((1, 1, 128), np.float32) for key in "hc"}
    inputs["state"] = random.normal(0, 0.1, (2, rows, 128)).astype(np.float32)
    return inputs if rate is None else inputs | {"sr": np.array(rate, np.int64)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    for package, (_, count) in PACKAGES.items():
        if len(installed(package)) < count:
            pytest.skip(f"{package} is not installed (pip install --no-deps {package})")
    folder = tmp_path_factory.mktemp("real")
    for name, file in FILES.items():
        (folder / f"{name}.onnx").symlink_to(file)
    with start_server(folder, "--threads=1") as server:
        assert not server.events("model_failed")
        yield server


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def session():
    """`session(name)` is the same model in this process; the last one is kept."""
    kept = {}

    def find(name):
        if name not in kept:
            kept.clear()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            kept[name] = onnxruntime.InferenceSession(FILES[name], options)
        return kept[name]

    return find


@pytest.mark.parametrize(("name", "case"), CASES, ids=str)
def test_a_real_model_answers_as_it_does_in_this_process(client, session, name, case):
    inputs = feeds(name, case)
    tensors = [
        triton.InferInput(key, list(array.shape), "INT64" if key == "sr" else "FP32")
        for key, array in inputs.items()
    ]
    for tensor, array in zip(tensors, inputs.values(), strict=True):
        tensor.set_data_from_numpy(array)
    answer = client.infer(name, tensors)
    model = session(name)
    for output, expected in zip(model.get_outputs(), model.run(None, inputs), strict=True):
        np.testing.assert_allclose(answer.as_numpy(output.name), expected, rtol=1e-5, atol=1e-5)


def test_every_file_of_the_packages_has_a_case(server):
    assert set(FILES) == {name for name, _ in CASES}


def test_a_scalar_rate_and_a_batch_in_the_second_dimension_are_told(client):
    metadata = client.get_model_metadata("silero_vad", as_json=True)
    shapes = {tensor["name"]: tensor.get("shape", []) for tensor in metadata["inputs"]}
    assert shapes == {"input": ["-1", "-1"], "state": ["2", "-1", "128"], "sr": []}


def test_an_old_opset_is_served_with_a_note(server):
    notes = [event["message"] for event in server.events("model_note")]
    assert any("PP-OCRv6_det_small" in note and "opset 11" in note for note in notes)


def test_the_example_reads_the_words_of_a_picture(server):
    command = [sys.executable, str(EXAMPLE), server.http]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert answer.stdout.splitlines() == [
        "lrai serve model.onnx",
        "Every answer counts",
        "2026 requests per second",
    ], answer.stderr
