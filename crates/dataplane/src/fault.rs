//! Refusals over HTTP: a status, a JSON sentence, and at most one header that belongs to it.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::error::Error;
use crate::stats::Refusal;
use crate::status;

/// What clients read as JSON.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer whose body is complete.
pub type Reply = Response<Full<Bytes>>;

/// Why a request is not answered as it wished.
#[derive(Debug)]
pub struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) message: Cow<'static, str>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let status = status::http(error.code);
        let retry = || (RETRY_AFTER, HeaderValue::from_static("1"));
        let header = (status == StatusCode::SERVICE_UNAVAILABLE).then(retry);
        Self { status, message: error.message, header }
    }
}

impl Fault {
    /// The path exists, with other methods.
    pub fn method(allowed: &'static str) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            message: format!("this path answers {allowed} only").into(),
            header: Some((ALLOW, HeaderValue::from_static(allowed))),
        }
    }

    /// No such path.
    pub fn path(path: &str) -> Self {
        Error::not_found(format!("no such path: '{path}', hint: GET /v2 tells what is served")).into()
    }

    /// The body took too long; the connection closes, because the rest of it may still come.
    pub fn body_timeout(limit_ms: u64) -> Self {
        Self {
            status: StatusCode::REQUEST_TIMEOUT,
            message: format!("the request body was not complete after {limit_ms} ms").into(),
            header: Some((CONNECTION, HeaderValue::from_static("close"))),
        }
    }

    /// A content coding other than gzip and deflate.
    pub fn unknown_coding() -> Self {
        Self {
            status: StatusCode::NOT_IMPLEMENTED,
            message: "Unsupported compression type".into(),
            header: Some((ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"))),
        }
    }

    /// As what a model counts it.
    pub fn refusal(&self) -> Refusal {
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => Refusal::BytesFull,
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge,
            StatusCode::REQUEST_TIMEOUT => Refusal::Deadline,
            _ => Refusal::Invalid,
        }
    }

    /// Whether the rest of the request's body may be read and thrown away, so that the client sees the answer.
    pub fn keeps_reading(&self) -> bool {
        self.status != StatusCode::REQUEST_TIMEOUT
    }

    /// The answer.
    pub fn reply(self) -> Reply {
        let mut reply = json(self.status, &serde_json::json!({ "error": self.message }));
        reply.headers_mut().extend(self.header.map(|(name, value)| (Some(name), value)));
        reply
    }
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Reply {
    reply(status, JSON, value.to_string().into())
}

/// An answer of any content type.
pub fn reply(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}
