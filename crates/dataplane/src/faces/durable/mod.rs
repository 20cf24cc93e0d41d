//! Durable requests: kept in the journal before they are acknowledged, answered whatever crashes meanwhile, fetched with
//! their id. Nothing here is on the way of a request that does not ask for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lrai_journal::entry::{Entry, Id, Key, Progress};
use lrai_journal::fault::Fault;
use lrai_journal::journal::{Journal, Limits, Place};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use self::executor::{Lane, Task};
use self::record::{Answered, Request, RequestHead};
use super::binary::{self, HEAD_LENGTH};
use super::coding::Message;
use super::parameters::parameter;
use crate::check::check;
use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::error::{Error, PANICKED, Result, refuse};
use crate::events::{Event, Events};
use crate::inference::refused;
use crate::models::Model;
use crate::reply::{self, Reply};
use crate::request::{InferRequest, Parameters, tag};

mod call;
mod executor;
mod record;
mod webhook;

pub use call::call;
pub use executor::replay;

/// Where answers are fetched, in front of an id.
pub const PATH: &str = "/v2/requests/";

/// Which kept request an answer belongs to: it tells a stored refusal from one of the fetch itself.
const REQUEST_ID: HeaderName = HeaderName::from_static("lrai-request-id");
/// A client's own name for a request, not to be computed twice.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Where the answer shall be sent.
const WEBHOOK: &str = "lrai-webhook";
/// Longest idempotency key in bytes.
const MAX_KEY: usize = 255;
/// An answer that is kept for less could not be fetched.
const LEAST_KEEP: Duration = Duration::from_secs(1);
/// Webhooks that are called at the same time.
const MAX_CALLS: usize = 16;

/// Where durable requests are kept, and how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `sqlite:FOLDER` or `redis://...`.
    pub place: String,
    /// Most bytes of durable requests and their answers.
    pub max_bytes: u64,
    /// How long the answer to a durable request is kept.
    pub keep_ms: u64,
    /// How long a durable request waits for its model to be served.
    pub patience_ms: u64,
    /// What the URL of a webhook may begin with.
    pub webhooks: Vec<String>,
}

/// The journal, and who answers what is in it.
pub struct Durable {
    journal: Journal,
    events: Arc<Events>,
    lanes: Mutex<HashMap<String, Lane>>,
    /// What a former server left, until it is taken up.
    left: Mutex<Vec<(Id, String)>>,
    webhooks: Vec<webhook::Prefix>,
    calls: Semaphore,
    patience: Duration,
    is_draining: AtomicBool,
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Full { .. } | Fault::NoSpace(_) => Self::full(fault.to_string()),
            Fault::Conflict(_) => Self::conflict(fault.to_string()),
            Fault::Failed(_) => Self::unavailable(fault.to_string()),
        }
    }
}

impl Durable {
    /// Opens the journal that the settings name, if they name one; what a former server left waits for [`replay`].
    pub fn open(config: &Config, events: &Arc<Events>) -> Result<Option<Self>> {
        let Some(Settings { place, max_bytes, keep_ms, patience_ms, webhooks }) = &config.journal else {
            return Ok(None);
        };
        let place: Place = place.parse()?;
        let keep = Duration::from_millis(*keep_ms);
        if keep < LEAST_KEEP {
            refuse!("answers would be forgotten after {keep:?}, hint: give --journal-keep at least 1s");
        }
        let opened = Journal::open(&place, Limits { max_bytes: *max_bytes, keep })?;
        let durable = Self {
            journal: opened.journal,
            events: Arc::clone(events),
            lanes: Mutex::default(),
            left: Mutex::new(opened.unfinished),
            webhooks: webhooks.iter().map(|text| text.parse()).collect::<Result<_>>()?,
            calls: Semaphore::new(MAX_CALLS),
            patience: Duration::from_millis(*patience_ms),
            is_draining: AtomicBool::new(false),
        };
        let left = durable.left.lock().len();
        durable.tell("info", format!("{left} durable requests of a former server wait in {place}"));
        opened.notes.into_iter().for_each(|note| durable.tell("warning", note));
        Ok(Some(durable))
    }

