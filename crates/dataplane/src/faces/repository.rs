//! The model repository extension: index, load, unload. What loading means is the control plane's matter.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::parse;
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::proto::model_repository_parameter::ParameterChoice;
use crate::proto::repository_index_response::ModelIndex;
use crate::proto::{
    ModelRepositoryParameter, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
};

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
    let mut rows = dataplane.index();
    rows.retain(|row| !ready || row.state == "READY");
    serde_json::to_string(&rows).map_err(|error| Error::internal(format!("cannot write the index: {error}")))
}

/// `RepositoryIndex`.
pub(super) fn index(
    dataplane: &Dataplane,
    request: &RepositoryIndexRequest,
) -> Result<RepositoryIndexResponse> {
    nameless(&request.repository_name)?;
    let rows = dataplane.index().into_iter().filter(|row| !request.ready || row.state == "READY");
    let model = |row: crate::dataplane::IndexRow| ModelIndex {
        name: row.name,
        version: row.version,
        state: row.state,
        reason: row.reason,
    };
    Ok(RepositoryIndexResponse { models: rows.map(model).collect() })
}

/// Loads or unloads a model; returns when the control plane has answered. `body` is an object with `parameters`.
pub(super) async fn command(
    dataplane: &Arc<Dataplane>,
    action: &str,
    name: &str,
    mut body: Value,
) -> Result<()> {
    if dataplane.config.model_control != "explicit" {
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
    dataplane.command(kind, name.to_owned(), parameters).await
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
