"""NVIDIA's Python client, unmodified: its four variants run the same tests."""

import asyncio
import functools
import json
import queue
import threading

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from lrai.testing import models

MODULES = {
    "http": tritonclient.http,
    "grpc": tritonclient.grpc,
    "http-aio": tritonclient.http.aio,
    "grpc-aio": tritonclient.grpc.aio,
}
ELEMENTS = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255], [1, 2]], np.uint8),
    "UINT16": np.array([[0, 65535], [1, 2]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1], [1, 2]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1], [1, 2]], np.uint64),
    "INT8": np.array([[-128, 127], [1, 2]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1], [1, 2]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1], [1, 2]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1], [1, 2]], np.int64),
    "FP16": np.array([[0.5, -65504], [1, 2]], np.float16),
    "BF16": np.array([[0.5, -1], [1, 2]], ml_dtypes.bfloat16),
    "FP32": np.array([[1e-30, -3e38], [1, 2]], np.float32),
    "FP64": np.array([[1e-300, -1e300], [1, 2]], np.float64),
    "BYTES": np.array([[b"", "Grüße".encode()], [b'"\\', b"x" * 300]], object),
}


class Client:
    """One variant of the client behind plain calls: coroutines are run to their end."""

    def __init__(self, kind, server, loop):
        self.kind = kind
        self.module = MODULES[kind]
        self.is_http = kind.startswith("http")
        self._loop = loop
        self._address = server.http if self.is_http else server.grpc
        self._client = self._finish(self._open())

    async def _open(self):
        return self.module.InferenceServerClient(self._address)

    def _finish(self, value):
        return self._loop.run_until_complete(value) if asyncio.iscoroutine(value) else value

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *args, **more: self._finish(method(*args, **more))

    def message(self, name, *args, **more):
        """Call a method whose answer is a message; return it as a dictionary."""
        as_json = {} if self.is_http else {"as_json": True}
        return getattr(self, name)(*args, **as_json, **more)

    def input(self, name, array, datatype="", **how):
        datatype = datatype or np_to_triton_dtype(array.dtype)
        tensor = self.module.InferInput(name, list(array.shape), datatype)
        return tensor.set_data_from_numpy(array, **(how if self.is_http else {}))

    def output(self, name, **how):
        binary = {} if self.is_http else {"binary_data": None}
        more = {key: value for key, value in how.items() if key not in binary}
        return self.module.InferRequestedOutput(name, **more)


@pytest.fixture(scope="module", params=MODULES)
def client(request, zoo):
    loop = asyncio.new_event_loop()
    client = Client(request.param, zoo, loop)
    yield client
    client.close()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.fixture
def pair(client):
    """Inputs of the model `simple` and the two outputs that it must give."""
    first = np.arange(16, dtype=np.int32).reshape(1, 16)
    second = np.full((1, 16), 3, np.int32)
    inputs = [client.input("INPUT0", first), client.input("INPUT1", second)]
    return inputs, first + second, first - second


def refusal(call, *args, **more):
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **more)
    return caught.value


def test_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "7")
    assert not client.is_model_ready("nobody")


def test_metadata_names_the_server_and_the_tensors(client):
    server = client.message("get_server_metadata")
    assert server["name"] == "lrai"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server["extensions"])
    model = client.message("get_model_metadata", "simple")
    assert (model["name"], model["versions"], model["platform"]) == (
        *("simple", ["1"]),
        "onnxruntime_onnx",
    )
    shapes = {
        tensor["name"]: (tensor["datatype"], [int(size) for size in tensor["shape"]])
        for tensor in (*model["inputs"], *model["outputs"])
    }
    assert shapes == dict.fromkeys(("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1"), ("INT32", [-1, 16]))


def test_config_agrees_with_the_metadata(client):
    config = client.message("get_model_config", "simple")
    config = config if client.is_http else config["config"]
    assert (config["name"], config["max_batch_size"]) == ("simple", 64)
    assert [tensor["name"] for tensor in config["input"]] == ["INPUT0", "INPUT1"]
    assert [int(size) for size in config["input"][0]["dims"]] == [16]
    assert config["input"][0]["data_type"] == "TYPE_INT32"


def test_statistics_count_requests_and_rows(client):
    def counts():
        (model,) = client.message("get_inference_statistics", "scalar")["model_stats"]
        success = model["inference_stats"]["success"]
        counted = (success.get("count", 0), model.get("inference_count", 0))
        return tuple(int(count) for count in (*counted, model.get("execution_count", 0)))

    before = counts()
    client.infer("scalar", [client.input("x", np.array(1, np.float32))])
    assert np.subtract(counts(), before).tolist() == [1, 1, 1]


