import json
from dataclasses import asdict

from lrai.core.model import Signature, TensorInfo
from lrai.core.plain import from_plain

SIGNATURE = Signature(
    platform="onnxruntime_onnx",
    inputs=(TensorInfo("x", "FP32", (-1, 4)), TensorInfo("scale", "FP32", (1,), optional=True)),
    outputs=(TensorInfo("y", "INT64", (-1,), labels=("no", "yes")),),
    batchable=False,
    notes=("opset 11 is old",),
)


def test_signature_survives_the_way_to_another_process() -> None:
    assert from_plain(Signature, json.loads(json.dumps(asdict(SIGNATURE)))) == SIGNATURE


def test_signature_reads_as_a_sentence() -> None:
    assert str(SIGNATURE) == "(x FP32[-1, 4], scale FP32[1]) -> (y INT64[-1])"
