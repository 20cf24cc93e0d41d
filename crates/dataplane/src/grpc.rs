//! The gRPC face: the methods of the Open Inference Protocol, on hyper's HTTP/2 directly.
//!
//! Its own framing rather than a generated tonic service: both take the same processor time per small call, but here a
//! large message is decoded, compressed and encoded in the pool, counts against the bytes in memory, has its time-outs, and
//! is copied once on its way to the slab and once from it. What few clients call (health, reflection) is tonic's; Triton's
//! extensions are in [`crate::faces`].

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use tokio::time::timeout;
use tonic::Status;

use crate::answer::{Answer, Ticket};
use crate::body::{self, Coding};
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::faces::{self, services, stream};
use crate::framing::{self, Framed, GrpcBody};
use crate::pool::LARGE;
use crate::proto::model_metadata_response::TensorMetadata;
use crate::proto::{self, ModelInferRequest};
use crate::protobuf;
use crate::request::tag;
use crate::stats::Refusal;
use crate::tensor::TensorSpec;

/// The service's full name.
pub const SERVICE: &str = "inference.GRPCInferenceService";

/// Answers one call; dropping the future cancels it.
pub async fn call(dataplane: Arc<Dataplane>, request: Request<Incoming>) -> Response<GrpcBody> {
    let path = request.uri().path();
    if !path
        .strip_prefix('/')
        .and_then(|path| path.strip_prefix(SERVICE))
        .is_some_and(|rest| rest.starts_with('/'))
    {
        return Box::pin(services::call(dataplane, request)).await;
    }
    let (parts, body) = request.into_parts();
    let method = &parts.uri.path()[SERVICE.len() + 2..];
    let answered = match framing::timeout(&parts.headers) {
        Err(error) => Err(error.into()),
        Ok(time) if method == "ModelStreamInfer" => stream::call(dataplane, &parts, body, time),
        Ok(None) => unary(&dataplane, method, &parts, body).await,
        // Boxed, as every rare way: the future of an inference is moved about, and shall be small.
        Ok(Some(time)) => Box::pin(timeout(time, unary(&dataplane, method, &parts, body)))
            .await
            .unwrap_or_else(|_| Err(late())),
    };
    answered.unwrap_or_else(framing::refusal)
}

/// The end of a call whose time has passed.
#[cold]
pub fn late() -> Status {
    Status::deadline_exceeded("the call's grpc-timeout has passed")
}

async fn unary(
    dataplane: &Arc<Dataplane>,
    method: &str,
    parts: &Parts,
    mut body: Incoming,
) -> Result<Response<GrpcBody>, Status> {
    let (coding, back) = framing::codings(&parts.headers)?;
    let (config, memory) = (&dataplane.config, &dataplane.memory);
    let message = Framed::only(body::read(&mut body, config, memory).await?, config, memory)?;
    let answer = if method == "ModelInfer" {
        let answer = submit(dataplane, message, coding).await?.answer().await?;
        encode(dataplane, answer, back).await?
    } else {
        let (limit, memory) = (config.max_body_bytes, memory.clone());
        let message =
            run(dataplane, message.is_large(), move || message.decode(coding, limit, &memory)).await?;
        Box::pin(core(dataplane, method, message.data, back)).await?
    };
    Ok(framing::answer(GrpcBody::Message(dataplane.memory.count(answer)), back))
}

/// The protocol's own methods, save inference.
async fn core(
    dataplane: &Arc<Dataplane>,
    method: &str,
    message: Bytes,
    back: Option<Coding>,
) -> Result<Vec<u8>> {
    match method {
        "ServerLive" => reply(&proto::ServerLiveResponse { live: true }, back),
        "ServerReady" => reply(&proto::ServerReadyResponse { ready: dataplane.is_ready() }, back),
        "ModelReady" => {
            let request: proto::ModelReadyRequest = decode(message)?;
            // As in Triton, a model that nobody knows is no error here: it is not ready.
            let model = dataplane.model(&request.name, &request.version);
            reply(&proto::ModelReadyResponse { ready: model.is_ok_and(|model| model.is_ready()) }, back)
        }
        "ServerMetadata" => reply(&server_metadata(dataplane), back),
        "ModelMetadata" => {
            let request: proto::ModelMetadataRequest = decode(message)?;
            reply(&model_metadata(dataplane, &request.name, &request.version)?, back)
        }
        _ => faces::grpc(dataplane, method, message, back).await,
    }
}

