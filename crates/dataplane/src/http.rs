//! HTTP paths: health, metadata, inference; all else belongs to the faces.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::{Body, Incoming};
use percent_encoding::percent_decode_str;
use serde_json::json;
use smallvec::SmallVec;

use crate::answer::Answer;
use crate::body::{self, Reader};
use crate::dataplane::Dataplane;
use crate::encode::encode;
use crate::error::{Code, Error, Result};
use crate::faces::binary::{self, HEAD_LENGTH, OCTETS};
use crate::faces::coding::{Coding, MIN_COMPRESSED, Message};
use crate::faces::{self, durable, metrics};
use crate::gateway::Gateway;
use crate::grpc::{model_metadata, server_metadata};
use crate::inference;
use crate::pool::LARGE;
use crate::reply::{self, JSON, Reply};

/// A number takes at most about so many times more bytes as JSON text than in a tensor.
const JSON_GROWTH: usize = 3;

/// What may be asked of what can only be read.
const READ: &str = "GET, HEAD";

/// Answers one request; every refusal is a JSON sentence.
pub async fn call(gateway: &Gateway, mut request: Box<(Parts, Incoming)>) -> Reply {
    let (parts, body) = &mut *request;
    let mut reply = route(gateway, parts, body).await.unwrap_or_else(|error| reply::refusal(&error));
    if parts.method == http::Method::HEAD {
        let len = std::mem::take(reply.body_mut()).len();
        reply.headers_mut().insert(CONTENT_LENGTH, len.into());
    }
    let is_refused = reply.status().as_u16() >= 400 && reply.status() != StatusCode::REQUEST_TIMEOUT;
    if is_refused && !body.is_end_stream() && !parts.headers.contains_key(EXPECT) {
        tokio::spawn(body::discard(request.1));
    }
    reply
}

async fn route(gateway: &Gateway, parts: &Parts, body: &mut Incoming) -> Result<Reply> {
    let (dataplane, path) = (&gateway.dataplane, parts.uri.path());
    if let Some((name, version, verb)) = target(path)? {
        let allowed = if verb == "infer" { "POST" } else { READ };
        if let Some(refusal) = reply::forbidden(&parts.method, allowed) {
            return Ok(refusal);
        }
        return match verb {
            "infer" => infer(dataplane, (&name, version), &parts.headers, body).await,
            "ready" => model_ready(dataplane, &name, version),
            _ => as_json(&model_metadata(dataplane, &name, version)?),
        };
    }
    let found = match path {
        "/v2/health/live" => Ok(reply::json(StatusCode::OK, &json!({ "live": true }))),
        "/v2/health/ready" => Ok(readiness(dataplane, dataplane.is_ready(), json!({}))),
        "/v2" | "/v2/" => as_json(&server_metadata(dataplane)),
        "/metrics" => Ok(metrics::reply(gateway)),
        "/" => Ok(reply::json(StatusCode::OK, &json!({ "status": "alive" }))),
        _ => return Box::pin(faces::http(dataplane, &parts.method, path, body)).await,
    };
    reply::forbidden(&parts.method, READ).map_or(found, Ok)
}

/// A message of the protocol as JSON.
fn as_json(message: &impl serde::Serialize) -> Result<Reply> {
    let text = serde_json::to_string(message);
    text.map(|text| reply::json(StatusCode::OK, &text))
        .map_err(|error| Error::internal(format!("cannot write the answer: {error}")))
}

/// The name, the version and the verb (`infer`, `ready`, or none for metadata) in a path that asks something of a model;
/// `None` for what belongs to the faces, such as `stats` and `{name}/config`.
pub fn target(path: &str) -> Result<Option<(Cow<'_, str>, &str, &str)>> {
    let Some(rest) = path.strip_prefix("/v2/models/") else { return Ok(None) };
    let segments: SmallVec<[&str; 5]> = rest.split('/').collect();
    let (name, version, verb) = match segments[..] {
        ["stats"] => return Ok(None),
        [name] => (name, "", ""),
        [name, verb @ ("" | "infer" | "ready")] => (name, "", verb),
        [name, "versions", version] if is_number(version) => (name, version, ""),
        [name, "versions", version, verb @ ("" | "infer" | "ready")] if is_number(version) => {
            (name, version, verb)
        }
        _ => return Ok(None),
    };
    Ok(Some((model_name(name)?, version, verb)))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Decodes a model's name; it must stay one segment of a path.
pub fn model_name(encoded: &str) -> Result<Cow<'_, str>> {
    let name = percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|_| Error::invalid(format!("model name '{encoded}' is not percent-encoded UTF-8")))?;
    if name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
        return Err(Error::invalid("model name must not contain path traversal characters"));
    }
    Ok(name)
}