@pytest.mark.parametrize("datatype", ELEMENTS)
def test_every_datatype_comes_back(client, datatype):
    array = ELEMENTS[datatype]
    answer = client.infer(f"identity_{datatype}", [client.input("x", array, datatype)])
    back = answer.as_numpy("y")
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", ELEMENTS)
@pytest.mark.parametrize("shape", [(2, 0), (0, 3)], ids=str)
def test_zero_size_tensors_come_back(client, datatype, shape):
    array = ELEMENTS[datatype].ravel()[:0].reshape(shape)
    answer = client.infer(f"identity_{datatype}", [client.input("x", array, datatype)])
    back = answer.as_numpy("y")
    assert back.shape == shape


def test_a_scalar_comes_back(client):
    answer = client.infer("scalar", [client.input("x", np.array(2.5, np.float32))])
    assert answer.as_numpy("y").shape == ()
    assert answer.as_numpy("y") == 2.5


@pytest.mark.parametrize("datatype", sorted(ELEMENTS.keys() - {"FP16", "BF16"}))
@pytest.mark.parametrize("asked", [True, False], ids=["binary answer", "JSON answer"])
@pytest.mark.parametrize("client", ["http", "http-aio"], indirect=True)
def test_json_inputs_and_both_kinds_of_answers(client, datatype, asked):
    array = ELEMENTS[datatype]
    answer = client.infer(
        f"identity_{datatype}",
        [client.input("x", array, datatype, binary_data=False)],
        outputs=[client.output("y", binary_data=asked)],
    )
    is_text = datatype == "BYTES" and not asked
    expected = np.vectorize(bytes.decode, otypes=[object])(array) if is_text else array
    np.testing.assert_array_equal(answer.as_numpy("y"), expected)
    assert ("data" in answer.get_output("y")) is not asked


@pytest.mark.parametrize("there", ["", "gzip", "deflate"])
@pytest.mark.parametrize("back", ["", "gzip", "deflate"])
def test_compression_both_ways(client, there, back):
    array = np.tile(np.arange(64, dtype=np.float32), (16, 8))
    how = {
        "request_compression_algorithm": there or None,
        "response_compression_algorithm": back or None,
    }
    if not client.is_http:
        how = {"compression_algorithm": there or back or None}
    answer = client.infer("identity_FP32", [client.input("x", array)], **how)
    np.testing.assert_array_equal(answer.as_numpy("y"), array)


def test_several_inputs_and_outputs(client, pair):
    inputs, total, difference = pair
    answer = client.infer("simple", inputs)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), total)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), difference)


def test_only_requested_outputs_are_answered_and_the_id_comes_back(client, pair):
    inputs, _, difference = pair
    answer = client.infer(
        "simple", inputs, "1", outputs=[client.output("OUTPUT1")], request_id="seven"
    )
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), difference)
    assert answer.as_numpy("OUTPUT0") is None
    response = answer.get_response(**({} if client.is_http else {"as_json": True}))
    assert (response["id"], response["model_version"]) == ("seven", "1")


def test_parameters_of_every_kind_are_taken(client, pair):
    inputs, total, _ = pair
    answer = client.infer(
        "simple",
        inputs,
        priority=1,
        timeout=10_000_000,
        sequence_id=0,
        parameters={"text": "a", "number": 3, "switch": True},
        headers={"x-trace": "1"},
    )
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), total)


def test_classification_names_the_best_classes(client):
    rows = np.array([[0.1, 0.5, 0.25, 0.125], [4, 3, 2, 1]], np.float32)
    answer = client.infer(
        "labelled", [client.input("x", rows)], outputs=[client.output("y", class_count=2)]
    )
    assert answer.as_numpy("y").tolist() == [
        [b"0.500000:1:one", b"0.250000:2:two"],
        [b"4.000000:0:zero", b"3.000000:1:one"],
    ]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_large_tensor_comes_back(client):
    array = np.random.default_rng(1).random((8, 50_000), np.float32)
    answer = client.infer("identity_FP32", [client.input("x", array)])
    np.testing.assert_array_equal(answer.as_numpy("y"), array)


