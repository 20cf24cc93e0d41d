//! What all connections share: limits, the coarse clock, counters, and the way of a request to its face.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, Version};
use http_body_util::{Either, Full};
use hyper::body::{Body, Incoming};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::access::AccessLog;
use crate::connection::Connection;
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::framing::GrpcBody;
use crate::metrics::{self, GatewayMetrics, ModelMetrics};
use crate::{grpc, http as http_face};

/// Any face's answer.
pub type Answer = Response<Either<Full<Bytes>, GrpcBody>>;

/// Statuses that are counted one by one; the last one takes all others.
const STATUSES: [u16; 10] = [200, 400, 404, 405, 408, 413, 500, 501, 503, 0];

/// The state behind all connections.
pub struct Gateway {
    /// Models and settings.
    pub dataplane: Arc<Dataplane>,
    /// A place for each connection that may be open.
    pub slots: Arc<Semaphore>,
    connections: Mutex<Vec<Weak<Connection>>>,
    draining: AtomicBool,
    started: Instant,
    now_ms: AtomicU64,
    statuses: [AtomicU64; STATUSES.len()],
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
            started: Instant::now(),
            now_ms: AtomicU64::new(0),
            statuses: std::array::from_fn(|_| AtomicU64::new(0)),
            access,
            dataplane,
        })
    }

    /// Milliseconds since the start, as of the last sweep: reading it costs nothing.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    /// Whether connections shall end when they have answered what they have.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// From now on a connection is swept and drained with the others.
    pub fn register(&self, connection: &Arc<Connection>) {
        self.connections.lock().push(Arc::downgrade(connection));
    }

    /// Open connections.
    pub fn open_connections(&self) -> usize {
        self.dataplane.config.max_connections - self.slots.available_permits()
    }

    /// Asks every connection to end.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
        for connection in self.connections.lock().iter().filter_map(Weak::upgrade) {
            connection.wake();
        }
    }

    /// Moves the clock and ends connections that have overstayed; never returns.
    pub async fn sweep_task(self: Arc<Self>) {
        let config = &self.dataplane.config;
        let shortest = config.header_timeout_ms.min(config.body_timeout_ms).min(config.keep_alive_timeout_ms);
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
        let model = |model: &'_ Arc<crate::models::Model>| model.stats.snapshot();
        let numbers: Vec<_> = models.iter().map(model).collect();
        let models: Vec<_> = models
            .iter()
            .zip(numbers)
            .map(|(model, numbers)| ModelMetrics {
                name: &model.spec.name,
                version: &model.spec.version,
                numbers,
            })
            .collect();
        let count = |(status, count): (&u16, &AtomicU64)| (*status, count.load(Relaxed));
        let gateway = GatewayMetrics {
            connections: self.open_connections(),
            memory_bytes: self.dataplane.memory.used(),
            responses: STATUSES.iter().zip(&self.statuses).map(count).collect(),
            dropped_log_lines: self.access.as_ref().map_or(0, AccessLog::dropped),
        };
        metrics::render(&models, &gateway)
    }

    /// Answers one request of a connection; a panic costs this request only.
    pub async fn answer(
        &self,
        connection: &Connection,
        request: Request<Incoming>,
    ) -> Result<Answer, Infallible> {
        let _busy = connection.begin();
        let line = self.access.as_ref().map(|log| (log, Line::new(connection, &request)));
        let is_grpc = is_grpc(&request);
        if connection.is_metrics_only && request.uri().path() != "/metrics" {
            return Ok(Fault::path(request.uri().path()).reply().map(Either::Left));
        }
        // Pinned where it is made: a future that is passed on by value takes its room twice.
        let answered = pin!(async {
            if is_grpc {
                grpc::call(Arc::clone(&self.dataplane), request).await.map(Either::Right)
            } else {
                http_face::call(self, request).await.map(Either::Left)
            }
        });
        let answer = unless_panicked(answered).await.unwrap_or_else(|| panicked(is_grpc));
        if !is_grpc {
            self.count(answer.status().as_u16());
        }
        if let Some((log, line)) = line {
            log.log(&line.end(&answer));
        }
        Ok(answer)
    }

    fn count(&self, status: u16) {
        let index = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        self.statuses[index].fetch_add(1, Relaxed);
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
        return crate::framing::refusal(tonic::Status::internal(message)).map(Either::Right);
    }
    Fault::from(Error::internal(message)).reply().map(Either::Left)
}

/// A line of the access log under way.
struct Line {
    line: serde_json::Value,
    started: Instant,
}

impl Line {
    fn new(connection: &Connection, request: &Request<Incoming>) -> Self {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let line = json!({
            "time": time.as_secs_f64(),
            "client": connection.client(),
            "method": request.method().as_str(),
            "path": request.uri().path(),
            "request_bytes": request.body().size_hint().exact(),
        });
        Self { line, started: Instant::now() }
    }

    fn end(mut self, answer: &Answer) -> serde_json::Value {
        self.line["status"] = json!(answer.status().as_u16());
        self.line["response_bytes"] = json!(answer.body().size_hint().exact());
        self.line["duration_seconds"] = json!(self.started.elapsed().as_secs_f64());
        self.line
    }
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