    fn tell(&self, level: &'static str, message: String) {
        self.events.push(Event::Journal { level, message });
    }

    /// From now on nothing is begun, and what fails is left for the next server: its actors are leaving.
    pub fn drain(&self) {
        self.is_draining.store(true, Relaxed);
    }

    /// What the metrics page shows: name, help, value.
    pub fn gauges(&self) -> [(&'static str, &'static str, u64); 7] {
        let counters = &self.journal.counters;
        [
            ("lrai_journal_pending", "Durable requests that wait for their answers.", &counters.waiting),
            ("lrai_journal_bytes", "Bytes of durable requests and their answers.", &counters.bytes),
            ("lrai_journal_accepted_total", "Durable requests taken.", &counters.accepted),
            ("lrai_journal_answered_total", "Durable requests answered.", &counters.answered),
            ("lrai_journal_refused_total", "Durable requests that found no room.", &counters.refused),
            ("lrai_journal_commits_total", "Groups of changes committed.", &counters.commits),
            ("lrai_journal_commit_microseconds_total", "Time of commits.", &counters.commit_us),
        ]
        .map(|(name, help, value)| (name, help, value.load(Relaxed)))
    }
}

fn of(dataplane: &Dataplane) -> Result<&Durable> {
    let none = || Error::not_found("this server has no journal, hint: serve with --journal");
    dataplane.durable.as_ref().ok_or_else(none)
}

/// Whether an inference over HTTP is to be answered later; without a journal the wish is passed over, as it may be.
pub fn is_preferred(dataplane: &Dataplane, headers: &HeaderMap) -> bool {
    let asks = |value: &HeaderValue| {
        let mut words = value.to_str().unwrap_or_default().split([',', ';']);
        words.any(|word| word.trim().eq_ignore_ascii_case("respond-async"))
    };
    dataplane.durable.is_some() && headers.get_all("prefer").iter().any(asks)
}

/// What a client says about a request that is to be kept.
#[derive(Default)]
struct Options {
    key: Option<String>,
    webhook: Option<String>,
}

impl Options {
    /// Reads what stands in headers; parameters win.
    fn of_headers(headers: &HeaderMap) -> Self {
        let get =
            |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into());
        Self { key: get(IDEMPOTENCY_KEY), webhook: get(WEBHOOK) }
    }

    fn and_parameters(self, parameters: &Parameters<'_>) -> Result<Self> {
        let get = |key: &str| match parameter(parameters, key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => refuse!("Unable to parse '{key}': expected a string"),
        };
        let options =
            Self { key: get("idempotency_key")?.or(self.key), webhook: get("webhook")?.or(self.webhook) };
        if let Some(key) = options.key.as_ref().filter(|key| key.is_empty() || key.len() > MAX_KEY) {
            refuse!("the idempotency key has {} bytes, hint: 1 to {MAX_KEY} are possible", key.len());
        }
        Ok(options)
    }
}

/// Holds a request against its model before it is kept: what is wrong with it is said at once.
fn examine(
    durable: &Durable,
    model: &Model,
    request: &InferRequest<'_>,
    options: Options,
) -> Result<Options> {
    let examined = || {
        check(&model.spec, request)?;
        if !model.spec.retry {
            let name = &model.spec.name;
            refuse!("model '{name}' must not run a request twice (retry = false), a durable one might");
        }
        let options = options.and_parameters(&request.parameters)?;
        options.webhook.iter().try_for_each(|url| webhook::check(url, &durable.webhooks))?;
        Ok(options)
    };
    examined().map_err(|error| tag(&request.id, error)).inspect_err(|error| refused(model, error))
}

