//! The gRPC face: the methods of the Open Inference Protocol, on hyper's HTTP/2 directly.
//!
//! Its own framing rather than a generated tonic service: both take the same processor time per small call, but here a
//! large message is decoded, compressed and encoded in the pool, counts against the bytes in memory, has its time-outs, and
//! is copied once on its way to the slab and once from it. What few clients call (health, reflection) is tonic's; Triton's
//! extensions are in [`crate::faces`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Status;

use crate::answer::{Answer, Ticket};
use crate::body::Coding;
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::faces::{self, services};
use crate::framing::{self, Framed, GrpcBody, Messages};
use crate::pool::LARGE;
use crate::proto::model_metadata_response::TensorMetadata;
use crate::proto::{self, ModelInferRequest};
use crate::protobuf;
use crate::request::tag;
use crate::stats::Refusal;
use crate::tensor::TensorSpec;

/// The service's full name.
pub const SERVICE: &str = "inference.GRPCInferenceService";

/// Most requests of one stream that are under way; further ones are not read.
const MAX_STREAMED: usize = 256;

/// Answers one call; dropping the future cancels it.
pub async fn call(dataplane: Arc<Dataplane>, request: Request<Incoming>) -> Response<GrpcBody> {
    let path = request.uri().path();
    if !path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE)).is_some_and(|rest| rest.starts_with('/')) {
        return Box::pin(services::call(dataplane, request)).await;
    }
    let (parts, body) = request.into_parts();
    let method = &parts.uri.path()[SERVICE.len() + 2..];
    let answered = match framing::timeout(&parts.headers) {
        Err(error) => Err(error.into()),
        Ok(time) if method == "ModelStreamInfer" => stream(dataplane, &parts, body, time),
        Ok(None) => unary(&dataplane, method, &parts, body).await,
        // Boxed, as every rare way: the future of an inference is moved about, and shall be small.
        Ok(Some(time)) => Box::pin(timeout(time, unary(&dataplane, method, &parts, body)))
            .await
            .unwrap_or_else(|_| Err(late())),
    };
    answered.unwrap_or_else(framing::refusal)
}

#[cold]
fn late() -> Status {
    Status::deadline_exceeded("the call's grpc-timeout has passed")
}

async fn unary(
    dataplane: &Arc<Dataplane>,
    method: &str,
    parts: &Parts,
    body: Incoming,
) -> Result<Response<GrpcBody>, Status> {
    let coding = framing::coding(&parts.headers)?;
    let back = framing::coding_back(coding, &parts.headers);
    let message = Messages::new(body, &dataplane.config, &dataplane.memory).only().await?;
    let answer = if method == "ModelInfer" {
        let answer = submit(dataplane, message, coding).await?.await?;
        encode(dataplane, answer, back, false).await?
    } else {
        let (limit, memory) = (dataplane.config.max_body_bytes, dataplane.memory.clone());
        let message = run(dataplane, message.is_large(), move || message.decode(coding, limit, &memory)).await?;
        Box::pin(core(dataplane, method, message.data, back)).await?
    };
    Ok(framing::answer(GrpcBody::Message(Some(dataplane.memory.count(answer))), back))
}

/// The protocol's own methods, save inference.
async fn core(dataplane: &Arc<Dataplane>, method: &str, message: Bytes, back: Option<Coding>) -> Result<Vec<u8>> {
    match method {
        "ServerLive" => reply(&proto::ServerLiveResponse { live: true }, back),
        "ServerReady" => reply(&proto::ServerReadyResponse { ready: dataplane.is_ready() }, back),
        "ModelReady" => {
            let request: proto::ModelReadyRequest = decode(message)?;
            // As in Triton, a model that nobody knows is no error here: it is not ready.
            let model = dataplane.model(&request.name, &request.version);
            reply(&proto::ModelReadyResponse { ready: model.is_ok_and(|model| model.is_ready()) }, back)
        }
        "ServerMetadata" => {
            let response = proto::ServerMetadataResponse {
                name: faces::SERVER_NAME.into(),
                version: dataplane.config.server_version.clone(),
                extensions: faces::EXTENSIONS.iter().map(ToString::to_string).collect(),
            };
            reply(&response, back)
        }
        "ModelMetadata" => reply(&model_metadata(dataplane, &decode(message)?)?, back),
        _ => faces::grpc(dataplane, method, message, back).await,
    }
}

