//! gRPC on HTTP/2: the five-byte prefix of messages, and how a call ends.

use bytes::{Buf, Bytes};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tonic::Status;
use tonic::body::Body;

use crate::error::{Error, Result};
use crate::faces::coding::{ACCEPTED, Coding, Message};

/// The answer to a call.
pub type Reply = Response<Body>;

/// Bytes before each message: one flag (compressed or not) and the length, big-endian.
pub const PREFIX: usize = 5;

/// Takes the first message, of at most `limit` bytes, out of what has been received; `None` = it is not complete.
pub fn take(data: &mut Bytes, coding: Option<Coding>, limit: usize) -> Result<Option<Message>> {
    let Some(([flag, len @ ..], rest)) = data.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*len) as usize;
    let coding = match (flag, coding) {
        (0, _) => None,
        (1, Some(coding)) => Some(coding),
        (1, None) => {
            return Err(Error::internal(
                "the message is flagged as compressed, but grpc-encoding is not set",
            ));
        }
        (flag, _) => {
            let what = format!("a message begins with the flag {flag}, hint: 0 or 1 are possible");
            return Err(Error::internal(what));
        }
    };
    if len > limit {
        return Err(Error::too_large(format!(
            "a message of {len} bytes exceeds the maximum allowed value of {limit} bytes, hint: raise --max-body-bytes"
        )));
    }
    if rest.len() < len {
        return Ok(None);
    }
    data.advance(PREFIX);
    Ok(Some(Message { data: data.split_to(len), coding }))
}

/// The end of a call whose last message is not complete.
#[cold]
pub fn cut_off() -> Error {
    Error::internal("the call ended within a message")
}

/// A buffer for an answer: room for the prefix, and the message to come.
pub fn begin(message_len: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(PREFIX + message_len);
    buffer.resize(PREFIX, 0);
    buffer
}

/// Completes what [`begin`] began; the message stands behind the prefix.
pub fn finish(mut buffer: Vec<u8>, coding: Option<Coding>) -> Result<Vec<u8>> {
    buffer[0] = u8::from(coding.is_some_and(|coding| coding.pack(&mut buffer, PREFIX)));
    let len = u32::try_from(buffer.len() - PREFIX)
        .map_err(|_| Error::too_large("the answer is larger than 4 GiB, which gRPC cannot carry"))?;
    buffer[1..PREFIX].copy_from_slice(&len.to_be_bytes());
    Ok(buffer)
}

/// A call that ends before it has answered anything.
#[cold]
pub fn refusal(error: impl Into<Status>) -> Reply {
    let mut response = error.into().into_http();
    response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static(ACCEPTED));
    response
}

/// The answer to a call that succeeded: its one message, then how it ended.
pub fn whole(message: Bytes, coding: Option<Coding>) -> Reply {
    let frames = [Frame::data(message), trailers(&Status::ok(""))];
    answer(Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Status>)))), coding)
}

/// How a call ended.
pub fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::with_capacity(2);
    status.add_header(&mut headers).expect("a message is percent-encoded");
    Frame::trailers(headers)
}

/// The head of an answer.
pub fn answer(body: Body, coding: Option<Coding>) -> Reply {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    if let Some(coding) = coding {
        headers.insert("grpc-encoding", coding.header());
    }
    response
}
