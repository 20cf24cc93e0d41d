"""Ask a server over gRPC, with tritonclient.

lrai serve examples/python_backend
python examples/grpc_client.py
"""

import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput


def main() -> None:
    """Wait for the server, look at a model, and ask it."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
    with InferenceServerClient(address) as client:
        if not client.is_server_ready():
            sys.exit(f"error: the server on {address} is not ready")
        for tensor in client.get_model_metadata("polarity").inputs:
            print(f"input {tensor.name}: {tensor.datatype} {list(tensor.shape)}")
        texts = np.array([b"fast and safe", b"slow and wrong"], dtype=object)
        tensor = InferInput("text", [2], "BYTES").set_data_from_numpy(texts)
        answer = client.infer("polarity", [tensor], request_id="example")
        for text, label in zip(texts, answer.as_numpy("label"), strict=True):
            print(f"{text.decode()!r} is {label.decode()}")


if __name__ == "__main__":
    main()