/// Keeps a request and puts it into its lane. Goes on when its client has gone: what is kept must be answered.
async fn keep(dataplane: &Arc<Dataplane>, request: Request, key: Option<String>) -> Result<Id> {
    let lane = request.head.lane();
    let key = key.map(|name| Key { name, digest: digest(&request) });
    let shared = Arc::clone(dataplane);
    let work = async move {
        let durable = of(&shared)?;
        let entry = Entry { lane: lane.clone(), key, request: request.to_record() };
        let accepted = durable.journal.accept(entry).await?;
        if accepted.is_new {
            executor::push(&shared, lane, Task { id: accepted.id, request: Some(request) });
        }
        Ok(accepted.id)
    };
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Error::internal(PANICKED)))
}

/// Of everything that decides about the answer; a webhook does not.
fn digest(Request { head, body }: &Request) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let what = json!([head.is_grpc, head.model, head.version, head.head_len]).to_string();
    hasher.update((what.len() as u64).to_le_bytes());
    hasher.update(what);
    hasher.update(body);
    hasher.finalize().into()
}

/// Takes an inference over HTTP that is to be answered later.
pub async fn accept(
    dataplane: &Arc<Dataplane>,
    (name, version): (&str, &str),
    headers: &HeaderMap,
    message: Message,
) -> Result<Reply> {
    let (model, is_large) = (dataplane.model(name, version)?, message.is_large());
    let head_len = headers.get(HEAD_LENGTH).map(|value| String::from_utf8_lossy(value.as_bytes()).into());
    let (options, shared) = (Options::of_headers(headers), Arc::clone(dataplane));
    let head =
        RequestHead { is_grpc: false, model: name.into(), version: version.into(), head_len, webhook: None };
    let read = move || {
        let body = message.plain(&shared)?;
        let parsed = binary::parse(&body, head.head_len.as_deref().map(str::as_bytes), &model.spec);
        let parsed = parsed.inspect_err(|error| refused(&model, error))?;
        let Options { key, webhook } = examine(of(&shared)?, &model, &parsed, options)?;
        drop(parsed);
        Ok((Request { head: RequestHead { webhook, ..head }, body }, key))
    };
    let (request, key) = dataplane.pool.run(is_large, read).await?;
    let id = keep(dataplane, request, key).await?;
    let mut reply = pending(id);
    let location = HeaderValue::from_str(&format!("{PATH}{id}")).expect("an id is plain text");
    reply.headers_mut().insert(LOCATION, location);
    reply.headers_mut().insert("preference-applied", HeaderValue::from_static("respond-async"));
    Ok(reply)
}

fn pending(id: Id) -> Reply {
    let mut reply = reply::json(StatusCode::ACCEPTED, &json!({ "id": id.to_string(), "status": "pending" }));
    reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    reply
}

#[cold]
fn unknown(id: &str) -> Error {
    Error::not_found(format!(
        "there is no request '{id}', hint: answers are kept for the time of --journal-keep"
    ))
}

/// Answers `/v2/requests/ID`: the answer or that there is none yet; DELETE forgets both.
pub async fn fetch(dataplane: &Arc<Dataplane>, method: &Method, text: &str) -> Result<Reply> {
    if let Some(refusal) = reply::forbidden(method, "GET, HEAD, DELETE") {
        return Ok(refusal);
    }
    let durable = of(dataplane)?;
    let id: Id = text.parse().map_err(|()| unknown(text))?;
    if method == Method::DELETE {
        let is_removed = durable.journal.remove(id).await?;
        let mut reply = Reply::new(Bytes::new());
        *reply.status_mut() = StatusCode::NO_CONTENT;
        return if is_removed { Ok(reply) } else { Err(unknown(text)) };
    }
    let found = durable.journal.find(id).await?.ok_or_else(|| unknown(text))?;
    if found.progress == Progress::Waiting {
        return Ok(pending(id));
    }
    Ok(Answered::read(found.record)?.reply(dataplane, id))
}

/// The bytes of an answer, counted as held until they are written.
fn counted(dataplane: &Dataplane, body: Bytes) -> Bytes {
    dataplane.memory.count(body.into())
}
