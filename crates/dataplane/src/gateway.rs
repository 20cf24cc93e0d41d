//! What all connections share: limits, the coarse clock, counters, and the way of a request to its face.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, Version};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::access::AccessLog;
use crate::connection::{Busy, Connection};
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::faces::metrics::{self, ModelMetrics};
use crate::fault::Fault;
use crate::framing::GrpcBody;
use crate::models::Model;
use crate::{grpc, http as http_face};

/// Any face's answer.
pub type Answer = Response<Outgoing>;

/// The body of an answer. A stream keeps its connection busy; an answer that is complete does not, so that a client
/// which never reads it is swept away in the end.
#[expect(missing_docs, reason = "the names say it")]
pub enum Outgoing {
    Http(Full<Bytes>),
    Grpc(GrpcBody),
    Stream(GrpcBody, Busy),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Http(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Grpc(body) | Self::Stream(body, _) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Grpc(body) | Self::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(body) => body.size_hint(),
            Self::Grpc(body) | Self::Stream(body, _) => body.size_hint(),
        }
    }
}

/// The state behind all connections.
pub struct Gateway {
    /// Models and settings.
    pub dataplane: Arc<Dataplane>,
    /// A place for each connection that may be open.
    pub slots: Arc<Semaphore>,
    connections: Mutex<Vec<Weak<Connection>>>,
    draining: AtomicBool,
    ending: AtomicBool,
    started: Instant,
    now_ms: AtomicU64,
    access: Option<AccessLog>,
}

impl Gateway {
    /// No connection yet.
    pub fn new(dataplane: Arc<Dataplane>) -> Result<Self> {
        let config = &dataplane.config;
        let access = config.access_log.then(|| AccessLog::start(std::io::stderr())).transpose()?;
        Ok(Self {
            slots: Arc::new(Semaphore::new(config.max_connections)),
            connections: Mutex::default(),
            draining: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            started: Instant::now(),
            now_ms: AtomicU64::new(0),
            access,
            dataplane,
        })
    }

    /// Milliseconds since the start, as of the last sweep: reading it costs nothing.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    /// Whether connections shall end when they have answered what they have, idle ones at once.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Relaxed)
    }

    /// From now on a connection is swept and drained with the others.
    pub fn register(&self, connection: &Arc<Connection>) {
        self.connections.lock().push(Arc::downgrade(connection));
    }

    /// Open connections.
    pub fn open_connections(&self) -> usize {
        self.dataplane.config.max_connections - self.slots.available_permits()
    }

    /// From now on an answer over HTTP/1.1 ends its connection: the client knows that it was the last one.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Asks every connection to end.
    pub fn end(&self) {
        self.ending.store(true, Relaxed);
        for connection in self.connections.lock().iter().filter_map(Weak::upgrade) {
            connection.wake();
        }
    }

    /// Moves the clock and ends connections that have overstayed; never returns.
    pub async fn sweep_task(self: Arc<Self>) {
        let config = &self.dataplane.config;
        let shortest = config.header_timeout_ms.min(config.keep_alive_timeout_ms);
        let mut turns = tokio::time::interval(Duration::from_millis((shortest / 4).clamp(10, 1000)));
        loop {
            turns.tick().await;
            let now = self.started.elapsed().as_millis() as u64;
            self.now_ms.store(now, Relaxed);
            self.connections.lock().retain(|connection| match connection.upgrade() {
                Some(connection) => {
                    connection.sweep(now, config);
                    true
                }
                None => false,
            });
        }
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        let models = self.dataplane.models();
        let model = |model: &Arc<Model>| {
            ModelMetrics::new(&model.spec.name, &model.spec.version, model.stats.snapshot())
        };
        let models: Vec<_> = models.iter().map(model).collect();
        let dropped = self.access.as_ref().map_or(0, AccessLog::dropped);
        let gauges = [
            ("lrai_connections", "Open connections.", self.open_connections() as u64),
            (
                "lrai_memory_bytes",
                "Bytes of bodies and answers in memory.",
                self.dataplane.memory.used() as u64,
            ),
            ("lrai_access_log_dropped_lines", "Lines that found no room in the access log.", dropped),
        ];
        metrics::render(&models, &gauges)
    }

    /// Answers one request of a connection; a panic costs this request only.
    pub async fn answer(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Result<Answer, Infallible> {
        let busy = connection.begin();
        let line = self.access.as_ref().map(|log| (log, log_line(connection, &request), Instant::now()));
        let (is_grpc, is_http1) = (is_grpc(&request), request.version() < Version::HTTP_2);
        if connection.is_metrics_only && request.uri().path() != "/metrics" {
            return Ok(Fault::path(request.uri().path()).reply().map(Outgoing::Http));
        }
        // Pinned where it is made: a future that is passed on by value takes its room twice.
        let answered = pin!(async {
            if is_grpc {
                grpc::call(Arc::clone(&self.dataplane), request).await.map(Outgoing::Grpc)
            } else {
                http_face::call(self, request).await.map(Outgoing::Http)
            }
        });
        let mut answer = unless_panicked(answered).await.unwrap_or_else(|| panicked(is_grpc));
        if is_http1 && self.draining.load(Relaxed) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some((log, mut line, began)) = line {
            line["status"] = json!(answer.status().as_u16());
            line["response_bytes"] = json!(answer.body().size_hint().exact());
            line["duration_seconds"] = json!(began.elapsed().as_secs_f64());
            log.log(&line);
        }
        Ok(answer.map(|body| match body {
            Outgoing::Grpc(body @ GrpcBody::Boxed(_)) => Outgoing::Stream(body, busy),
            body => body,
        }))
    }
}

/// `None` if the work panicked; the panic hook has told it already.
async fn unless_panicked<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|context| {
        let poll = AssertUnwindSafe(|| work.as_mut().poll(context));
        catch_unwind(poll).map_or(Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

/// gRPC always comes over HTTP/2 and names itself in the content type.
fn is_grpc(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_2
        && request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cold]
fn panicked(is_grpc: bool) -> Answer {
    let message = "the server failed on this request";
    if is_grpc {
        return crate::framing::refusal(Status::internal(message)).map(Outgoing::Grpc);
    }
    Fault::from(Error::internal(message)).reply().map(Outgoing::Http)
}

/// A request's line of the access log, complete but for its answer.
fn log_line(connection: &Connection, request: &Request<Incoming>) -> serde_json::Value {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "time": time.as_secs_f64(),
        "client": connection.client,
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "request_bytes": request.body().size_hint().exact(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_request_is_an_answer() {
        let work = pin!(async { panic!("a bug") });
        assert_eq!(unless_panicked::<()>(work).await, None);
        assert_eq!(unless_panicked(pin!(async { 7 })).await, Some(7));
        assert_eq!(panicked(false).status(), 500);
        assert_eq!(panicked(true).headers()["grpc-status"], "13");
    }
}
