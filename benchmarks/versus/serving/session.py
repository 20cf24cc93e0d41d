"""The onnxruntime session that every peer runs: same threads, no spinning."""

from __future__ import annotations

import onnxruntime


def open_session(path: str, threads: int) -> onnxruntime.InferenceSession:
    """Loads a model for the CPU. Spinning threads would steal the client's core, so they sleep."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
