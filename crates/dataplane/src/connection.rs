//! One connection: how its requests are answered, how long it may be silent, how it ends. hyper speaks HTTP on it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

use crate::config::Config;
use crate::error::{Error, PANICKED};
use crate::gateway::Gateway;
use crate::lane::{self, Rewound};
use crate::reply;
use crate::{framing, grpc, http as http_face};

/// Longest headers of one request. It is also what is read at once of a large body, after which others have their turn:
/// eight bodies of 1.6 MB that arrive together would hold up small requests for milliseconds.
const MAX_HEADER_BYTES: u32 = 32 << 10;
/// Most requests in flight on one connection.
const MAX_STREAMS: u32 = 1024;
/// A whole large body may be on its way before we answer.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const MAX_FRAME: u32 = 128 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// What is still to be sent of an answer over HTTP, which is whole, or over gRPC.
pub type Outgoing = Either<Full<Bytes>, tonic::body::Body>;

fn whole(body: Bytes) -> Outgoing {
    Either::Left(Full::new(body))
}

/// The part of a connection that its gateway sees.
pub struct Connection {
    /// What it shares with the others.
    pub gateway: Arc<Gateway>,
    /// Who is at the other end.
    pub client: String,
    /// It came through the metrics port, which shows metrics and nothing else.
    pub is_metrics_only: bool,
    /// Its place among those that may be open.
    pub slot: OwnedSemaphorePermit,
    /// What it does.
    pub state: State,
}

/// What a connection does. Its own thread writes that; a sweep, perhaps on another one, `idle_ms` and `dismissed`.
#[derive(Default)]
pub struct State {
    in_flight: AtomicU32,
    /// Whether it speaks HTTP/1; its first request tells.
    is_http1: AtomicBool,
    /// Whether it is between two requests, instead of awaiting headers: the first one's, or such as have begun to come.
    is_resting: AtomicBool,
    /// How long it has been without a request, as of the last sweep: no request needs a clock or a timer for that.
    idle_ms: AtomicU64,
    /// Whether an answer is on its way to the client.
    is_writing: AtomicBool,
    /// 1 = it is asked to end when it has answered what it has, 2 = it is ended.
    dismissed: AtomicU8,
    waker: OnceLock<Waker>,
}

impl State {
    fn wait(&self, is_resting: bool) {
        self.is_resting.store(is_resting, Relaxed);
        self.idle_ms.store(0, Relaxed);
    }

    /// Bytes have come. Between two requests of HTTP/1 they are the next one's headers; HTTP/2 has pings as well.
    pub fn hear(&self) {
        let is_idle = self.in_flight.load(Relaxed) == 0 && self.is_http1.load(Relaxed);
        if is_idle && self.is_resting.load(Relaxed) {
            self.wait(false);
        }
    }

    /// A request over HTTP/1 has come.
    pub fn speak_http1(&self) {
        self.is_http1.store(true, Relaxed);
    }

    /// An answer begins to be written, or is.
    pub fn write(&self, is_writing: bool) {
        self.is_writing.store(is_writing, Relaxed);
    }

    /// Whether it shall end now: at once, or because it was asked to and has nothing in flight.
    fn ends(&self) -> bool {
        match self.dismissed.load(Relaxed) {
            0 => false,
            1 => self.in_flight.load(Relaxed) == 0 && !self.is_writing.load(Relaxed),
            _ => true,
        }
    }