fn model_metadata(
    dataplane: &Dataplane,
    request: &proto::ModelMetadataRequest,
) -> Result<proto::ModelMetadataResponse> {
    let model = dataplane.model(&request.name, &request.version)?;
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
async fn run<T: Send + 'static>(
    dataplane: &Dataplane,
    large: bool,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if large { Box::pin(dataplane.pool.run(work)).await } else { work() }
}

async fn submit(dataplane: &Arc<Dataplane>, message: Framed, coding: Option<Coding>) -> Result<Ticket> {
    let (large, shared) = (message.is_large(), Arc::clone(dataplane));
    let work = move || {
        let message = message.decode(coding, shared.config.max_body_bytes, &shared.memory)?;
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
async fn encode(dataplane: &Arc<Dataplane>, answer: Answer, coding: Option<Coding>, streamed: bool) -> Result<Vec<u8>> {
    let large = answer.byte_len() > LARGE;
    let work = move || {
        let mut buffer = framing::begin(answer.byte_len() + 256);
        let written = if streamed {
            let mut message = Vec::with_capacity(answer.byte_len() + 256);
            let written = protobuf::write(&answer, true, &mut message);
            protobuf::write_field(2, &message, &mut buffer);
            written
        } else {
            protobuf::write(&answer, false, &mut buffer)
        };
        written.map_err(|error| tag(&answer.wanted.id, error))?;
        let buffer = framing::finish(buffer, coding)?;
        answer.encoded();
        Ok(buffer)
    };
    run(dataplane, large, work).await
}

/// `ModelStreamInfer`: reads requests while it answers others; answers go out as they are completed.
fn stream(
    dataplane: Arc<Dataplane>,
    parts: &Parts,
    body: Incoming,
    time: Option<Duration>,
) -> Result<Response<GrpcBody>, Status> {
    let coding = framing::coding(&parts.headers)?;
    let back = framing::coding_back(coding, &parts.headers);
    let strict = parts.headers.get("triton_grpc_error").is_some_and(|value| value == "true");
    let (answers, receiver) = mpsc::channel(16);
    let mut messages = Messages::new(body, &dataplane.config, &dataplane.memory);
    tokio::spawn(async move {
        let gone = answers.clone();
        let answering = async {
            let ended = stream_task(&dataplane, &mut messages, &answers, (coding, back), strict);
            let ended = match time {
                Some(time) => timeout(time, ended).await.unwrap_or_else(|_| Err(late())),
                None => ended.await,
            };
            if let Err(status) = ended {
                // A receiver that has gone away needs no status.
                drop(answers.send(Err(status)).await);
            }
        };
        // When the client has gone, everything under way is dropped and thereby cancelled.
        tokio::select! { () = answering => {}, () = gone.closed() => {} }
    });
    Ok(framing::answer(GrpcBody::Stream(receiver), back))
}

type Answers = mpsc::Sender<Result<Bytes, Status>>;

async fn stream_task(
    dataplane: &Arc<Dataplane>,
    messages: &mut Messages<Incoming>,
    answers: &Answers,
    (coding, back): (Option<Coding>, Option<Coding>),
    strict: bool,
) -> Result<(), Status> {
    let mut under_way = JoinSet::new();
    let mut open = true;
    while open || !under_way.is_empty() {
        let message = tokio::select! {
            message = messages.next(), if open && under_way.len() < MAX_STREAMED => message?,
            Some(done) = under_way.join_next() => {
                done.unwrap_or_else(|_| Err(Status::internal("the server failed on this request")))?;
                continue;
            }
        };
        let Some(message) = message else {
            open = false;
            continue;
        };
        let (dataplane, answers) = (Arc::clone(dataplane), answers.clone());
        under_way.spawn(async move {
            let answered = async {
                let answer = submit(&dataplane, message, coding).await?.await?;
                encode(&dataplane, answer, back, true).await
            };
            let answer = match answered.await {
                Ok(answer) => answer,
                Err(error) if strict => return Err(error.into()),
                Err(error) => {
                    let error_message = error.message.into_owned();
                    let infer_response = Some(proto::ModelInferResponse::default());
                    reply(&proto::ModelStreamInferResponse { error_message, infer_response }, back)?
                }
            };
            drop(answers.send(Ok(dataplane.memory.count(answer))).await);
            Ok(())
        });
    }
    Ok(())
}
