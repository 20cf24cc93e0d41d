//! The gRPC face: the methods of the Open Inference Protocol, on hyper's HTTP/2 directly.
//!
//! Its own framing rather than a generated tonic service: both take the same processor time per small call, but here a
//! large message is decoded, compressed and encoded in the pool, counts against the bytes in memory, has its time-outs, and
//! is copied once on its way to the slab and once from it. What few clients call (health, reflection) is tonic's; Triton's
//! extensions are in [`crate::faces`].

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::Uri;
use http::request::Parts;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::answer::{Answer, Ticket};
use crate::body::Reader;
use crate::connection::Busy;
use crate::dataplane::Dataplane;
use crate::error::{Code, Error, Result};
use crate::faces::coding::{Coding, Message};
use crate::faces::{self, deadline, durable, services, stream};
use crate::framing::{self, Reply};
use crate::inference;
use crate::pool::LARGE;
use crate::proto::model_metadata_response::TensorMetadata;
use crate::proto::{self, ModelInferRequest};
use crate::protobuf;
use crate::request::{Sender, tag};
use crate::tensor::TensorSpec;

/// The service's full name.
pub const SERVICE: &str = "inference.GRPCInferenceService";

/// Answers one call; dropping the future cancels it. A stream keeps its connection busy; an answer that is complete does not,
/// so that a client which never reads it is swept away in the end.
pub async fn call(dataplane: &Arc<Dataplane>, mut request: Box<(Parts, Incoming)>, busy: Busy) -> Reply {
    let (parts, body) = &mut *request;
    let Some(method) = method(&parts.uri) else {
        return Box::pin(services::call(dataplane, *request, busy)).await;
    };
    let answered = match deadline::of_call(&parts.headers) {
        Err(error) => Err(error),
        Ok(time) if method == "ModelStreamInfer" => stream::call(dataplane, *request, time, busy),
        Ok(None) => unary(dataplane, method, parts, body, None).await,
        // Boxed, as every rare way: the future of an inference is moved about, and shall be small.
        Ok(Some(time)) => {
            let end = Instant::now().checked_add(time);
            Box::pin(timeout(time, unary(dataplane, method, parts, body, end)))
                .await
                .unwrap_or_else(|_| Err(deadline::passed()))
        }
    };
    answered.unwrap_or_else(framing::refusal)
}

/// The method's name, if it is one of this service.
fn method(uri: &Uri) -> Option<&str> {
    uri.path().strip_prefix('/')?.strip_prefix(SERVICE)?.strip_prefix('/')
}

async fn unary(
    dataplane: &Arc<Dataplane>,
    method: &str,
    parts: &Parts,
    body: &mut Incoming,
    deadline: Option<Instant>,
) -> Result<Reply> {
    let (coding, back) = Coding::of_call(&parts.headers)?;
    let mut data = Reader::new(dataplane).all(body).await?;
    let message = framing::take(&mut data, coding, dataplane.config.max_body_bytes)?;
    let message = message.ok_or_else(framing::cut_off)?;
    if !data.is_empty() {
        return Err(Error::unsupported("a unary call takes one message, this one has more"));
    }
    let answer = if method == "ModelInfer" {
        let encode = move |answer: &Answer| {
            let mut buffer = framing::begin(answer.byte_len() + 256);
            protobuf::write(answer, &mut buffer)?;
            framing::finish(buffer, back)
        };
        let kept = dataplane.durable.is_some().then(|| message.clone());
        match (submit(dataplane, dataplane.sender(&parts.headers, deadline), message).await, kept) {
            (Err(Error { code: Code::Durable, .. }), Some(message)) => {
                framing::finish(Box::pin(durable::call(dataplane, message)).await?, back)?
            }
            (submitted, _) => inference::finish(&dataplane.pool, submitted?, is_large, encode).await?,
        }
    } else {
        framing::finish(Box::pin(core(dataplane, method, message)).await?, back)?
    };
    Ok(framing::whole(dataplane.memory.count(answer), back))
}

/// Whether encoding an answer would hold up a runtime thread.
pub fn is_large(answer: &Answer) -> bool {
    answer.byte_len() > LARGE
}

/// Puts a message's request into its model's queue: decodes it, then goes the way of all faces. Not `async`, so that nothing
/// is kept twice.
pub fn submit(
    dataplane: &Arc<Dataplane>,
    sender: Sender,
    message: Message,
) -> impl Future<Output = Result<Ticket>> {
    let (is_large, shared) = (message.is_large(), Arc::clone(dataplane));
    let submit = move || {
        let (message, mut held) = (message.plain(&shared)?, shared.memory.hold());
        if is_large {
            held.grow(protobuf::decoded_bytes(&message, 0))?;
        }
        let request: ModelInferRequest = decode(message)?;
        let model = shared.model(&request.model_name, &request.model_version)?;
        let parsed = protobuf::parse(&request).map_err(|error| tag(&request.id, error));
        inference::submit(&model, sender, parsed)
    };
    dataplane.pool.run(is_large, submit)
}

/// The protocol's own methods, save inference; an answer has room for its prefix.
async fn core(dataplane: &Arc<Dataplane>, method: &str, message: Message) -> Result<Vec<u8>> {
    let shared = Arc::clone(dataplane);
    let message = dataplane.pool.run(message.is_large(), move || message.plain(&shared)).await?;
    Ok(match method {
        "ServerLive" => reply(&proto::ServerLiveResponse { live: true }),
        "ServerReady" => reply(&proto::ServerReadyResponse { ready: dataplane.is_ready() }),
        "ModelReady" => {
            let request: proto::ModelReadyRequest = decode(message)?;
            // As in Triton, a model that nobody knows is no error here: it is not ready.
            let model = dataplane.model(&request.name, &request.version);
            reply(&proto::ModelReadyResponse { ready: model.is_ok_and(|model| model.is_ready()) })
        }
        "ServerMetadata" => reply(&server_metadata(dataplane)),
        "ModelMetadata" => {
            let request: proto::ModelMetadataRequest = decode(message)?;
            reply(&model_metadata(dataplane, &request.name, &request.version)?)
        }
        _ => return faces::grpc(dataplane, method, message).await,
    })
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
pub fn decode<M: prost::Message + Default>(message: Bytes) -> Result<M> {
    M::decode(message).map_err(|error| Error::invalid(format!("the request is not a valid message: {error}")))
}

/// Encodes an answer message behind the room for its prefix.
pub fn reply(message: &impl prost::Message) -> Vec<u8> {
    let mut buffer = framing::begin(message.encoded_len());
    message.encode(&mut buffer).expect("a vector has room for everything");
    buffer
}
