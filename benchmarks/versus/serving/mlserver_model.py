"""What MLServer loads: one session call per request, or per batch where MLServer batches."""

from __future__ import annotations

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import (  # type: ignore[import-not-found]
    InferenceRequest,
    InferenceResponse,
)
from session import open_session  # type: ignore[import-not-found]


class OnnxModel(MLModel):  # type: ignore[misc]  # has no types here
    """Runs the ONNX file that model-settings.json names."""

    async def load(self) -> bool:
        """Opens the session."""
        parameters = self.settings.parameters
        self.session = open_session(parameters.uri, parameters.extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers one request."""
        feed = {
            tensor.name: NumpyCodec.decode_input(tensor).reshape(tensor.shape)
            for tensor in payload.inputs
        }
        results = self.session.run(None, feed)
        outputs = [
            NumpyCodec.encode_output(output.name, result)
            for output, result in zip(self.session.get_outputs(), results, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
