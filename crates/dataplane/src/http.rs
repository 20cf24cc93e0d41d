//! HTTP paths: health, metadata, inference; all else below `/v2` belongs to the faces.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::answer::{Answer, Ticket};
use crate::body::{self, Coding};
use crate::dataplane::Dataplane;
use crate::encode::encode;
use crate::error::{Code, Error, Result};
use crate::faces::binary::{parse_binary, parse_raw};
use crate::faces::config::transcode;
use crate::faces::{self, metrics};
use crate::fault::{Fault, JSON, Reply, json, reply};
use crate::gateway::Gateway;
use crate::grpc::{model_metadata, server_metadata};
use crate::models::Model;
use crate::pool::LARGE;
use crate::request::{parse_json, tag};
use crate::stats::Refusal;

/// Bytes of the JSON head in front of binary tensors.
const HEAD_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A number takes at most about so many times more bytes as JSON text than in a tensor.
const JSON_GROWTH: usize = 3;

/// Answers one request; every refusal is a JSON sentence.
pub async fn call(gateway: &Gateway, request: Request<Incoming>) -> Reply {
    let (parts, mut body) = request.into_parts();
    let reply = match route(gateway, &parts, &mut body).await {
        Ok(reply) => reply,
        Err(fault) => {
            let waits_for_us = parts.headers.contains_key(EXPECT);
            if fault.keeps_reading() && !waits_for_us && !body.is_end_stream() {
                tokio::spawn(body::discard(body));
            }
            fault.reply()
        }
    };
    if parts.method == Method::HEAD { without_body(reply) } else { reply }
}

fn without_body(reply: Reply) -> Reply {
    let (mut parts, body) = reply.into_parts();
    let len = body.size_hint().lower();
    parts.headers.insert(CONTENT_LENGTH, len.into());
    Reply::from_parts(parts, Full::default())
}

async fn route(gateway: &Gateway, parts: &Parts, body: &mut Incoming) -> Result<Reply, Fault> {
    let (dataplane, path) = (&gateway.dataplane, parts.uri.path());
    if let Some(rest) = path.strip_prefix("/v2/models/")
        && let Some(target) = Target::parse(rest)?
    {
        return match target.verb {
            Verb::Infer => {
                allow(&parts.method, "POST")?;
                infer(dataplane, &target, &parts.headers, body).await
            }
            Verb::Ready => {
                allow(&parts.method, "GET, HEAD")?;
                model_ready(dataplane, &target)
            }
            Verb::Metadata => {
                allow(&parts.method, "GET, HEAD")?;
                let metadata = model_metadata(dataplane, &target.name, target.version)?;
                Ok(reply(StatusCode::OK, JSON, transcode("ModelMetadataResponse", &metadata)?.into()))
            }
        };
    }
    if let Some(found) = fixed(gateway, path) {
        return allow(&parts.method, "GET, HEAD").and(found);
    }
    let rest = path.strip_prefix("/v2/").ok_or_else(|| Fault::path(path))?;
    let received = body::read(body, &dataplane.config, &dataplane.memory).await?;
    faces::http(dataplane, &parts.method, rest, received.data).await
}

/// Paths that name no model.
fn fixed(gateway: &Gateway, path: &str) -> Option<Result<Reply, Fault>> {
    let dataplane = &gateway.dataplane;
    let value = match path {
        "/v2/health/live" => json!({ "live": true }),
        "/v2/health/ready" => {
            let ready = dataplane.is_ready();
            return Some(Ok(json(readiness(dataplane, ready), &json!({ "ready": ready }))));
        }
        "/v2" | "/v2/" => {
            let text = transcode("ServerMetadataResponse", &server_metadata(dataplane));
            return Some(text.map(|text| reply(StatusCode::OK, JSON, text.into())).map_err(Fault::from));
        }
        "/v2/models" => json!({ "models": model_names(dataplane) }),
        "/metrics" => {
            let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
            return Some(Ok(reply(StatusCode::OK, content_type, gateway.metrics().into())));
        }
        "/" => json!({ "status": "alive" }),
        _ => return None,
    };
    Some(Ok(json(StatusCode::OK, &value)))
}

fn allow(method: &Method, allowed: &'static str) -> Result<(), Fault> {
    if allowed.split(", ").any(|allowed| allowed == method.as_str()) {
        return Ok(());
    }
    Err(Fault::method(allowed))
}

/// What a path below `/v2/models/` names.
struct Target<'a> {
    name: Cow<'a, str>,
    version: &'a str,
    verb: Verb,
}

enum Verb {
    Metadata,
    Ready,
    Infer,
}

