//! gRPC messages on HTTP/2: the five-byte prefix, compression, and how a call ends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;
use tonic::Status;

use crate::body::{Coding, Received};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory::{Held, Memory};
use crate::pool::LARGE;
use crate::status;

/// Bytes before each message: one flag (compressed or not) and the length, big-endian.
pub const PREFIX: usize = 5;

/// Every extra second for the rest of a message is earned by so many bytes.
const BYTES_PER_SECOND: u64 = 64 << 10;

/// The names that `grpc-accept-encoding` carries.
const ACCEPTED: &str = "identity,gzip,deflate";

/// What a request's messages are compressed with, if they are flagged as compressed.
pub fn coding(headers: &HeaderMap) -> Result<Option<Coding>> {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(None),
        Some(b"gzip") => Ok(Some(Coding::Gzip)),
        Some(b"deflate") => Ok(Some(Coding::Deflate)),
        Some(other) => Err(Error::unsupported(format!(
            "grpc-encoding '{}' is not supported, hint: use one of {ACCEPTED}",
            String::from_utf8_lossy(other)
        ))),
    }
}

/// Answers are compressed as the request was, if the client says that it accepts that.
pub fn coding_back(coding: Option<Coding>, headers: &HeaderMap) -> Option<Coding> {
    let accepted = headers.get("grpc-accept-encoding")?.to_str().ok()?;
    coding.filter(|coding| accepted.split(',').any(|name| coding.header() == name.trim()))
}

/// One message as it came in.
pub struct Framed {
    message: Received,
    compressed: bool,
}

impl Framed {
    /// Whether decoding it would hold up a runtime thread; what a compressed one expands to is not known before.
    pub fn is_large(&self) -> bool {
        self.compressed || self.message.data.len() > LARGE
    }

    /// The message itself; at most `limit` bytes come out of a compressed one.
    pub fn decode(self, coding: Option<Coding>, limit: usize, memory: &Memory) -> Result<Received> {
        match coding {
            _ if !self.compressed => Ok(self.message),
            Some(coding) => coding.unpack(&self.message, limit, memory),
            None => Err(Error::internal("the message is flagged as compressed, but grpc-encoding is not set")),
        }
    }
}

/// Reads messages from a request's body.
pub struct Messages<B> {
    body: B,
    buffer: Bytes,
    held: Held,
    memory: Memory,
    limit: usize,
    patience: Duration,
}

impl<B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin> Messages<B> {
    /// `config` bounds a message's size and the time it may take.
    pub fn new(body: B, config: &Config, memory: &Memory) -> Self {
        Self {
            body,
            buffer: Bytes::new(),
            held: memory.hold(),
            memory: memory.clone(),
            limit: config.max_body_bytes,
            patience: Duration::from_millis(config.body_timeout_ms),
        }
    }

    /// The only message of a unary call.
    pub async fn only(&mut self) -> Result<Framed> {
        let message = self.read(true).await?.ok_or_else(|| Error::internal("the call has no message"))?;
        // Read to the end, or the client would see its stream reset.
        if self.buffer.is_empty() && (self.body.is_end_stream() || self.read(true).await?.is_none()) {
            return Ok(message);
        }
        Err(Error::unsupported("a unary call takes one message, this one has more"))
    }

    /// The next message of a stream, however long the client takes to begin it.
    pub async fn next(&mut self) -> Result<Option<Framed>> {
        self.read(false).await
    }