/// `value` and whether it is so, with the status that says the same.
fn readiness(dataplane: &Dataplane, ready: bool, mut value: serde_json::Value) -> Reply {
    value["ready"] = json!(ready);
    let status = if ready { 200 } else { dataplane.config.not_ready_status };
    reply::json(StatusCode::from_u16(status).expect("the settings allow 400 and 503 only"), &value)
}

fn model_ready(dataplane: &Dataplane, name: &str, version: &str) -> Result<Reply> {
    let error = match dataplane.model(name, version) {
        Ok(model) if model.is_ready() => return Ok(readiness(dataplane, true, json!({ "name": name }))),
        Ok(_) => format!("model '{name}' is not ready").into(),
        Err(error) if error.code == Code::Unavailable => error.message,
        Err(error) => return Err(error),
    };
    Ok(readiness(dataplane, false, json!({ "name": name, "error": error })))
}

/// One inference. When the client goes away this future is dropped, and the request cancelled.
async fn infer(
    dataplane: &Arc<Dataplane>,
    (name, version): (&str, &str),
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<Reply> {
    let model = dataplane.model(name, version)?;
    let coding = Coding::of_request(headers)?;
    let received = Reader::new(dataplane).all(body).await;
    let data = received.inspect_err(|error| inference::refused(&model, error))?;
    // Another version may have become the default meanwhile.
    let model = dataplane.model(name, version)?;
    let (message, shared) = (Message { data, coding }, Arc::clone(dataplane));
    if durable::is_preferred(dataplane, headers) {
        return Box::pin(durable::accept(dataplane, (name, version), headers, message)).await;
    }
    let kept = dataplane.durable.is_some().then(|| message.clone());
    let (head, wanted) = (headers.get(HEAD_LENGTH).cloned(), Coding::wanted(headers));
    let (is_large, sender) = (message.is_large(), dataplane.sender(headers, None));
    let submit = move || {
        let plain = message.plain(&shared)?;
        inference::submit(
            &model,
            sender,
            binary::parse(&plain, head.as_ref().map(HeaderValue::as_bytes), &model.spec),
        )
    };
    let packs = move |answer: &Answer| wanted.is_some() && encoded_len(answer) >= MIN_COMPRESSED;
    let encode = move |answer: &Answer| {
        let mut encoded = encode(&answer.model().spec, answer.wanted(), &answer.views())?;
        let coding = wanted.filter(|coding| packs(answer) && coding.pack(&mut encoded.body, 0));
        Ok((encoded, coding))
    };
    let is_large_answer = |answer: &Answer| packs(answer) || encoded_len(answer) > LARGE;
    let submitted = match (dataplane.pool.run(is_large, submit).await, kept) {
        (Err(Error { code: Code::Durable, .. }), Some(message)) => {
            return Box::pin(durable::accept(dataplane, (name, version), headers, message)).await;
        }
        (submitted, _) => submitted?,
    };
    let (encoded, coding) = inference::finish(&dataplane.pool, submitted, is_large_answer, encode).await?;
    let content_type = if encoded.head_len.is_some() { OCTETS } else { JSON };
    let mut reply = reply::http(StatusCode::OK, content_type, dataplane.memory.count(encoded.body));
    let head = encoded.head_len.map(|len| (Some(HEAD_LENGTH), HeaderValue::from(len)));
    let coding = coding.map(|coding| (Some(CONTENT_ENCODING), coding.header()));
    reply.headers_mut().extend(head.into_iter().chain(coding));
    Ok(reply)
}

/// About how many bytes the answer's body will have.
pub fn encoded_len(answer: &Answer) -> usize {
    let is_binary = answer.wanted().outputs.iter().all(|output| output.binary);
    answer.byte_len() * if is_binary { 1 } else { JSON_GROWTH }
}
