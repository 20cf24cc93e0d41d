//! gRPC on HTTP/2: the five-byte prefix of messages, compression, and how a call ends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::body::{Body, Frame};
use tonic::Status;

use crate::body::{Coding, Received};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::memory::Memory;
use crate::pool::LARGE;
use crate::status;

/// Bytes before each message: one flag (compressed or not) and the length, big-endian.
pub const PREFIX: usize = 5;

/// The names that `grpc-accept-encoding` carries.
const ACCEPTED: &str = "identity,gzip,deflate";

/// What a request's messages are compressed with (if flagged so), and what its answers shall be: the same, if the
/// client says that it accepts that.
pub fn codings(headers: &HeaderMap) -> Result<(Option<Coding>, Option<Coding>)> {
    let coding = match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => return Ok((None, None)),
        Some(b"gzip") => Coding::Gzip,
        Some(b"deflate") => Coding::Deflate,
        Some(other) => {
            let name = String::from_utf8_lossy(other);
            return Err(Error::unsupported(format!(
                "grpc-encoding '{name}' is not supported, hint: use one of {ACCEPTED}"
            )));
        }
    };
    let accepted =
        headers.get("grpc-accept-encoding").and_then(|names| names.to_str().ok()).unwrap_or_default();
    let is_accepted = accepted.split(',').any(|name| coding.header() == name.trim());
    Ok((Some(coding), is_accepted.then_some(coding)))
}

/// One message as it came in.
pub struct Framed {
    message: Received,
    compressed: bool,
}

impl Framed {
    /// Takes the first message out of what has been received; `None` = it is not complete.
    pub fn take(received: &mut Received, config: &Config, memory: &Memory) -> Result<Option<Self>> {
        let Some(([flag, len @ ..], rest)) = received.data.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let (len, limit) = (u32::from_be_bytes(*len) as usize, config.max_body_bytes);
        if *flag > 1 {
            let what = format!("a message begins with the flag {flag}, hint: 0 or 1 are possible");
            return Err(Error::internal(what));
        }
        if len > limit {
            return Err(Error::too_large(format!(
                "a message of {len} bytes exceeds the maximum allowed value of {limit} bytes, hint: raise --max-body-bytes"
            )));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let compressed = *flag == 1;
        received.data.advance(PREFIX);
        let data = received.data.split_to(len);
        let held = std::mem::replace(&mut received.held, memory.hold());
        Ok(Some(Self { message: Received { data, held }, compressed }))
    }

    /// The message of a unary call, whose whole body has been received.
    pub fn only(mut body: Received, config: &Config, memory: &Memory) -> Result<Self> {
        match Self::take(&mut body, config, memory)? {
            Some(message) if body.data.is_empty() => Ok(message),
            Some(_) => Err(Error::unsupported("a unary call takes one message, this one has more")),
            None => Err(Error::internal("the call ended within a message")),
        }
    }

    /// Whether decoding it would hold up a runtime thread; what a compressed one expands to is not known before.
    pub fn is_large(&self) -> bool {
        self.compressed || self.message.data.len() > LARGE
    }

    /// The message itself; at most `limit` bytes come out of a compressed one.
    pub fn decode(self, coding: Option<Coding>, limit: usize, memory: &Memory) -> Result<Received> {
        match coding {
            _ if !self.compressed => Ok(self.message),
            Some(coding) => coding.unpack(&self.message, limit, memory),
            None => {
                Err(Error::internal("the message is flagged as compressed, but grpc-encoding is not set"))
            }
        }
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
    let len = u32::try_from(buffer.len() - PREFIX)
        .map_err(|_| Error::too_large("the answer is larger than 4 GiB, which gRPC cannot carry"))?;
    buffer[1..PREFIX].copy_from_slice(&len.to_be_bytes());
    Ok(buffer)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(status::grpc(error.code), error.message)
    }
}

/// Bodies are read alike for both protocols, and refused with an HTTP status.
impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let code = match fault.status {
            StatusCode::REQUEST_TIMEOUT => tonic::Code::DeadlineExceeded,
            StatusCode::PAYLOAD_TOO_LARGE => tonic::Code::ResourceExhausted,
            StatusCode::SERVICE_UNAVAILABLE => tonic::Code::Unavailable,
            _ => tonic::Code::InvalidArgument,
        };
        Self::new(code, fault.message)
    }
}

/// The body of an answer.
#[derive(Default)]
pub enum GrpcBody {
    /// One message, then the trailers of a call that succeeded.
    Message(Bytes),
    /// Those trailers.
    Success,
    /// All has been said, in the headers or before.
    #[default]
    Done,
    /// A stream's, or that of a tonic service.
    Boxed(tonic::body::Body),
}

impl Body for GrpcBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Self::Boxed(body) = &mut *self {
            return Pin::new(body).poll_frame(context);
        }
        Poll::Ready(match std::mem::take(&mut *self) {
            Self::Message(message) => {
                *self = Self::Success;
                Some(Ok(Frame::data(message)))
            }
            Self::Success => Some(Ok(trailers(&Status::ok("")))),
            Self::Done | Self::Boxed(_) => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Done => true,
            Self::Boxed(body) => body.is_end_stream(),
            Self::Message(_) | Self::Success => false,
        }
    }
}

/// How a call ended.
pub fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::with_capacity(2);
    status.add_header(&mut headers).expect("a message is percent-encoded");
    Frame::trailers(headers)
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
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let nanos = match unit {
            "H" => 3_600_000_000_000,
            "M" => 60_000_000_000,
            "S" => 1_000_000_000,
            "m" => 1_000_000,
            "u" => 1_000,
            "n" => 1,
            _ => return None,
        };
        let count = digits.parse::<u64>().ok().filter(|_| digits.len() <= 8)?;
        Some(Duration::from_nanos(count.saturating_mul(nanos)))
    });
    let hint =
        || Error::invalid(format!("grpc-timeout {value:?} is not a time, hint: for example 500m or 2S"));
    parsed.map(Some).ok_or_else(hint)
}
