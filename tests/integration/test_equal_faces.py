"""HTTP with JSON, HTTP with binary tensors, gRPC raw and gRPC typed give the same answers and errors.

The cases are in cases/*.json. A case that fails names the code and the text of the error; `texts`
has the text of a face that must say it differently, `faces` the faces that can say the case at all.
"""

import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as wire
from tritonclient.grpc import service_pb2_grpc as service

FACES = ("json", "binary", "grpc", "grpc typed")
NUMPY = {
    "BOOL": np.dtype(bool),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
} | {
    f"{sign}INT{bits}": np.dtype(f"<{kind}{bits // 8}")
    for sign, kind in (("", "i"), ("U", "u"))
    for bits in (8, 16, 32, 64)
}
FIELDS = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
} | {
    f"{sign}INT{bits}": f"{sign.lower()}int_contents" for sign in ("", "U") for bits in (8, 16, 32)
}
STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
}
CASES = [
    pytest.param(case, id=f"{file.stem}: {case['name']}")
    for file in sorted(Path(__file__).with_name("cases").glob("*.json"))
    for case in json.loads(file.read_text())
]


def to_bytes(datatype, data):
    """Elements as they travel in binary."""
    if datatype == "BYTES":
        texts = [text.encode() for text in data]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    if datatype not in NUMPY:
        return bytes(data)
    return np.array(data, NUMPY[datatype]).tobytes()


def from_bytes(datatype, data):
    """The elements of a binary tensor."""
    if datatype == "BYTES":
        texts = []
        while data:
            length = int.from_bytes(data[:4], "little")
            texts.append(data[4 : 4 + length].decode())
            data = data[4 + length :]
        return texts
    if datatype not in NUMPY:
        return list(data)
    return np.frombuffer(data, NUMPY[datatype]).tolist()


def path_of(case):
    version = f"/versions/{case['version']}" if "version" in case else ""
    return f"/v2/models/{case['model']}{version}/infer"


def head_of(case):
    return {key: case[key] for key in ("id", "parameters", "outputs") if key in case}


def tensors_of(document, blobs):
    """Outputs of an HTTP answer: name, datatype, shape and elements, in order."""
    tensors = []
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        data = output["data"] if size is None else from_bytes(output["datatype"], blobs[:size])
        blobs = blobs[size or 0 :]
        tensors.append((output["name"], output["datatype"], output["shape"], data))
    assert not blobs
    return tensors


class Faces:
    """Sends a case through a face; returns its tensors with the id, or code and text of the error."""

    def __init__(self, server, http):
        self._address, self._http = server.http, http
        self._channel = grpc.insecure_channel(server.grpc)
        self._stub = service.GRPCInferenceServiceStub(self._channel)

    def close(self):
        self._channel.close()

    def send(self, face, case):
        if face.startswith("grpc"):
            return self._send_grpc(case, is_typed=face == "grpc typed")
        return self._send_http(case, is_binary=face == "binary")

    def _send_http(self, case, is_binary):
        inputs, blobs, headers = [], b"", {}
        for tensor in case["inputs"]:
            if is_binary:
                blob = to_bytes(tensor["datatype"], tensor["data"])
                plain = {key: tensor[key] for key in ("name", "datatype", "shape")}
                inputs.append({**plain, "parameters": {"binary_data_size": len(blob)}})
                blobs += blob
            else:
                inputs.append(tensor)
        document = {**head_of(case), "inputs": inputs}
        if is_binary:
            document.setdefault("parameters", {})
            document["parameters"] = {**document["parameters"], "binary_data_output": True}
        head = json.dumps(document).encode()
        if is_binary:
            headers["Inference-Header-Content-Length"] = str(len(head))
        answer = self._http(self._address, path_of(case), head + blobs, headers=headers)
        length = int(answer.headers.get("inference-header-content-length", len(answer.body)))
        document = json.loads(answer.body[:length])
        if answer.status != 200:
            return answer.status, document["error"]
        return tensors_of(document, answer.body[length:]), document.get("id", "")

    def _send_grpc(self, case, is_typed):
        request = wire.ModelInferRequest(
            model_name=case["model"], model_version=case.get("version", ""), id=case.get("id", "")
        )
        set_parameters(request.parameters, case.get("parameters", {}))
        for tensor in case["inputs"]:
            described = request.inputs.add(
                name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
            )
            if is_typed:
                data = tensor["data"]
                values = [one.encode() for one in data] if tensor["datatype"] == "BYTES" else data
                getattr(described.contents, FIELDS[tensor["datatype"]]).extend(values)
            else:
                blob = to_bytes(tensor["datatype"], tensor["data"])
                request.raw_input_contents.append(blob)
        for output in case.get("outputs", []):
            asked = request.outputs.add(name=output["name"])
            set_parameters(asked.parameters, output.get("parameters", {}))
        try:
            answer = self._stub.ModelInfer(request, timeout=10)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
        tensors = [
            (out.name, out.datatype, list(out.shape), from_bytes(out.datatype, raw))
            for out, raw in pairs
        ]
        return tensors, answer.id


def set_parameters(target, parameters):
    fields = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for key, value in parameters.items():
        setattr(target[key], fields[type(value)], value)


@pytest.fixture(scope="module")
def faces(zoo, http):
    faces = Faces(zoo, http)
    yield faces
    faces.close()


@pytest.mark.parametrize("case", CASES)
def test_all_faces_answer_alike(faces, case):
    answers = {face: faces.send(face, case) for face in case.get("faces", FACES)}
    if "code" in case:
        for face, (code, text) in answers.items():
            expected = case["code"] if face.startswith("grpc") else STATUS[case["code"]]
            assert (code, text) == (expected, case.get("texts", {}).get(face, case["text"])), face
    else:
        tensors = [tuple(tensor.values()) for tensor in case["answer"]]
        for face, answer in answers.items():
            assert answer == (tensors, case.get("id", "")), face
