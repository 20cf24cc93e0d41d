from lrai.config import KnobsConfig, ModelConfig, load_settings
from lrai.core.model import TensorInfo
from lrai.gateway.oip import gateway_config, model_spec
from lrai.registry.resolve import ServedModel


def served(max_batch_size: int) -> ServedModel:
    return ServedModel(
        name="mlp",
        version="3",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        inputs=(
            TensorInfo("x", "FP32", (-1, 4)),
            TensorInfo("bias", "FP32", (-1, 1), optional=True),
        ),
        outputs=(TensorInfo("label", "BYTES", (-1,), labels=("no", "yes")),),
        model=ModelConfig(replicas=2, retry=False, max_output_bytes=1 << 20),
        knobs=KnobsConfig(k=16, tau_s=0.0005),
        file_name="model.onnx",
        parameters={"mode": "fast"},
        num_latest=1,
        notes=(),
    )


def test_gateway_configuration_has_the_names_of_the_data_plane() -> None:
    flags = {"header_timeout": "1.5s", "not_ready_status": "503", "metrics_port": "off"}
    flags |= {"model_control_mode": "explicit", "access_log": "true", "runtime_threads": "2"}
    config = gateway_config(load_settings(flags, {}), version="1.2.3")
    assert config["header_timeout_ms"] == 1500
    assert config["not_ready_status"] == 503
    assert config["metrics_port"] is None
    assert config["threads"] == 2
    assert config["model_control"] == "explicit"
    assert config["access_log"] is True
    assert config["server_version"] == "1.2.3"
    assert not [name for name in config if name.endswith("_s")]


def test_specification_carries_signature_and_limits() -> None:
    spec = model_spec(served(max_batch_size=16), config="{}")
    assert list(spec["inputs"]) == [
        {"name": "x", "datatype": "FP32", "shape": (-1, 4), "optional": False, "labels": ()},
        {"name": "bias", "datatype": "FP32", "shape": (-1, 1), "optional": True, "labels": ()},
    ]
    assert spec["outputs"][0]["labels"] == ("no", "yes")
    assert (spec["retry"], spec["max_output_bytes"]) == (False, 1 << 20)
    assert (spec["name"], spec["version"], spec["max_batch_size"]) == ("mlp", "3", 16)
