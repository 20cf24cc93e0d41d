//! Requests and answers as the journal keeps them: a head in JSON, and the body as it came or goes.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::StatusCode;
use lrai_journal::entry::{Id, Record};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{REQUEST_ID, counted};
use crate::answer::Answer;
use crate::dataplane::Dataplane;
use crate::encode::encode;
use crate::error::{Error, Result};
use crate::faces::binary::{self, HEAD_LENGTH, OCTETS};
use crate::http::encoded_len;
use crate::inference;
use crate::pool::LARGE;
use crate::proto::ModelInferRequest;
use crate::protobuf;
use crate::reply::{self, JSON, Reply};

/// What is known of a request beside its body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequestHead {
    /// Whether the body is a `ModelInferRequest`; else it is what HTTP carries.
    pub is_grpc: bool,
    /// The model's name.
    pub model: String,
    /// Its version; empty = the default one at the time of the answer.
    pub version: String,
    /// Over HTTP: the length of the JSON head, as the client states it.
    pub head_len: Option<String>,
    /// Where the answer is to be sent.
    pub webhook: Option<String>,
}

/// A request that is kept.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is known of it.
    pub head: RequestHead,
    /// Its bytes, not compressed.
    pub body: Bytes,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct AnswerHead {
    is_grpc: bool,
    head_len: Option<usize>,
    error: Option<Error>,
    webhook: Option<String>,
}

/// An answer that is kept.
pub struct Answered {
    head: AnswerHead,
    /// Its bytes; none for a refusal.
    pub body: Bytes,
}

/// What a model answers, encoded for the face that asked.
pub struct Encoded {
    head_len: Option<usize>,
    body: Bytes,
}

fn to_json(head: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(head).expect("a head has text and numbers only")
}

fn from_json<T: for<'a> Deserialize<'a>>(head: &[u8]) -> Result<T> {
    serde_json::from_slice(head)
        .map_err(|error| Error::internal(format!("an entry of the journal cannot be read: {error}")))
}

impl RequestHead {
    /// Requests for one version of one model wait in one line.
    pub fn lane(&self) -> String {
        format!("{}/{}", self.model, self.version)
    }
}

impl Request {
    /// As it is kept.
    pub fn to_record(&self) -> Record {
        Record { head: to_json(&self.head), body: self.body.clone() }
    }

    /// What was kept.
    pub fn read(record: Record) -> Result<Self> {
        Ok(Self { head: from_json(&record.head)?, body: record.body })
    }

    /// Computes it, on the way of all requests.
    pub async fn compute(self, dataplane: &Arc<Dataplane>) -> Result<Encoded> {
        let Self { head, body } = self;
        let (model, is_large) = (dataplane.model(&head.model, &head.version)?, body.len() > LARGE);
        let is_grpc = head.is_grpc;
        let submit = move || {
            if head.is_grpc {
                let request = ModelInferRequest::decode(body).map_err(|error| {
                    Error::invalid(format!("the request is not a valid message: {error}"))
                })?;
                return model.submit(&protobuf::parse(&request)?);
            }
            model.submit(&binary::parse(&body, head.head_len.as_deref().map(str::as_bytes), &model.spec)?)
        };
        let encode = move |answer: &Answer| {
            if is_grpc {
                let mut body = Vec::with_capacity(answer.byte_len() + 256);
                protobuf::write(answer, &mut body)?;
                return Ok(Encoded { head_len: None, body: body.into() });
            }
            let encoded = encode(&answer.model().spec, answer.wanted(), &answer.views())?;
            Ok(Encoded { head_len: encoded.head_len, body: encoded.body.into() })
        };
        let ticket = dataplane.pool.run(is_large, submit).await?;
        let is_large = |answer: &Answer| encoded_len(answer) > LARGE;
        inference::finish(&dataplane.pool, ticket, is_large, encode).await
    }
}

impl Answered {
    /// The answer to a request.
    pub fn new(request: &RequestHead, outcome: Result<Encoded>) -> Self {
        let (error, head_len, body) = match outcome {
            Ok(Encoded { head_len, body }) => (None, head_len, body),
            Err(error) => (Some(error), None, Bytes::new()),
        };
        let head = AnswerHead { is_grpc: request.is_grpc, head_len, error, webhook: request.webhook.clone() };
        Self { head, body }
    }

    /// As it is kept.
    pub fn to_record(&self) -> Record {
        Record { head: to_json(&self.head), body: self.body.clone() }
    }

    /// What was kept.
    pub fn read(record: Record) -> Result<Self> {
        Ok(Self { head: from_json(&record.head)?, body: record.body })
    }

    /// Where it is to be sent.
    pub fn webhook(&self) -> Option<&str> {
        self.head.webhook.as_deref()
    }

    /// A `ModelInferResponse`, or the refusal that stands for it.
    pub fn message(self) -> Result<Bytes> {
        match self.head {
            AnswerHead { error: Some(error), .. } => Err(error),
            AnswerHead { is_grpc: true, .. } => Ok(self.body),
            _ => Err(Error::invalid("this request came over HTTP, hint: fetch its answer there")),
        }
    }

    /// Over HTTP, as the plain request would have had it.
    pub fn reply(self, dataplane: &Dataplane, id: Id) -> Reply {
        let mut reply = match &self.head {
            AnswerHead { error: Some(error), .. } => reply::refusal(error),
            head => {
                let content_type = match head {
                    AnswerHead { is_grpc: true, .. } => HeaderValue::from_static("application/x-protobuf"),
                    AnswerHead { head_len: Some(_), .. } => OCTETS,
                    _ => JSON,
                };
                reply::http(StatusCode::OK, content_type, counted(dataplane, self.body))
            }
        };
        let head_len = self.head.head_len.map(|len| (Some(HEAD_LENGTH), HeaderValue::from(len)));
        reply.headers_mut().extend(head_len);
        let id = HeaderValue::from_str(&id.to_string()).expect("an id is plain text");
        reply.headers_mut().insert(REQUEST_ID, id);
        reply
    }
}