impl<'a> Target<'a> {
    /// `None` for what belongs to the faces, such as `stats` and `{name}/config`.
    fn parse(rest: &'a str) -> Result<Option<Self>, Fault> {
        let (name, tail) = rest.split_once('/').unwrap_or((rest, ""));
        let (version, verb) = match tail.strip_prefix("versions/") {
            Some(tail) => tail.split_once('/').unwrap_or((tail, "")),
            None => ("", tail),
        };
        let verb = match verb {
            "infer" => Verb::Infer,
            "ready" => Verb::Ready,
            "" if rest != "stats" => Verb::Metadata,
            _ => return Ok(None),
        };
        if tail.starts_with("versions/") && !is_number(version) {
            return Ok(None);
        }
        Ok(Some(Self { name: model_name(name)?, version, verb }))
    }
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

fn readiness(dataplane: &Dataplane, ready: bool) -> StatusCode {
    let status = if ready { 200 } else { dataplane.config.not_ready_status };
    StatusCode::from_u16(status).expect("the settings allow 400 and 503 only")
}

fn model_ready(dataplane: &Dataplane, target: &Target<'_>) -> Result<Reply, Fault> {
    let (ready, error) = match dataplane.model(&target.name, target.version) {
        Ok(model) if model.is_ready() => (true, None),
        Ok(_) => (false, Some(format!("model '{}' is not ready", target.name).into())),
        Err(error) if error.code == Code::Unavailable => (false, Some(error.message)),
        Err(error) => return Err(error.into()),
    };
    let mut value = json!({ "name": target.name, "ready": ready });
    if let Some(error) = error {
        value["error"] = json!(error);
    }
    Ok(json(readiness(dataplane, ready), &value))
}

fn model_names(dataplane: &Dataplane) -> Vec<String> {
    let mut names: Vec<String> = dataplane.models().iter().map(|model| model.spec.name.clone()).collect();
    names.dedup();
    names
}

/// One inference: body, ticket, answer. When the client goes away this future is dropped, and the ticket with it.
async fn infer(
    dataplane: &Dataplane,
    target: &Target<'_>,
    headers: &HeaderMap,
    incoming: &mut Incoming,
) -> Result<Reply, Fault> {
    let model = dataplane.model(&target.name, target.version)?;
    let coding = Coding::of_request(headers)?;
    let (config, memory) = (&dataplane.config, &dataplane.memory);
    let received = body::read(incoming, config, memory).await;
    let received = received.inspect_err(|fault| model.stats.refused(fault.refusal(), 0))?;
    // Another version may have become the default meanwhile.
    let model = dataplane.model(&target.name, target.version)?;
    let head = headers.get(&HEAD_LENGTH);
    let ticket = if let Some(coding) = coding {
        let (head, limit, memory) = (head.cloned(), config.max_body_bytes, memory.clone());
        let work = move || {
            let plain = coding.unpack(&received, limit, &memory)?;
            drop(received);
            submit(&model, &plain.data, head.as_ref())
        };
        dataplane.pool.run(work).await?
    } else if received.data.len() > LARGE {
        let head = head.cloned();
        dataplane.pool.run(move || submit(&model, &received.data, head.as_ref())).await?
    } else {
        let ticket = submit(&model, &received.data, head)?;
        drop(received);
        ticket
    };
    let answer = ticket.answer().await?;
    let packing = Coding::wanted(headers).filter(|_| encoded_len(&answer) >= body::MIN_COMPRESSED);
    let answered = if packing.is_some() || encoded_len(&answer) > LARGE {
        dataplane.pool.run(move || Answered::new(&answer, packing)).await?
    } else {
        Answered::new(&answer, None)?
    };
    Ok(answered.reply(dataplane))
}

fn submit(model: &Arc<Model>, body: &[u8], head: Option<&HeaderValue>) -> Result<Ticket> {
    let parsed = match head {
        None => parse_json(body),
        Some(value) => match head_length(value, body.len()) {
            Ok(0) => parse_raw(body, &model.spec),
            Ok(len) => parse_binary(body, len),
            Err(error) => Err(error),
        },
    };
    match parsed {
        Ok(request) => model.submit(&request),
        Err(error) => {
            model.stats.refused(Refusal::Invalid, 0);
            Err(error)
        }
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

/// About how many bytes the answer's body will have.
fn encoded_len(answer: &Answer) -> usize {
    let is_binary = answer.wanted.outputs.iter().all(|output| output.binary);
    answer.byte_len() * if is_binary { 1 } else { JSON_GROWTH }
}

/// An answer on its way out.
struct Answered {
    body: Vec<u8>,
    head_len: Option<usize>,
    coding: Option<Coding>,
}

impl Answered {
    fn new(answer: &Answer, packing: Option<Coding>) -> Result<Self> {
        let encoded = encode(&answer.model().spec, &answer.wanted, &answer.views())
            .map_err(|error| tag(&answer.wanted.id, error))?;
        answer.encoded();
        let packed = packing.and_then(|coding| Some((coding.pack(&encoded.body)?, coding)));
        let (body, coding) = match packed {
            Some((body, coding)) => (body, Some(coding)),
            None => (encoded.body, None),
        };
        Ok(Self { body, head_len: encoded.head_len, coding })
    }

    fn reply(self, dataplane: &Dataplane) -> Reply {
        let content_type = if self.head_len.is_some() { OCTETS } else { JSON };
        let body: Bytes = dataplane.memory.count(self.body);
        let mut reply = reply(StatusCode::OK, content_type, body);
        if let Some(len) = self.head_len {
            reply.headers_mut().insert(HEAD_LENGTH, HeaderValue::from(len));
        }
        if let Some(coding) = self.coding {
            reply.headers_mut().insert(CONTENT_ENCODING, coding.header());
        }
        reply
    }
}