/// What the server is; HTTP answers it as JSON.
pub fn server_metadata(dataplane: &Dataplane) -> proto::ServerMetadataResponse {
    proto::ServerMetadataResponse {
        name: faces::SERVER_NAME.into(),
        version: dataplane.config.server_version.clone(),
        extensions: faces::EXTENSIONS.iter().map(ToString::to_string).collect(),
    }
}

/// What a model takes and gives; HTTP answers it as JSON.
pub fn model_metadata(
    dataplane: &Dataplane,
    name: &str,
    version: &str,
) -> Result<proto::ModelMetadataResponse> {
    let model = dataplane.model(name, version)?;
    let tensor = |spec: &TensorSpec| TensorMetadata {
        name: spec.name.clone(),
        datatype: spec.datatype.name().into(),
        shape: spec.shape.clone(),
    };
    Ok(proto::ModelMetadataResponse {
        name: model.spec.name.clone(),
        versions: dataplane.versions(&model.spec.name),
        platform: model.spec.platform.clone(),
        inputs: model.spec.inputs.iter().map(tensor).collect(),
        outputs: model.spec.outputs.iter().map(tensor).collect(),
    })
}

/// Decodes a request message.
pub fn decode<M: Message + Default>(message: Bytes) -> Result<M> {
    M::decode(message).map_err(|error| Error::invalid(format!("the request is not a valid message: {error}")))
}

/// Encodes an answer message with its prefix.
pub fn reply(message: &impl Message, coding: Option<Coding>) -> Result<Vec<u8>> {
    let mut buffer = framing::begin(message.encoded_len());
    message.encode(&mut buffer).expect("a vector has room for everything");
    framing::finish(buffer, coding)
}

/// Runs `work` in the pool if it is `large`, else here.
pub async fn run<T: Send + 'static>(
    dataplane: &Dataplane,
    large: bool,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if large { Box::pin(dataplane.pool.run(work)).await } else { work() }
}

/// Decodes a request and puts it into its model's queue.
pub async fn submit(dataplane: &Arc<Dataplane>, message: Framed, coding: Option<Coding>) -> Result<Ticket> {
    let (large, shared) = (message.is_large(), Arc::clone(dataplane));
    let work = move || {
        let mut message = message.decode(coding, shared.config.max_body_bytes, &shared.memory)?;
        if large {
            message.held.grow(message.data.len() + protobuf::decoded_bytes(&message.data, 0))?;
        }
        let request: ModelInferRequest = decode(message.data)?;
        let model = shared.model(&request.model_name, &request.model_version)?;
        let parsed = protobuf::parse(&request).map_err(|error| {
            model.stats.refused(Refusal::Invalid, 0);
            tag(&request.id, error)
        });
        model.submit(&parsed?)
    };
    run(dataplane, large, work).await
}

/// Encodes an answer, in the pool if it is large.
async fn encode(dataplane: &Dataplane, answer: Answer, coding: Option<Coding>) -> Result<Vec<u8>> {
    let large = answer.byte_len() > LARGE;
    let work = move || {
        let mut buffer = framing::begin(answer.byte_len() + 256);
        protobuf::write(&answer, false, &mut buffer).map_err(|error| tag(&answer.wanted.id, error))?;
        let buffer = framing::finish(buffer, coding)?;
        answer.encoded();
        Ok(buffer)
    };
    run(dataplane, large, work).await
}
