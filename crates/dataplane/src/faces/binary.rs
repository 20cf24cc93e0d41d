//! The binary tensor extension over HTTP: a JSON head, and behind it the tensors' bytes; a header tells where it ends.

use http::{HeaderName, HeaderValue};

use crate::error::{Error, Result};
use crate::request::{InferRequest, parse_binary, parse_json, parse_raw};
use crate::tensor::ModelSpec;

/// Bytes of the JSON head in front of binary tensors.
pub const HEAD_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// What an answer with binary tensors is to a client.
pub const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Reads a request's body; without the header it is JSON.
pub fn parse<'a>(
    body: &'a [u8],
    head: Option<&HeaderValue>,
    spec: &'a ModelSpec,
) -> Result<InferRequest<'a>> {
    match head.map(|value| head_length(value, body.len())).transpose()? {
        None => parse_json(body),
        Some(0) => parse_raw(body, spec),
        Some(len) => parse_binary(body, len),
    }
}

fn head_length(value: &HeaderValue, body_len: usize) -> Result<usize> {
    let text = String::from_utf8_lossy(value.as_bytes());
    let Ok(len) = text.trim().parse::<i64>() else {
        return Err(Error::invalid(format!("Unable to parse Inference-Header-Content-Length, got: {text}")));
    };
    usize::try_from(len).ok().filter(|len| *len <= body_len).ok_or_else(|| {
        Error::invalid(format!("inference header size should be in range (0, {body_len}), got: {len}"))
    })
}
