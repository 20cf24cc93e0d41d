"""The kserve package's clients, unmodified."""

import grpc
import httpx
import numpy as np
import pytest

from lrai.testing import start_server

kserve = pytest.importorskip("kserve", reason="kserve is not installed (pip install kserve)")
ROWS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


def request(model, array, datatype="FP32", is_binary=False, name="x", **more):
    tensor = kserve.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=is_binary)
    return kserve.InferRequest(model_name=model, infer_inputs=[tensor], request_id="seven", **more)


@pytest.fixture(params=[False, True], ids=["HTTP/1.1", "HTTP/2"])
async def rest(request, zoo):
    config = kserve.RESTConfig(protocol="v2", retries=0, timeout=10, http2=request.param)
    client = kserve.InferenceRESTClient(config)
    yield client
    await client.close()


@pytest.fixture
async def remote(zoo):
    client = kserve.InferenceGRPCClient(zoo.grpc, timeout=10, retries=0)
    yield client
    await client.close()


@pytest.fixture
def url(zoo):
    return f"http://{zoo.http}"


async def test_rest_health(rest, url):
    assert await rest.is_server_live(url)
    assert await rest.is_server_ready(url)
    assert await rest.is_model_ready(url, "identity_FP32")


async def test_grpc_health(remote):
    assert await remote.is_server_live()
    assert await remote.is_server_ready()
    assert await remote.is_model_ready("identity_FP32")


@pytest.mark.parametrize("is_binary", [False, True], ids=["JSON", "binary"])
async def test_rest_infer(rest, url, is_binary):
    asked = [kserve.protocol.infer_type.RequestedOutput("y", parameters={"binary_data": is_binary})]
    body = request("identity_FP32", ROWS, is_binary=is_binary, request_outputs=asked)
    answer = await rest.infer(url, body, model_name="identity_FP32")
    assert (answer.id, answer.model_name) == ("seven", "identity_FP32")
    np.testing.assert_array_equal(answer.outputs[0].as_numpy(), ROWS)


async def test_rest_infer_in_half_precision(rest, url):
    array = ROWS.astype(np.float16)
    asked = [kserve.protocol.infer_type.RequestedOutput("y", parameters={"binary_data": True})]
    body = request("identity_FP16", array, "FP16", is_binary=True, request_outputs=asked)
    answer = await rest.infer(url, body, model_name="identity_FP16")
    np.testing.assert_array_equal(answer.outputs[0].as_numpy(), array)


@pytest.mark.parametrize("is_binary", [False, True], ids=["typed", "raw"])
@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("FP32", ROWS),
        ("INT64", ROWS.astype(np.int64)),
        ("BYTES", np.array([[b"a", "ü".encode()]], object)),
    ],
    ids=["FP32", "INT64", "BYTES"],
)
async def test_grpc_infer(remote, datatype, array, is_binary):
    model = f"identity_{datatype}"
    answer = await remote.infer(request(model, array, datatype, is_binary))
    assert (answer.id, answer.model_name) == ("seven", model)
    back = answer.outputs[0].as_numpy()
    expected = array if datatype != "BYTES" else np.vectorize(bytes.decode, otypes=[object])(array)
    assert back.tolist() in (array.tolist(), expected.tolist())


async def test_rest_errors(rest, url):
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await rest.infer(url, request("nobody", ROWS), model_name="nobody")
    assert caught.value.response.status_code == 404
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await rest.infer(url, request("identity_FP32", ROWS, name="z"), model_name="identity_FP32")
    assert caught.value.response.status_code == 400
    assert "unexpected inference input 'z'" in caught.value.response.json()["error"]
    assert not await rest.is_model_ready(url, "nobody")


async def test_grpc_errors(remote):
    with pytest.raises(grpc.RpcError) as caught:
        await remote.infer(request("nobody", ROWS))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "Request for unknown model: 'nobody' is not found"
    with pytest.raises(grpc.RpcError) as caught:
        await remote.infer(request("identity_FP32", ROWS, name="z"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not await remote.is_model_ready("nobody")


async def test_a_server_without_models_says_503_to_kserve_if_told_so(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    flags = ("--not-ready-status=503", "--strict-readiness=true")
    with start_server(tmp_path, *flags) as server:
        config = kserve.RESTConfig(protocol="v2", retries=0, timeout=10)
        client = kserve.InferenceRESTClient(config)
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await client.is_server_ready(f"http://{server.http}")
        await client.close()
    assert caught.value.response.status_code == 503
