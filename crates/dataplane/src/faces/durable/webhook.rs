//! Webhooks: an answer is sent to its client's address, if the operator allows what the address begins with.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::response::Parts;
use http::{Request, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lrai_journal::entry::Id;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::record::Answered;
use crate::dataplane::Dataplane;
use crate::error::{Error, Result, refuse};

/// Seconds before each try: together about two and a half minutes, after which nobody is called any more.
const PAUSES_S: [u64; 5] = [0, 1, 5, 25, 125];
/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a URL may begin with: scheme, host and port as they are, and the path up to a border between segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    authority: String,
    path: String,
}

/// The parts of an address that may be called at all.
fn parse(url: &str) -> Result<Uri> {
    let Ok(uri) = url.parse::<Uri>() else {
        refuse!("the webhook '{url}' is no URL, hint: http://HOST[:PORT]/PATH, without a password")
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if uri.scheme_str() != Some("http") || authority.is_empty() || authority.contains('@') {
        refuse!("the webhook '{url}' cannot be called, hint: http://HOST[:PORT]/PATH, without a password");
    }
    // A path that its receiver reads in another way could leave what is allowed.
    let is_odd = |segment: &str| matches!(segment, "." | "..") || segment.contains(['%', '\\']);
    if uri.path().split('/').any(is_odd) {
        refuse!("the webhook '{url}' has a path with dots or percent signs, hint: use a plain path");
    }
    Ok(uri)
}

impl FromStr for Prefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let uri = parse(text)?;
        Ok(Self { authority: authority(&uri), path: uri.path().to_owned() })
    }
}

impl Prefix {
    fn allows(&self, uri: &Uri) -> bool {
        let rest = uri.path().strip_prefix(self.path.as_str());
        let ends = |rest: &str| self.path.ends_with('/') || rest.is_empty() || rest.starts_with('/');
        self.authority == authority(uri) && rest.is_some_and(ends)
    }
}

/// Host and port, in one spelling.
fn authority(uri: &Uri) -> String {
    format!("{}:{}", uri.host().unwrap_or_default().to_ascii_lowercase(), uri.port_u16().unwrap_or(80))
}

/// Refuses an address that the operator does not allow: the server must not be made to call others on its network.
pub fn check(url: &str, allowed: &[Prefix]) -> Result<()> {
    let uri = parse(url)?;
    if allowed.iter().any(|prefix| prefix.allows(&uri)) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the webhook '{url}' is not allowed, hint: the operator lists what may be called in --journal-webhooks"
    )))
}

/// Sends an answer until it is taken or the tries are over; then nothing is left to be done with it. Between two tries the
/// answer lies only in the journal, so that receivers that are away do not fill the memory.
pub async fn call(dataplane: &Arc<Dataplane>, id: Id, lane: &str) {
    let Some(durable) = &dataplane.durable else { return };
    let mut last = String::new();
    let mut is_taken = false;
    for pause in PAUSES_S {
        sleep(Duration::from_secs(pause)).await;
        let place = durable.calls.acquire().await;
        let answered = match durable.find(id).await {
            Ok(Some(Err(answered))) => answered,
            // It was removed, or its time has passed.
            Ok(_) => return,
            Err(error) => {
                durable.tell("error", format!("the webhook of request {id} will be called again: {error}"));
                return;
            }
        };
        let outcome = timeout(PATIENCE, send(dataplane, id, answered)).await;
        drop(place);
        match outcome {
            Ok(Ok(())) => {
                is_taken = true;
                break;
            }
            Ok(Err(error)) => last = error.message.into_owned(),
            Err(_) => last = format!("no answer within {} s", PATIENCE.as_secs()),
        }
    }
    if !is_taken {
        durable.tell("warning", format!("the webhook of request {id} ({lane}) was not taken: {last}"));
    }
    if let Err(error) = durable.close(id).await {
        durable.tell("error", format!("the webhook of request {id} will be called again: {error}"));
    }
}

/// Sends an answer once, if the operator still allows its address: the list may have changed since it was asked for.
async fn send(dataplane: &Dataplane, id: Id, answered: Answered) -> Result<()> {
    let url = answered.webhook().unwrap_or_default().to_owned();
    let webhooks = dataplane.durable.as_ref().map_or(&[][..], |durable| &durable.webhooks);
    check(&url, webhooks)?;
    let (parts, body) = answered.reply(dataplane, id).into_parts();
    post(&url, &parts, body).await
}

/// One try; what is not answered with success has failed. Redirections are not followed.
async fn post(url: &str, answer: &Parts, body: Bytes) -> Result<()> {
    let uri = parse(url)?;
    let failed = |error: &dyn std::fmt::Display| Error::unavailable(format!("{url}: {error}"));
    let stream = TcpStream::connect(authority(&uri)).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::post(path).header(HOST, authority(&uri)).header(CONTENT_LENGTH, body.len());
    for (name, value) in &answer.headers {
        request = request.header(name, value);
    }
    let request = request
        .header("lrai-request-status", answer.status.as_u16())
        .body(Full::new(body))
        .map_err(|error| failed(&error))?;
    let status = sender.send_request(request).await.map_err(|error| failed(&error))?.status();
    drop(connection);
    if status.is_success() { Ok(()) } else { Err(failed(&status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_allowed_by_a_prefix_that_ends_at_a_border() {
        let allowed =
            ["http://hooks.example/lrai", "http://10.0.0.1:81/"].map(|text| text.parse().expect("a prefix"));
        for url in
            ["http://hooks.example/lrai", "http://HOOKS.example:80/lrai/x?y=1", "http://10.0.0.1:81/anything"]
        {
            assert_eq!(check(url, &allowed), Ok(()), "{url}");
        }
        for url in [
            "http://hooks.example/lrai-other",
            "http://hooks.example/other",
            "http://hooks.example/lrai/../other",
            "http://hooks.example/lrai/%2e%2e/other",
            "http://hooks.example.evil/lrai",
            "http://hooks.example@evil/lrai",
            "http://hooks.example:81/lrai",
            "https://hooks.example/lrai",
            "http://10.0.0.1/",
            "file:///etc/passwd",
            "/lrai",
            "",
        ] {
            assert!(check(url, &allowed).is_err(), "{url}");
        }
    }
}
