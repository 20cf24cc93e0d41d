//! Answers to clients, whole or streamed, over HTTP and gRPC alike; refusals among them.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use serde_json::json;
use tonic::Status;

use crate::connection::Busy;
use crate::error::{Code, Error, Result};
use crate::status;

/// What clients read as JSON.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer of any face.
pub type Reply = Response<Outgoing>;

/// What is still to be sent of an answer.
#[derive(Default)]
pub enum Outgoing {
    /// A body over HTTP.
    Http(Bytes),
    /// The one message of a gRPC call that succeeded, prefix included; then, `None`, its trailers.
    Grpc(Option<Bytes>),
    /// A stream keeps its connection busy; an answer that is complete does not, so that a client which never reads it is
    /// swept away in the end.
    Stream(tonic::body::Body, Option<Busy>),
    /// Nothing: all has been said, in the headers or before.
    #[default]
    Done,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Self::Stream(body, _) = &mut *self {
            return Pin::new(body).poll_frame(context);
        }
        let (frame, rest) = match std::mem::take(&mut *self) {
            Self::Http(body) if !body.is_empty() => (Frame::data(body), Self::Done),
            Self::Grpc(Some(message)) => (Frame::data(message), Self::Grpc(None)),
            Self::Grpc(None) => (trailers(&Status::ok("")), Self::Done),
            _ => return Poll::Ready(None),
        };
        *self = rest;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_empty(),
            Self::Stream(body, _) => body.is_end_stream(),
            Self::Grpc(_) => false,
            Self::Done => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(body) => SizeHint::with_exact(body.len() as u64),
            Self::Done => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

/// How a gRPC call ended.
pub fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::with_capacity(2);
    status.add_header(&mut headers).expect("a message is percent-encoded");
    Frame::trailers(headers)
}

/// An answer over HTTP, of any content type.
pub fn http(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Reply {
    let mut reply = Response::new(Outgoing::Http(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

/// A JSON answer.
pub fn json(status: StatusCode, json: &impl ToString) -> Reply {
    http(status, JSON, json.to_string().into())
}

fn with_header(mut reply: Reply, name: HeaderName, value: HeaderValue) -> Reply {
    reply.headers_mut().insert(name, value);
    reply
}

/// A refusal over HTTP: a status, a JSON sentence, and at most one header that belongs to it.
#[cold]
pub fn refusal(error: &Error) -> Reply {
    let reply = json(status::http(error.code), &json!({ "error": error.message }));
    match error.code {
        Code::Unavailable => with_header(reply, RETRY_AFTER, error.retry_after_s.into()),
        // The rest of the body may still come.
        Code::Timeout => with_header(reply, CONNECTION, HeaderValue::from_static("close")),
        Code::Unsupported => with_header(reply, ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate")),
        _ => reply,
    }
}

/// The refusal of a method that a path does not have; `None` if it is one of those `allowed`.
pub fn forbidden(method: &http::Method, allowed: &'static str) -> Option<Reply> {
    let is_allowed = allowed.split(", ").any(|name| name == method.as_str());
    let sentence = || json!({ "error": format!("this path answers {allowed} only") });
    (!is_allowed).then(|| {
        with_header(
            json(StatusCode::METHOD_NOT_ALLOWED, &sentence()),
            ALLOW,
            HeaderValue::from_static(allowed),
        )
    })
}

/// There is no such path.
#[cold]
pub fn no_path(path: &str) -> Error {
    Error::not_found(format!("no such path: '{path}', hint: GET /v2 tells what is served"))
}
