"""Checks of the kserve package's clients, unmodified, against a server; run by test_kserve.py.

In a process of its own, because kserve and tritonclient both register the protocol's messages.

    python kserve_checks.py HTTP GRPC NOT_READY_HTTP    prints {check: "" or what went wrong}
"""

import asyncio
import json
import sys
import traceback
from dataclasses import dataclass

import grpc
import httpx
import kserve
import numpy as np

ROWS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
CHECKS = {}


@dataclass
class World:
    """The clients, and where a server that never gets ready is."""

    rest: kserve.InferenceRESTClient
    grpc: kserve.InferenceGRPCClient
    url: str
    not_ready: str


def check(function):
    CHECKS[function.__name__] = function
    return function


def request(model, array, datatype="FP32", is_binary=False, name="x", **more):
    tensor = kserve.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=is_binary)
    return kserve.InferRequest(model, infer_inputs=[tensor], request_id="seven", **more)


def asked(is_binary):
    kind = kserve.protocol.infer_type.RequestedOutput
    return [kind("y", parameters={"binary_data": is_binary})]


async def refusal(call):
    """The exception with which a call ends."""
    try:
        await call
    except (httpx.HTTPStatusError, grpc.RpcError) as error:
        return error
    raise AssertionError("the call was answered")


@check
async def rest_health(world):
    assert await world.rest.is_server_live(world.url)
    assert await world.rest.is_server_ready(world.url)
    assert await world.rest.is_model_ready(world.url, "identity_FP32")
    assert not await world.rest.is_model_ready(world.url, "nobody")


@check
async def grpc_health(world):
    assert await world.grpc.is_server_live()
    assert await world.grpc.is_server_ready()
    assert await world.grpc.is_model_ready("identity_FP32")
    assert not await world.grpc.is_model_ready("nobody")


@check
async def rest_infer_in_json(world):
    body = request("identity_FP32", ROWS, request_outputs=asked(False))
    answer = await world.rest.infer(world.url, body, model_name="identity_FP32")
    assert (answer.id, answer.model_name) == ("seven", "identity_FP32")
    np.testing.assert_array_equal(answer.outputs[0].as_numpy(), ROWS)


@check
async def rest_infer_in_binary(world):
    for datatype, array in (("FP32", ROWS), ("FP16", ROWS.astype(np.float16))):
        model = f"identity_{datatype}"
        body = request(model, array, datatype, True, request_outputs=asked(True))
        answer = await world.rest.infer(world.url, body, model_name=model)
        np.testing.assert_array_equal(answer.outputs[0].as_numpy(), array)


@check
async def grpc_infer(world):
    for is_binary in (False, True):
        for datatype, array in (("FP32", ROWS), ("INT64", ROWS.astype(np.int64))):
            model = f"identity_{datatype}"
            answer = await world.grpc.infer(request(model, array, datatype, is_binary))
            assert (answer.id, answer.model_name) == ("seven", model)
            np.testing.assert_array_equal(answer.outputs[0].as_numpy(), array)


@check
async def grpc_infer_of_text(world):
    texts = np.array([[b"a", "ü".encode()]], object)
    answer = await world.grpc.infer(request("identity_BYTES", texts, "BYTES"))
    back = [
        one if isinstance(one, bytes) else one.encode() for one in answer.outputs[0].as_numpy().flat
    ]
    assert back == [b"a", "ü".encode()]


@check
async def rest_errors(world):
    body = request("nobody", ROWS)
    error = await refusal(world.rest.infer(world.url, body, model_name="nobody"))
    assert error.response.status_code == 404
    body = request("identity_FP32", ROWS, name="z")
    error = await refusal(world.rest.infer(world.url, body, model_name="identity_FP32"))
    assert error.response.status_code == 400
    assert "unexpected inference input 'z'" in error.response.json()["error"]


@check
async def grpc_errors(world):
    error = await refusal(world.grpc.infer(request("nobody", ROWS)))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details() == "Request for unknown model: 'nobody' is not found"
    error = await refusal(world.grpc.infer(request("identity_FP32", ROWS, name="z")))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


@check
async def a_server_that_is_not_ready_says_503_if_told_so(world):
    error = await refusal(world.rest.is_server_ready(world.not_ready))
    assert error.response.status_code == 503


async def main(http, remote, not_ready):
    config = kserve.RESTConfig(protocol="v2", retries=0, timeout=10)
    rest = kserve.InferenceRESTClient(config)
    client = kserve.InferenceGRPCClient(remote, timeout=10, retries=0)
    world = World(rest, client, f"http://{http}", f"http://{not_ready}")
    results = {}
    for name, function in CHECKS.items():
        try:
            await function(world)
            results[name] = ""
        except Exception:  # noqa: BLE001, the other checks shall run too
            results[name] = traceback.format_exc()
    await client.close()
    await rest.close()
    print(json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
