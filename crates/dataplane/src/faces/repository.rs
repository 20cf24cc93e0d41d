//! The model repository extension: index, load, unload. What loading means is the control plane's matter.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::parse;
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::events::{Event, Events};
use crate::proto::model_repository_parameter::ParameterChoice;
use crate::proto::repository_index_response::ModelIndex;
use crate::proto::{
    ModelRepositoryParameter, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
};

/// A line of the repository index, as the control plane states it; an empty text is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexRow {
    /// The model's name.
    pub name: String,
    /// The version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// `READY`, `UNAVAILABLE`, `LOADING`, `UNLOADING` or `UNKNOWN`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Why it is in this state.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What the repository holds, as the control plane states it, and the way to have it changed.
pub struct Repository {
    events: Arc<Events>,
    index: RwLock<Vec<IndexRow>>,
    commands: Mutex<HashMap<u64, oneshot::Sender<Result<String>>>>,
    last_ticket: AtomicU64,
}

impl Repository {
    /// An empty repository; `events` bring commands to the control plane.
    pub fn new(events: Arc<Events>) -> Self {
        let (index, commands) = (RwLock::default(), Mutex::default());
        Self { events, index, commands, last_ticket: AtomicU64::new(0) }
    }

    /// States the index.
    pub fn set_index(&self, rows: Vec<IndexRow>) {
        *self.index.write() = rows;
    }

    /// Whether a model of that name is there, served or not.
    pub fn knows(&self, name: &str) -> bool {
        self.index.read().iter().any(|row| row.name == name)
    }

    fn rows(&self, is_ready: bool) -> Vec<IndexRow> {
        self.index.read().iter().filter(|row| !is_ready || row.state == "READY").cloned().collect()
    }

    /// Has the control plane do something with a model, and waits for what it says when it has.
    async fn command(&self, kind: &'static str, model: String, parameters: Value) -> Result<String> {
        let ticket = self.last_ticket.fetch_add(1, Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        self.commands.lock().insert(ticket, sender);
        self.events.push(Event::Command { ticket, kind, model, parameters });
        receiver.await.unwrap_or_else(|_| Err(Error::unavailable("the server is shutting down")))
    }

    /// Answers a command; an unknown ticket belongs to a client that has gone.
    pub fn answer(&self, ticket: u64, outcome: Result<String>) {
        if let Some(sender) = self.commands.lock().remove(&ticket) {
            let _ = sender.send(outcome);
        }
    }
}

/// How the control plane says that a command ended: no code with what the client asked for, or a code and a sentence.
pub fn outcome(code: &str, message: String) -> Result<Result<String>, String> {
    let error = match code {
        "" => return Ok(Ok(message)),
        "not_found" => Error::not_found,
        "invalid" => Error::invalid,
        "unavailable" => Error::unavailable,
        "unsupported" => Error::unsupported,
        "internal" => Error::internal,
        other => return Err(format!("unknown code '{other}'")),
    };
    Ok(Err(error(message)))
}

/// There is one repository, and it has no name.
#[cold]
pub(super) fn named() -> Error {
    Error::unsupported("'repository_name' specification is not supported")
}

fn nameless(repository: &str) -> Result<()> {
    if repository.is_empty() { Ok(()) } else { Err(named()) }
}

/// `/v2/repository/index`: as gRPC's, but a list, and what is empty is left out.
pub(super) fn index_json(dataplane: &Dataplane, body: &[u8]) -> Result<String> {
    let ready = match &parse(body)?["ready"] {
        Value::Null => false,
        Value::Bool(ready) => *ready,
        other => return Err(Error::invalid(format!("'ready' must be true or false, got {other}"))),
    };
    let rows = dataplane.repository.rows(ready);
    serde_json::to_string(&rows).map_err(|error| Error::internal(format!("cannot write the index: {error}")))
}

/// `RepositoryIndex`.
pub(super) fn index(
    dataplane: &Dataplane,
    request: &RepositoryIndexRequest,
) -> Result<RepositoryIndexResponse> {
    nameless(&request.repository_name)?;
    let model = |row: IndexRow| ModelIndex {
        name: row.name,
        version: row.version,
        state: row.state,
        reason: row.reason,
    };
    Ok(RepositoryIndexResponse {
        models: dataplane.repository.rows(request.ready).into_iter().map(model).collect(),
    })
}

/// Loads or unloads a model; returns when the control plane has answered. `body` is an object with `parameters`.
pub(super) async fn command(
    dataplane: &Arc<Dataplane>,
    action: &str,
    name: &str,
    mut body: Value,
) -> Result<()> {
    if !dataplane.config.explicit_control {
        // Triton's words, also where nothing is polled: clients match them.
        return Err(Error::unavailable("explicit model load / unload is not allowed if polling is enabled"));
    }
    if name.is_empty() || name.contains(['/', '\\', '\0']) || name == ".." {
        return Err(Error::invalid("model name must not contain path traversal characters"));
    }
    let parameters = match body["parameters"].take() {
        Value::Null => Value::Object(Map::new()),
        parameters @ Value::Object(_) => parameters,
        other => return Err(Error::invalid(format!("'parameters' must be an object, got {other}"))),
    };
    let kind = if action == "load" { "load" } else { "unload" };
    dataplane.repository.command(kind, name.to_owned(), parameters).await.map(drop)
}

/// `/v2/models/NAME/scheduler`: why the model's knobs are what they are, in the control plane's JSON.
pub(super) async fn why(dataplane: &Arc<Dataplane>, name: &str, version: &str) -> Result<String> {
    // What is not served is refused here, as everywhere.
    dataplane.model(name, version)?;
    let parameters = serde_json::json!({ "version": version });
    dataplane.repository.command("why", name.to_owned(), parameters).await
}

/// `RepositoryModelLoad`.
pub(super) async fn load(dataplane: &Arc<Dataplane>, request: RepositoryModelLoadRequest) -> Result<()> {
    nameless(&request.repository_name)?;
    command(dataplane, "load", &request.model_name, to_json(request.parameters)).await
}

/// `RepositoryModelUnload`.
pub(super) async fn unload(dataplane: &Arc<Dataplane>, request: RepositoryModelUnloadRequest) -> Result<()> {
    nameless(&request.repository_name)?;
    command(dataplane, "unload", &request.model_name, to_json(request.parameters)).await
}

/// Parameters as HTTP carries them: files in base64.
fn to_json(parameters: BTreeMap<String, ModelRepositoryParameter>) -> Value {
    let value = |(key, parameter): (String, ModelRepositoryParameter)| {
        let value = match parameter.parameter_choice? {
            ParameterChoice::BoolParam(value) => value.into(),
            ParameterChoice::Int64Param(value) => value.into(),
            ParameterChoice::StringParam(value) => value.into(),
            ParameterChoice::BytesParam(value) => STANDARD.encode(value).into(),
        };
        Some((key, value))
    };
    let parameters: Map<String, Value> = parameters.into_iter().filter_map(value).collect();
    Value::Object(Map::from_iter([("parameters".to_owned(), Value::Object(parameters))]))
}
