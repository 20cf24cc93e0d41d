//! Durable requests over gRPC: `ModelInfer` with the parameter `durable` takes one, with `durable_id` it fetches an answer.

use std::sync::Arc;

use lrai_journal::entry::{Id, Progress};

use super::record::{Answered, Request, RequestHead};
use super::{Options, examine, keep, of, unknown};
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::faces::coding::Message;
use crate::framing;
use crate::grpc::{decode, reply};
use crate::inference::refused;
use crate::proto::infer_parameter::ParameterChoice;
use crate::proto::{InferParameter, ModelInferRequest, ModelInferResponse};
use crate::protobuf;

/// Answers a `ModelInfer` call that says `durable` or `durable_id`; the answer has room for its prefix.
pub async fn call(dataplane: &Arc<Dataplane>, message: Message) -> Result<Vec<u8>> {
    let (shared, is_large) = (Arc::clone(dataplane), message.is_large());
    let read = move || {
        let body = message.plain(&shared)?;
        let request: ModelInferRequest = decode(body.clone())?;
        if let Some(id) = request.parameters.get("durable_id") {
            return Ok((request_id(id)?, None, request));
        }
        let model = shared.model(&request.model_name, &request.model_version)?;
        let parsed = protobuf::parse(&request).inspect_err(|error| refused(&model, error))?;
        let Options { key, webhook } = examine(of(&shared)?, &model, &parsed, Options::default())?;
        let (name, version) = (request.model_name.clone(), request.model_version.clone());
        let head = RequestHead { is_grpc: true, model: name, version, head_len: None, webhook };
        drop(parsed);
        let request = ModelInferRequest { inputs: Vec::new(), raw_input_contents: Vec::new(), ..request };
        Ok((String::new(), Some((Request { head, body }, key)), request))
    };
    let (text, kept, request) = dataplane.pool.run(is_large, read).await?;
    if let Some((kept, key)) = kept {
        return Ok(reply(&pending(request, keep(dataplane, kept, key).await?)));
    }
    let id: Id = text.parse().map_err(|()| unknown(&text))?;
    let found = of(dataplane)?.journal.find(id).await?.ok_or_else(|| unknown(&text))?;
    if found.progress == Progress::Waiting {
        return Ok(reply(&pending(request, id)));
    }
    let message = Answered::read(found.record)?.message()?;
    let mut buffer = framing::begin(message.len());
    buffer.extend_from_slice(&message);
    Ok(buffer)
}

fn request_id(parameter: &InferParameter) -> Result<String> {
    match &parameter.parameter_choice {
        Some(ParameterChoice::StringParam(id)) => Ok(id.clone()),
        _ => Err(Error::invalid("Unable to parse 'durable_id': expected a string")),
    }
}

/// An answer without outputs that names the request.
fn pending(request: ModelInferRequest, id: Id) -> ModelInferResponse {
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let parameters = [
        ("durable_id".to_owned(), parameter(ParameterChoice::StringParam(id.to_string()))),
        ("durable_pending".to_owned(), parameter(ParameterChoice::BoolParam(true))),
    ];
    ModelInferResponse {
        model_name: request.model_name,
        model_version: request.model_version,
        id: request.id,
        parameters: parameters.into(),
        ..ModelInferResponse::default()
    }
}
