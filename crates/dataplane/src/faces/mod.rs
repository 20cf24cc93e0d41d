//! Triton's extensions of the Open Inference Protocol, over HTTP and gRPC alike.
//!
//! Called by `http.rs` and `grpc.rs` for what is not the core protocol; nothing here is on the way of a plain
//! inference request: what one says in parameters or asks of its outputs beyond the protocol is looked at only if it is there.
//! Each file has one extension: what it answers is decided once, both faces only translate.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::body::Reader;
use crate::dataplane::{Dataplane, version_number};
use crate::error::{Error, Result};
use crate::grpc::{decode, reply as encode};
use crate::http::model_name;
use crate::models::Model;
use crate::pool::LARGE;
use crate::proto;
use crate::reply::{self, Reply};

pub mod access;
pub mod binary;
pub(crate) mod classification;
pub mod coding;
pub mod config;
pub mod deadline;
pub mod durable;
pub mod guard;
pub mod metrics;
pub mod observation;
pub(crate) mod parameters;
mod replacement;
pub mod repository;
pub mod services;
mod settings;
mod shared_memory;
pub mod snapshot;
mod statistics;
pub(crate) mod stream;
pub mod unix;

/// What server metadata tells as name. It is ours and not "triton": clients choose by the extensions, people by the name,
/// and a person who reads it in a log must not look for the fault in another program.
pub const SERVER_NAME: &str = "lrai";

/// The extensions that are there, by Triton's names. Sequences, trace and changes of log settings are not; shared memory
/// answers its status and `unregister`, because clients call these before anything else, but registers nothing.
pub const EXTENSIONS: [&str; 6] = [
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
];

/// Answers a path that is not the core protocol.
pub async fn http(
    dataplane: &Arc<Dataplane>,
    method: &Method,
    path: &str,
    body: &mut Incoming,
) -> Result<Reply> {
    if let Some(id) = path.strip_prefix(durable::PATH) {
        return durable::fetch(dataplane, method, id).await;
    }
    let segments: Vec<&str> = path.strip_prefix("/v2/").unwrap_or_default().split('/').collect();
    let allowed = allowed(&segments);
    if allowed.is_empty() {
        return Err(reply::no_path(path));
    }
    if let Some(refusal) = reply::forbidden(method, allowed) {
        return Ok(refusal);
    }
    let body = Reader::new(dataplane).all(body).await?;
    Ok(reply::json(StatusCode::OK, &answer(dataplane, &segments, body, method == Method::POST).await?))
}

/// JSON text, or none where the answer is only that it has been done.
async fn answer(
    dataplane: &Arc<Dataplane>,
    segments: &[&str],
    body: Bytes,
    is_change: bool,
) -> Result<String> {
    let model = |name: &str, version: &str| dataplane.model(&model_name(name)?, version);
    match segments {
        ["models"] => Ok(json!({ "models": names(dataplane) }).to_string()),
        ["models", "stats"] => statistics::json(dataplane, "", ""),
        ["models", name, "stats"] => statistics::json(dataplane, &model_name(name)?, ""),
        ["models", name, "versions", version, "stats"] => {
            statistics::json(dataplane, &model_name(name)?, version)
        }
        ["models", name, "config"] => config::json(&model(name, "")?.spec),
        ["models", name, "versions", version, "config"] => config::json(&model(name, version)?.spec),
        ["models", name, "scheduler"] => repository::why(dataplane, &model_name(name)?, "").await,
        ["models", name, "versions", version, "scheduler"] => {
            repository::why(dataplane, &model_name(name)?, version).await
        }
        ["models", name, "trace", "setting"] => {
            model(name, "")?;
            settings::trace_json(&body, is_change)
        }
        ["trace", "setting"] => settings::trace_json(&body, is_change),
        ["logging"] => settings::logging_json(&body, is_change),
        ["repository", "index"] => repository::index_json(dataplane, &body),
        ["repository", "models", name, action] => {
            let parameters = read(dataplane, body).await?;
            repository::command(dataplane, action, &model_name(name)?, parameters).await?;
            Ok(String::new())
        }
        ["systemsharedmemory", rest @ ..] => shared_memory::http("system", rest),
        ["cudasharedmemory", rest @ ..] => shared_memory::http("cuda", rest),
        _ => Err(repository::named()),
    }
}

impl Dataplane {
    /// All routed models, by name and version.
    pub fn models(&self) -> Vec<Arc<Model>> {
        let mut models: Vec<_> = self.routes.read().by_name.values().flatten().map(Arc::clone).collect();
        models.sort_by(|a, b| (&a.spec.name, version_number(a)).cmp(&(&b.spec.name, version_number(b))));
        models
    }
}

/// The models' names, each once.
fn names(dataplane: &Dataplane) -> Vec<String> {
    let mut names: Vec<String> = dataplane.models().iter().map(|model| model.spec.name.clone()).collect();
    names.dedup();
    names
}

/// The methods of a path; empty = there is no such path.
fn allowed(segments: &[&str]) -> &'static str {
    match segments {
        ["models"] => "GET, HEAD",
        ["models", "stats"]
        | ["models", _, "stats" | "config" | "scheduler"]
        | ["models", _, "versions", _, "stats" | "config" | "scheduler"]
        | ["systemsharedmemory" | "cudasharedmemory", "status"]
        | ["systemsharedmemory" | "cudasharedmemory", "region", _, "status"] => "GET",
        ["trace", "setting"] | ["models", _, "trace", "setting"] | ["logging"] => "GET, POST",
        ["repository", "index"]
        | ["repository", _, "index"]
        | ["repository", "models", _, "load" | "unload"]
        | ["repository", _, "models", _, "load" | "unload"]
        | ["systemsharedmemory" | "cudasharedmemory", "register" | "unregister"]
        | ["systemsharedmemory" | "cudasharedmemory", "region", _, "register" | "unregister"] => "POST",
        _ => "",
    }
}

/// A body as JSON, read in the pool if it is large; no body is an empty object.
async fn read(dataplane: &Dataplane, body: Bytes) -> Result<Value> {
    dataplane.pool.run(body.len() > LARGE, move || parse(&body)).await
}

fn parse(body: &[u8]) -> Result<Value> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let parsed: Value = serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("failed to parse the request JSON buffer: {error}")))?;
    if !parsed.is_object() {
        return Err(Error::invalid("failed to parse the request JSON buffer: it must be an object"));
    }
    Ok(parsed)
}

/// Answers a gRPC method that is not the core protocol.
pub async fn grpc(dataplane: &Arc<Dataplane>, method: &str, message: Bytes) -> Result<Vec<u8>> {
    Ok(match method {
        "ModelConfig" => {
            let request: proto::ModelConfigRequest = decode(message)?;
            config::grpc(&dataplane.model(&request.name, &request.version)?.spec)?
        }
        "ModelStatistics" => {
            let request: proto::ModelStatisticsRequest = decode(message)?;
            encode(&statistics::read(dataplane, &request.name, &request.version)?)
        }
        "RepositoryIndex" => encode(&repository::index(dataplane, &decode(message)?)?),
        "RepositoryModelLoad" => {
            repository::load(dataplane, decode(message)?).await?;
            encode(&proto::RepositoryModelLoadResponse {})
        }
        "RepositoryModelUnload" => {
            repository::unload(dataplane, decode(message)?).await?;
            encode(&proto::RepositoryModelUnloadResponse {})
        }
        "TraceSetting" => encode(&settings::trace(dataplane, &decode(message)?)?),
        "LogSettings" => encode(&settings::logging(&decode(message)?)?),
        _ => shared_memory::grpc(method, message)?,
    })
}
