//! `ModelStreamInfer`, Triton's bidirectional stream: requests run side by side and are answered in the order in which they
//! came.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{self, Stream, StreamExt};
use http::request::Parts;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::coding::{Coding, Message};
use super::deadline;
use crate::answer::Answer;
use crate::body::Reader;
use crate::connection::Busy;
use crate::dataplane::Dataplane;
use crate::error::{Error, PANICKED, Result};
use crate::framing::{self, Reply, trailers};
use crate::grpc::{is_large, reply, submit};
use crate::inference;
use crate::proto;
use crate::protobuf;
use crate::request::Sender;

/// Most requests of one stream that are under way; further ones are not read.
const MAX_UNDER_WAY: usize = 256;

/// The parameter of a response by which Triton's clients know that nothing more follows for a request.
const FINAL_RESPONSE: &[u8] = b"\x0a\x15triton_final_response\x12\x02\x08\x01";

/// A call with its settings.
struct Call {
    dataplane: Arc<Dataplane>,
    coding: Option<Coding>,
    back: Option<Coding>,
    sender: Sender,
    /// A failure ends the stream with a status, instead of standing in a message.
    strict: bool,
    #[expect(dead_code, reason = "it is held")]
    busy: Busy,
}

/// Answers the call; its work ends when its answer is dropped.
pub(crate) fn call(
    dataplane: &Arc<Dataplane>,
    (parts, body): (Parts, Incoming),
    time: Option<Duration>,
    busy: Busy,
) -> Result<Reply> {
    let (coding, back) = Coding::of_call(&parts.headers)?;
    let strict = parts.headers.get("triton_grpc_error").is_some_and(|value| value == "true");
    let deadline = time.and_then(|time| Instant::now().checked_add(time));
    let sender = dataplane.sender(&parts.headers, deadline.map(Instant::into_std));
    let call = Arc::new(Call { dataplane: Arc::clone(dataplane), coding, back, sender, strict, busy });
    let shared = Arc::clone(&call);
    let answers = messages(body, call)
        .map(move |message| {
            // A panic costs this request only; the panic hook has told of it already.
            let answered = AssertUnwindSafe(answer(Arc::clone(&shared), message)).catch_unwind();
            answered.map(|answer| answer.unwrap_or_else(|_| Err(Error::internal(PANICKED))))
        })
        .buffered(MAX_UNDER_WAY);
    let body = tonic::body::Body::new(StreamBody::new(frames(answers, deadline)));
    Ok(framing::answer(body, back))
}

/// The messages of a call, however long the client takes to begin one; a failure is the last.
fn messages(body: Incoming, call: Arc<Call>) -> impl Stream<Item = Result<Message>> {
    let reader = Reader::new(&call.dataplane);
    stream::unfold(Some((body, reader)), move |state| {
        let call = Arc::clone(&call);
        async move {
            let (mut body, mut reader) = state?;
            match next(&mut body, &mut reader, &call).await.transpose()? {
                Ok(message) => Some((Ok(message), Some((body, reader)))),
                failure => Some((failure, None)),
            }
        }
    })
}

async fn next(body: &mut Incoming, reader: &mut Reader, call: &Call) -> Result<Option<Message>> {
    let mut began = None;
    loop {
        let message = framing::take(&mut reader.data, call.coding, call.dataplane.config.max_body_bytes)?;
        if let Some(Message { data, coding }) = message {
            return Ok(Some(Message { data: reader.held.with(data), coding }));
        }
        let is_idle = reader.data.is_empty();
        if !is_idle {
            began.get_or_insert_with(Instant::now);
        }
        if !reader.more(body, began).await? {
            return if is_idle { Ok(None) } else { Err(framing::cut_off()) };
        }
    }
}

async fn answer(call: Arc<Call>, message: Result<Message>) -> Result<Bytes> {
    // A message that could not be read ends the stream in any case.
    let (message, back) = (message?, call.back);
    let encode = move |answer: &Answer| {
        let mut message = Vec::with_capacity(answer.byte_len() + 256);
        protobuf::write(answer, &mut message)?;
        protobuf::write_field(4, FINAL_RESPONSE, &mut message);
        let mut buffer = framing::begin(message.len() + 16);
        protobuf::write_field(2, &message, &mut buffer);
        framing::finish(buffer, back)
    };
    let inferred = async {
        let ticket = submit(&call.dataplane, call.sender, message).await?;
        inference::finish(&call.dataplane.pool, ticket, is_large, encode).await
    };
    let answer = match inferred.await {
        Err(error) if !call.strict => {
            let error_message = error.message.into_owned();
            let infer_response = Some(proto::ModelInferResponse::default());
            framing::finish(reply(&proto::ModelStreamInferResponse { error_message, infer_response }), back)?
        }
        answer => answer?,
    };
    Ok(call.dataplane.memory.count(answer))
}

/// The answers, then how the call ended; what is still under way by then is dropped, and thereby cancelled.
fn frames(
    answers: impl Stream<Item = Result<Bytes>>,
    deadline: Option<Instant>,
) -> impl Stream<Item = Result<Frame<Bytes>, Status>> {
    stream::unfold(Some(Box::pin(answers)), move |answers| async move {
        let mut answers = answers?;
        let answer = match deadline {
            None => answers.next().await,
            Some(deadline) => tokio::select! {
                answer = answers.next() => answer,
                () = sleep_until(deadline) => Some(Err(deadline::passed())),
            },
        };
        let (frame, rest) = match answer {
            Some(Ok(answer)) => (Frame::data(answer), Some(answers)),
            Some(Err(error)) => (trailers(&error.into()), None),
            None => (trailers(&Status::ok("")), None),
        };
        Some((Ok(frame), rest))
    })
}