    /// Asks it to end when it has answered what it has (1), or ends it (2).
    pub fn dismiss(&self, degree: u8) {
        self.dismissed.fetch_max(degree, Relaxed);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Ends the connection if it has had no request in flight for too long: asks at the first sweep that finds it so,
    /// insists at the second. A header that is never finished and an answer that is never read look the same from here.
    pub fn sweep(&self, passed_ms: u64, config: &Config) {
        if self.in_flight.load(Relaxed) > 0 {
            return;
        }
        let is_resting = self.is_resting.load(Relaxed);
        let limit_ms = if is_resting { config.keep_alive_timeout_ms } else { config.header_timeout_ms };
        if self.idle_ms.fetch_add(passed_ms, Relaxed) + passed_ms > limit_ms {
            self.dismiss(self.dismissed.load(Relaxed) + 1);
        }
    }
}

impl Connection {
    /// Answers one request; a panic costs this request only.
    async fn answer(
        self: Arc<Self>,
        request: Box<(Parts, Incoming)>,
    ) -> Result<Response<Outgoing>, Infallible> {
        let (busy, gateway, parts) = (Busy::new(&self), &*self.gateway, &request.0);
        let (is_grpc, is_http1) = (is_grpc(parts), parts.version < Version::HTTP_2);
        self.state.is_http1.store(is_http1, Relaxed);
        let log = gateway.access.as_ref().map(|access| Box::new(access.begin(&self.client, &request)));
        if self.is_metrics_only && parts.uri.path() != "/metrics" {
            return Ok(reply::refusal(&reply::no_path(parts.uri.path())).map(whole));
        }
        // Pinned where it is made: a future that is passed on by value takes its room twice.
        let answered = pin!(async {
            if is_grpc {
                grpc::call(&gateway.dataplane, request, busy).await.map(Either::Right)
            } else {
                let _busy = busy;
                http_face::call(gateway, request).await.map(whole)
            }
        });
        // The panic hook has told of a panic already.
        let answered = AssertUnwindSafe(answered).catch_unwind().await;
        let mut reply = answered.unwrap_or_else(|_| panicked(is_grpc));
        if is_http1 && gateway.draining.load(Relaxed) {
            reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(log) = log {
            log(&reply);
        }
        Ok(reply)
    }
}

/// A request in flight, until it is dropped.
pub struct Busy(Arc<Connection>);

impl Busy {
    /// From now on a request is in flight.
    pub fn new(connection: &Arc<Connection>) -> Self {
        let in_flight = &connection.state.in_flight;
        in_flight.store(in_flight.load(Relaxed) + 1, Relaxed);
        Self(Arc::clone(connection))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let state = &self.0.state;
        state.in_flight.store(state.in_flight.load(Relaxed) - 1, Relaxed);
        state.wait(true);
    }
}

/// gRPC always comes over HTTP/2 and names itself in the content type.
fn is_grpc(parts: &Parts) -> bool {
    let content_type = parts.headers.get(CONTENT_TYPE);
    parts.version == Version::HTTP_2
        && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cold]
fn panicked(is_grpc: bool) -> Response<Outgoing> {
    let error = Error::internal(PANICKED);
    if is_grpc { framing::refusal(error).map(Either::Right) } else { reply::refusal(&error).map(whole) }
}

/// Serves a connection until it ends; `stream` may be a socket or, later, TLS on one.
pub async fn serve<S>(connection: Arc<Connection>, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Plain requests first; what comes after something else is hyper's.
    let mut lane = Box::pin(lane::run(&connection, &mut stream));
    let read = poll_fn(|context| {
        connection.state.waker.get_or_init(|| context.waker().clone());
        // What has come by now is answered.
        let polled = lane.as_mut().poll(context);
        if polled.is_pending() && connection.state.ends() { Poll::Ready(None) } else { polled }
    });
    let Some(read) = read.await else { return };
    drop(lane);
    let stream = Rewound::new(&connection, read, stream);
    let shared = Arc::clone(&connection);
    // Boxed, because futures keep what they are given twice: as an argument, and again where they pass it on.
    let service = service_fn(move |request: Request<Incoming>| {
        Arc::clone(&shared).answer(Box::new(request.into_parts()))
    });
    let mut settings = auto::Builder::new(TokioExecutor::new());
    settings.http1().writev(false).max_buf_size(MAX_HEADER_BYTES as usize);
    settings
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .keep_alive_interval(PING_INTERVAL);
    let mut conversation = pin!(settings.serve_connection(TokioIo::new(stream), service));
    let mut is_told = false;
    poll_fn(|context| {
        // A task's waker stays the same as long as nothing in it makes its own.
        connection.state.waker.get_or_init(|| context.waker().clone());
        // What has come by now is answered. How a conversation failed is the client's affair.
        let polled = conversation.as_mut().poll(context).map(drop);
        match connection.state.dismissed.load(Relaxed) {
            _ if polled.is_ready() => polled,
            1 if !is_told => {
                is_told = true;
                conversation.as_mut().graceful_shutdown();
                conversation.as_mut().poll(context).map(drop)
            }
            0 | 1 => polled,
            _ => Poll::Ready(()),
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_request_is_an_answer() {
        assert_eq!(panicked(false).status(), 500);
        assert_eq!(panicked(true).headers()["grpc-status"], "13");
    }
}