def test_an_unknown_model_is_not_found(client, pair):
    error = refusal(client.infer, "nobody", pair[0])
    assert error.message() == "Request for unknown model: 'nobody' is not found"
    assert error.status() == ("404" if client.is_http else "StatusCode.NOT_FOUND")
    for method in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
        assert "unknown model: 'nobody'" in refusal(getattr(client, method), "nobody").message()


def test_an_unknown_version_is_not_found(client, pair):
    error = refusal(client.infer, "simple", pair[0], "7")
    assert error.message() == "Request for unknown model: 'simple' version 7 is not found"


def test_wrong_requests_are_told_what_is_wrong(client, pair):
    def told(model, *inputs, **more):
        error = refusal(client.infer, model, list(inputs), **more)
        assert error.status() == ("400" if client.is_http else "StatusCode.INVALID_ARGUMENT")
        return error.message()

    first, second = pair[0]
    rows = np.zeros((65, 16), np.int32)
    many = [client.input(name, rows) for name in ("INPUT0", "INPUT1")]
    narrow = client.input("INPUT0", np.zeros((1, 15), np.int32))
    real = client.input("INPUT0", np.zeros((1, 16), np.float32))
    one_row = client.input("INPUT1", np.zeros((2, 16), np.int32))
    assert "unexpected shape for input 'INPUT0' for model 'simple'" in told(
        "simple", narrow, second
    )
    assert told("simple", real, second).startswith(
        "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'"
    )
    assert told("simple", *many) == "inference request batch-size must be <= 64 for 'simple'"
    assert "batch size does not match other inputs" in told("simple", first, one_row)
    assert told("simple", first).startswith(
        "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], but missing"
        " required input(s) ['INPUT1']. Please provide all required input(s)."
    )
    twice = [client.output("OUTPUT0"), client.output("OUTPUT0")]
    assert told("simple", first, second, outputs=twice) == (
        "output 'OUTPUT0' already exists in request"
    )
    unknown = [client.output("OUTPUT9")]
    assert "unexpected inference output 'OUTPUT9'" in told("simple", first, second, outputs=unknown)
    assert told("simple", narrow, second, request_id="seven").startswith("[request id: seven] ")


def test_what_a_model_refuses_is_an_invalid_argument(client):
    error = refusal(client.infer, "slow", [client.input("seconds", np.array([-1], np.float32))])
    assert error.message() == "time does not run backwards"
    assert error.status() == ("400" if client.is_http else "StatusCode.INVALID_ARGUMENT")


def test_a_queue_timeout_is_unavailable(client, zoo, http):
    sleep = {"name": "seconds", "datatype": "FP32", "shape": [1], "data": [0.2]}
    over, errors = threading.Event(), []

    def block():
        while not over.is_set():
            http(zoo.http, "/v2/models/slow/infer", {"inputs": [sleep]})

    blockers = [threading.Thread(target=block) for _ in range(2)]
    for blocker in blockers:
        blocker.start()
    for _ in range(50):
        try:
            tensor = client.input("seconds", np.array([0], np.float32))
            client.infer("slow", [tensor], timeout=1000)
        except InferenceServerException as error:
            errors.append(error)
            break
    over.set()
    for blocker in blockers:
        blocker.join()
    assert errors[0].message() == "Request timeout expired"
    assert errors[0].status() == ("503" if client.is_http else "StatusCode.UNAVAILABLE")


def test_shared_memory_is_unregistered_and_refused(client):
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    client.unregister_system_shared_memory("region")
    assert not client.message("get_system_shared_memory_status")
    assert not client.message("get_cuda_shared_memory_status")
    error = refusal(client.register_system_shared_memory, "region", "/key", 64)
    assert error.message().startswith("Client shared memory is disabled. Start the server with")
    tensor = client.module.InferInput("x", [1, 4], "FP32")
    tensor.set_shared_memory("region", 16)
    assert "shared memory" in refusal(client.infer, "identity_FP32", [tensor]).message()


def test_a_model_is_loaded_and_unloaded(client):
    def state():
        rows = client.message("get_model_repository_index")
        rows = rows if client.is_http else rows["models"]
        (row,) = [row for row in rows if row["name"] == "spare"]
        return row.get("state", "")

    assert state() in ("", "UNAVAILABLE")
    client.load_model("spare")
    assert state() == "READY"
    rows = np.ones((1, 4), np.float32)
    answer = client.infer("spare", [client.input("x", rows)])
    np.testing.assert_array_equal(answer.as_numpy("y"), rows)
    client.unload_model("spare")
    assert state() == "UNAVAILABLE"
    error = refusal(client.infer, "spare", [client.input("x", rows)])
    assert error.message() == "Request for unknown model: 'spare' has no available versions"