    async fn read(&mut self, hurry: bool) -> Result<Option<Framed>> {
        loop {
            if let Some(message) = self.split()? {
                return Ok(Some(message));
            }
            let chunk = if hurry || !self.buffer.is_empty() {
                let earned = Duration::from_secs(self.buffer.len() as u64 / BYTES_PER_SECOND);
                tokio::time::timeout(self.patience + earned, self.chunk())
                    .await
                    .map_err(|_| Error::invalid("the message did not arrive in time"))??
            } else {
                self.chunk().await?
            };
            match chunk {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Error::internal("the call ended within a message")),
                Some(chunk) if self.buffer.is_empty() => self.buffer = chunk,
                Some(chunk) => {
                    self.held.grow(self.buffer.len() + chunk.len())?;
                    // Our own bytes come back with their spare room: growing is amortised.
                    let mut gathered = BytesMut::from(std::mem::take(&mut self.buffer));
                    gathered.extend_from_slice(&chunk);
                    self.buffer = gathered.freeze();
                }
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| Error::cancelled(format!("the call broke off: {error}")))?;
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    fn split(&mut self) -> Result<Option<Framed>> {
        let Some(([flag, len @ ..], rest)) = self.buffer.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*len) as usize;
        if *flag > 1 {
            return Err(Error::internal(format!("a message begins with the flag {flag}, hint: 0 or 1 are possible")));
        }
        if len > self.limit {
            return Err(Error::too_large(format!(
                "a message of {len} bytes exceeds the maximum allowed value of {} bytes, hint: raise --max-body-bytes",
                self.limit
            )));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let compressed = *flag == 1;
        self.held.grow(len)?;
        self.buffer.advance(PREFIX);
        let (data, held) = (self.buffer.split_to(len), std::mem::replace(&mut self.held, self.memory.hold()));
        Ok(Some(Framed { message: Received { data, held }, compressed }))
    }
}

/// A buffer for an answer: room for the prefix, and the message to come.
pub fn begin(message_len: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(PREFIX + message_len);
    buffer.resize(PREFIX, 0);
    buffer
}

/// Completes what [`begin`] began; the message stands behind the prefix.
pub fn finish(mut buffer: Vec<u8>, coding: Option<Coding>) -> Result<Vec<u8>> {
    if let Some(packed) = coding.and_then(|coding| coding.pack(&buffer[PREFIX..])) {
        buffer.truncate(PREFIX);
        buffer.extend_from_slice(&packed);
        buffer[0] = 1;
    }
    let Ok(len) = u32::try_from(buffer.len() - PREFIX) else {
        return Err(Error::too_large("the answer is larger than 4 GiB, which gRPC cannot carry"));
    };
    buffer[1..PREFIX].copy_from_slice(&len.to_be_bytes());
    Ok(buffer)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(status::grpc(error.code), error.message)
    }
}

/// The body of an answer.
pub enum GrpcBody {
    /// One message, then the trailers of a call that succeeded.
    Message(Option<Bytes>),
    /// Messages as they come, then trailers.
    Stream(mpsc::Receiver<Result<Bytes, Status>>),
    /// All has been said in the headers, or in the trailers just sent.
    Done,
    /// Made by a tonic service.
    Tonic(tonic::body::Body),
}

impl Default for GrpcBody {
    fn default() -> Self {
        Self::Done
    }
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::with_capacity(2);
    if status.add_header(&mut headers).is_err() {
        headers.insert("grpc-status", HeaderValue::from_static("13"));
    }
    Frame::trailers(headers)
}

fn success() -> Frame<Bytes> {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert("grpc-status", HeaderValue::from_static("0"));
    Frame::trailers(headers)
}

impl Body for GrpcBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match &mut *self {
            Self::Message(message) => match message.take() {
                Some(message) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                None => success(),
            },
            Self::Stream(messages) => match std::task::ready!(messages.poll_recv(context)) {
                Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                Some(Err(status)) => trailers(&status),
                None => success(),
            },
            Self::Done => return Poll::Ready(None),
            Self::Tonic(body) => return Pin::new(body).poll_frame(context),
        };
        *self = Self::Done;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Done => true,
            Self::Message(_) | Self::Stream(_) => false,
            Self::Tonic(body) => body.is_end_stream(),
        }
    }
}

/// A call that ends before it has answered anything.
#[cold]
pub fn refusal(status: Status) -> Response<GrpcBody> {
    let mut response = status.into_http();
    response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static(ACCEPTED));
    response
}

/// The head of an answer.
pub fn answer(body: GrpcBody, coding: Option<Coding>) -> Response<GrpcBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    if let Some(coding) = coding {
        headers.insert("grpc-encoding", coding.header());
    }
    response
}

/// The time that a client gives a call: at most eight digits and a unit.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().filter(|text| text.len() <= 9).and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let count = digits.parse::<u32>().ok()?;
        match unit {
            "H" => Some(Duration::from_secs(u64::from(count) * 3600)),
            "M" => Some(Duration::from_secs(u64::from(count) * 60)),
            "S" => Some(Duration::from_secs(count.into())),
            "m" => Some(Duration::from_millis(count.into())),
            "u" => Some(Duration::from_micros(count.into())),
            "n" => Some(Duration::from_nanos(count.into())),
            _ => None,
        }
    });
    let hint = || Error::invalid(format!("grpc-timeout {value:?} is not a time, hint: for example 500m or 2S"));
    parsed.map(Some).ok_or_else(hint)
}
