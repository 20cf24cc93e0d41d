//! `ModelStreamInfer`, Triton's bidirectional stream: reads requests while it answers others, answers as they are completed.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response;
use http::request::Parts;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Status;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;

use crate::body::{Coding, Received};
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::framing::{self, Framed, GrpcBody, PREFIX, trailers};
use crate::grpc::{late, reply, run, submit};
use crate::pool::LARGE;
use crate::proto;
use crate::protobuf;
use crate::request::tag;

/// Most requests of one stream that are under way; further ones are not read.
const MAX_UNDER_WAY: usize = 256;

/// Every extra second for the rest of a message is earned by so many bytes.
const BYTES_PER_SECOND: u64 = 64 << 10;

/// Answers the call; its work ends when its answer is dropped.
pub(crate) fn call(
    dataplane: Arc<Dataplane>,
    parts: &Parts,
    body: Incoming,
    time: Option<Duration>,
) -> Result<Response<GrpcBody>, Status> {
    let (coding, back) = framing::codings(&parts.headers)?;
    let strict = parts.headers.get("triton_grpc_error").is_some_and(|value| value == "true");
    let (answers, receiver) = mpsc::channel(16);
    let gone = answers.clone();
    let stream = Stream { dataplane, answers, coding, back, strict };
    tokio::spawn(async move {
        let work = async {
            let ended = match time {
                Some(time) => timeout(time, stream.task(body)).await.unwrap_or_else(|_| Err(late())),
                None => stream.task(body).await,
            };
            stream.send(trailers(&ended.err().unwrap_or_else(|| Status::ok("")))).await;
        };
        // When the client has gone, everything under way is dropped and thereby cancelled.
        tokio::select! { () = work => {}, () = gone.closed() => {} }
    });
    let body = tonic::body::Body::new(StreamBody::new(ReceiverStream::new(receiver)));
    Ok(framing::answer(GrpcBody::Boxed(body), back))
}

#[derive(Clone)]
struct Stream {
    dataplane: Arc<Dataplane>,
    answers: mpsc::Sender<Result<Frame<Bytes>, Status>>,
    coding: Option<Coding>,
    back: Option<Coding>,
    /// A failure ends the stream with a status, instead of standing in a message.
    strict: bool,
}

impl Stream {
    async fn send(&self, frame: Frame<Bytes>) {
        // A receiver that has gone away needs no answer.
        drop(self.answers.send(Ok(frame)).await);
    }

    async fn task(&self, body: Incoming) -> Result<(), Status> {
        let memory = &self.dataplane.memory;
        let mut messages = Messages { body, received: Received { data: Bytes::new(), held: memory.hold() } };
        let mut under_way = JoinSet::new();
        let mut is_open = true;
        while is_open || !under_way.is_empty() {
            tokio::select! {
                message = messages.next(&self.dataplane), if is_open && under_way.len() < MAX_UNDER_WAY => {
                    match message? {
                        Some(message) => drop(under_way.spawn(self.clone().answer(message))),
                        None => is_open = false,
                    }
                }
                Some(done) = under_way.join_next() => {
                    done.unwrap_or_else(|_| Err(Status::internal("the server failed on this request")))?;
                }
            }
        }
        Ok(())
    }

    async fn answer(self, message: Framed) -> Result<(), Status> {
        let answer = match self.infer(message).await {
            Ok(answer) => answer,
            Err(error) if self.strict => return Err(error.into()),
            Err(error) => {
                let error_message = error.message.into_owned();
                let infer_response = Some(proto::ModelInferResponse::default());
                reply(&proto::ModelStreamInferResponse { error_message, infer_response }, self.back)?
            }
        };
        self.send(Frame::data(self.dataplane.memory.count(answer))).await;
        Ok(())
    }

    async fn infer(&self, message: Framed) -> Result<Vec<u8>> {
        let answer = submit(&self.dataplane, message, self.coding).await?.answer().await?;
        let back = self.back;
        run(&self.dataplane, answer.byte_len() > LARGE, move || {
            let mut message = Vec::with_capacity(answer.byte_len() + 256);
            protobuf::write(&answer, true, &mut message).map_err(|error| tag(&answer.wanted.id, error))?;
            let mut buffer = framing::begin(message.len() + 16);
            protobuf::write_field(2, &message, &mut buffer);
            let buffer = framing::finish(buffer, back)?;
            answer.encoded();
            Ok(buffer)
        })
        .await
    }
}

/// What has been read of a request's body.
struct Messages {
    body: Incoming,
    received: Received,
}

impl Messages {
    /// The next message, however long the client takes to begin it.
    async fn next(&mut self, dataplane: &Dataplane) -> Result<Option<Framed>> {
        let (config, received) = (&dataplane.config, &mut self.received);
        loop {
            if let Some(message) = Framed::take(received, config, &dataplane.memory)? {
                return Ok(Some(message));
            }
            let earned = Duration::from_secs(received.data.len() as u64 / BYTES_PER_SECOND);
            let patience = Duration::from_millis(config.body_timeout_ms) + earned;
            let frame = if received.data.is_empty() {
                self.body.frame().await
            } else {
                let late = |_| Error::invalid("the message did not arrive in time");
                timeout(patience, self.body.frame()).await.map_err(late)?
            };
            match frame {
                None if received.data.is_empty() => return Ok(None),
                None => return Err(Error::internal("the call ended within a message")),
                Some(Err(error)) => return Err(Error::cancelled(format!("the call broke off: {error}"))),
                Some(Ok(frame)) => append(received, &frame.into_data().unwrap_or_default())?,
            }
        }
    }
}

/// Growing is amortised: our own bytes come back with their spare room.
fn append(received: &mut Received, chunk: &[u8]) -> Result<()> {
    received.held.grow(received.data.len() + chunk.len())?;
    let mut gathered = BytesMut::from(std::mem::take(&mut received.data));
    gathered.reserve(chunk.len().max(PREFIX));
    gathered.extend_from_slice(chunk);
    received.data = gathered.freeze();
    Ok(())
}
