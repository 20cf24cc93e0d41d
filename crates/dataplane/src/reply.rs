//! Answers over HTTP, refusals among them.

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::error::{Code, Error};
use crate::status;

/// What clients read as JSON.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer, whole.
pub type Reply = Response<Bytes>;

/// An answer over HTTP, of any content type.
pub fn http(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Reply {
    let mut reply = Response::new(body);
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