def test_a_model_is_loaded_with_another_configuration(client):
    config = json.dumps({"name": "spare", "max_batch_size": 3})
    client.load_model("spare", config=config)
    try:
        rows = np.ones((4, 4), np.float32)
        error = refusal(client.infer, "spare", [client.input("x", rows)])
        assert error.message() == "inference request batch-size must be <= 3 for 'spare'"
    finally:
        client.unload_model("spare")


def test_a_model_that_the_client_sends_is_served(client, tmp_path):
    file = models.identity(tmp_path / "sent.onnx")
    config = json.dumps({"max_batch_size": 2})
    client.load_model("sent", config=config, files={"file:1/model.onnx": file.read_bytes()})
    rows = np.ones((2, 4), np.float32)
    answer = client.infer("sent", [client.input("x", rows)])
    np.testing.assert_array_equal(answer.as_numpy("y"), rows)
    client.unload_model("sent", unload_dependents=True)
    assert not client.is_model_ready("sent")


def test_an_unknown_model_cannot_be_loaded(client):
    error = refusal(client.load_model, "nobody")
    assert error.message() == "failed to load 'nobody', failed to poll from model repository"


def test_settings_of_trace_and_log_can_be_read(client):
    trace = client.message("get_trace_settings")
    assert "trace_level" in (trace if client.is_http else trace["settings"])
    log = client.message("get_log_settings")
    assert "log_info" in (log if client.is_http else log["settings"])


def test_http_async_infer_answers_many(zoo):
    with tritonclient.http.InferenceServerClient(zoo.http, concurrency=4) as client:
        rows = [np.full((1, 4), number, np.float32) for number in range(20)]
        tensors = [tritonclient.http.InferInput("x", [1, 4], "FP32") for _ in rows]
        pending = [
            client.async_infer("identity_FP32", [tensor.set_data_from_numpy(row)])
            for tensor, row in zip(tensors, rows, strict=True)
        ]
        for row, one in zip(rows, pending, strict=True):
            np.testing.assert_array_equal(one.get_result(timeout=10).as_numpy("y"), row)


def test_grpc_async_infer_answers_many(zoo):
    answers = queue.Queue()

    def put(number, result, error):
        answers.put((number, result, error))

    with tritonclient.grpc.InferenceServerClient(zoo.grpc) as client:
        for number in range(20):
            tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.full((1, 4), number, np.float32))
            client.async_infer("identity_FP32", [tensor], functools.partial(put, number))
        got = [answers.get(timeout=10) for _ in range(20)]
    assert sorted(number for number, _, _ in got) == list(range(20))
    assert all(
        error is None and result.as_numpy("y")[0, 0] == number for number, result, error in got
    )


def stream_inputs():
    """Two good requests around a wrong one."""
    for number, width in enumerate((4, 4, 4)):
        tensor = tritonclient.grpc.InferInput("x", [1, width], "FP32")
        tensor.set_data_from_numpy(np.full((1, width), number, np.float32))
        name = "nobody" if number == 1 else "identity_FP32"
        yield {"model_name": name, "inputs": [tensor], "request_id": str(number)}


def test_a_stream_answers_each_request_and_survives_an_error(zoo):
    answers = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(zoo.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for request in stream_inputs():
            client.async_stream_infer(**request)
        got = [answers.get(timeout=10) for _ in range(3)]
        client.stop_stream()
    assert [error is not None for _, error in got] == [False, True, False]
    assert "unknown model: 'nobody'" in got[1][1].message()
    assert [got[at][0].get_response().id for at in (0, 2)] == ["0", "2"]


async def test_an_asyncio_stream_answers_each_request(zoo):
    async def requests():
        for request in stream_inputs():
            yield request

    got = []
    async with tritonclient.grpc.aio.InferenceServerClient(zoo.grpc) as client:
        async for result, error in client.stream_infer(requests()):
            got.append(error.message() if error else result.get_response().id)
    assert [got[0], got[2]] == ["0", "2"]
    assert "unknown model: 'nobody'" in got[1]


def test_a_call_that_the_client_gives_up_ends_in_time(zoo):
    with tritonclient.grpc.InferenceServerClient(zoo.grpc) as client:
        tensor = tritonclient.grpc.InferInput("seconds", [1], "FP32")
        tensor.set_data_from_numpy(np.array([0.3], np.float32))
        error = refusal(client.infer, "slow", [tensor], client_timeout=0.05)
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
