"""Triton's ModelConfig, as /config and its gRPC twin answer it."""

import json
from typing import Any

from lrai.core.model import TensorInfo
from lrai.registry.resolve import ServedModel


def model_config(served: ServedModel) -> str:
    """Return the ModelConfig as JSON, complete enough for tritonclient and perf_analyzer."""
    knobs = served.knobs
    config: dict[str, Any] = {
        "name": served.name,
        "platform": served.platform,
        "backend": served.backend,
        "version_policy": {"latest": {"num_versions": max(1, served.num_latest)}},
        "max_batch_size": served.max_batch_size,
        "input": [
            {**_tensor_config(tensor, served), "format": "FORMAT_NONE", "optional": tensor.optional}
            for tensor in served.inputs
        ],
        "output": [
            {**_tensor_config(tensor, served), "label_filename": ""} for tensor in served.outputs
        ],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": False},
            "output_pinned_memory": {"enable": False},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "instance_group": [
            {"name": served.name, "kind": "KIND_CPU", "count": served.model.replicas, "gpus": []}
        ],
        "default_model_filename": served.file_name,
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {
            name: {"string_value": value}
            for name, value in {**_labels(served), **served.parameters}.items()
        },
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }
    if served.max_batch_size > 0:
        config["dynamic_batching"] = {
            "preferred_batch_size": [knobs.k],
            "max_queue_delay_microseconds": round(knobs.tau_s * 1e6),
            "preserve_ordering": False,
            "priority_levels": served.priority_levels,
            "default_priority_level": served.default_priority,
            "priority_queue_policy": {},
        }
    return json.dumps(config)


def _labels(served: ServedModel) -> dict[str, str]:
    """Class labels found in the model: a ModelConfig has no field for them, only a file's name."""
    return {f"labels.{one.name}": json.dumps(one.labels) for one in served.outputs if one.labels}


def _tensor_config(tensor: TensorInfo, served: ServedModel) -> dict[str, Any]:
    name = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims = tensor.shape[1:] if served.max_batch_size > 0 else tensor.shape
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{name}",
        "dims": list(dims),
        "is_shape_tensor": False,
    }
