//! One connection: how long it may be silent, and how it ends. hyper speaks HTTP on it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

use crate::config::Config;
use crate::gateway::Gateway;

/// Longest headers of one HTTP/2 request.
const MAX_HEADER_BYTES: u32 = 64 << 10;
/// A whole large body may be on its way before we answer.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const MAX_FRAME: u32 = 128 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// The part of a connection that its gateway sees. Its own thread writes it, except `patience`.
pub struct Connection {
    gateway: Arc<Gateway>,
    /// Who is at the other end.
    pub client: String,
    /// It came through the metrics port, which shows metrics and nothing else.
    pub is_metrics_only: bool,
    in_flight: AtomicU32,
    has_begun: AtomicBool,
    since_ms: AtomicU64,
    /// Sweeps that it survives: at the first it is asked to end, at the second it is ended.
    patience: AtomicU8,
    waker: OnceLock<Waker>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    /// A connection that has sent nothing yet; it holds its slot until it ends.
    pub fn new(
        gateway: Arc<Gateway>,
        client: String,
        slot: OwnedSemaphorePermit,
        is_metrics_only: bool,
    ) -> Arc<Self> {
        let connection = Arc::new(Self {
            client,
            is_metrics_only,
            in_flight: AtomicU32::new(0),
            has_begun: AtomicBool::new(false),
            since_ms: AtomicU64::new(gateway.now_ms()),
            patience: AtomicU8::new(2),
            waker: OnceLock::new(),
            gateway,
            _slot: slot,
        });
        connection.gateway.register(&connection);
        connection
    }

    /// A request begins; it ends when the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.in_flight.store(self.in_flight.load(Relaxed) + 1, Relaxed);
        self.has_begun.store(true, Relaxed);
        Busy { connection: Arc::clone(self) }
    }

    /// Has the connection's task look at its flags.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Ends the connection if it has had no request in flight for too long. A header that is never finished and an
    /// answer that is never read look the same from here, and no timer per request is needed.
    pub fn sweep(&self, now_ms: u64, config: &Config) {
        let has_begun = self.has_begun.load(Relaxed);
        let limit_ms = if has_begun { config.keep_alive_timeout_ms } else { config.header_timeout_ms };
        let is_idle = self.in_flight.load(Relaxed) == 0;
        if is_idle && now_ms.saturating_sub(self.since_ms.load(Relaxed)) > limit_ms {
            self.patience.store(self.patience.load(Relaxed).saturating_sub(1), Relaxed);
            self.wake();
        }
    }
}

/// A request in flight.
pub struct Busy {
    connection: Arc<Connection>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.in_flight.store(connection.in_flight.load(Relaxed) - 1, Relaxed);
        connection.since_ms.store(connection.gateway.now_ms(), Relaxed);
    }
}

/// Serves a connection until it ends; `stream` may be a socket or, later, TLS on one.
pub async fn serve<S>(connection: Arc<Connection>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&shared);
        async move { connection.gateway.answer(&connection, request).await }
    });
    let mut settings = auto::Builder::new(TokioExecutor::new());
    settings.http1().writev(false);
    settings
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(connection.gateway.dataplane.config.max_streams)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .keep_alive_interval(PING_INTERVAL);
    let mut conversation = pin!(settings.serve_connection(TokioIo::new(stream), service));
    let mut is_told = false;
    poll_fn(|context| {
        // A task's waker stays the same as long as nothing in it makes its own.
        connection.waker.get_or_init(|| context.waker().clone());
        let patience = connection.patience.load(Relaxed);
        if patience == 0 {
            return Poll::Ready(());
        }
        if !is_told && (patience == 1 || connection.gateway.is_ending()) {
            is_told = true;
            conversation.as_mut().graceful_shutdown();
        }
        // How a conversation failed is the client's affair.
        conversation.as_mut().poll(context).map(drop)
    })
    .await;
}
