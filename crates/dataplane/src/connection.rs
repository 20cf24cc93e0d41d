//! One connection: which HTTP version it speaks, how long it may be silent, how it ends.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::config::Config;
use crate::gateway::Gateway;

/// What an HTTP/2 client says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest request line and headers.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// A whole large body may be on its way before we answer.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const MAX_FRAME: u32 = 128 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What a connection is waiting for when it has no request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Its first bytes.
    New,
    /// The rest of a request's headers.
    Headers,
    /// The next request.
    Idle,
    /// The client reads what we have written.
    Writing,
}

/// The part of a connection that its gateway sees. Only the connection's own task writes it, except `expired`.
pub struct Connection {
    gateway: Arc<Gateway>,
    client: String,
    /// It came through the metrics port, which shows metrics and nothing else.
    pub is_metrics_only: bool,
    is_http2: AtomicBool,
    phase: AtomicU8,
    in_flight: AtomicU32,
    since_ms: AtomicU64,
    expired: AtomicBool,
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
        let since_ms = AtomicU64::new(gateway.now_ms());
        let connection = Arc::new(Self {
            gateway,
            client,
            is_metrics_only,
            is_http2: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::New as u8),
            in_flight: AtomicU32::new(0),
            since_ms,
            expired: AtomicBool::new(false),
            waker: OnceLock::new(),
            _slot: slot,
        });
        connection.gateway.register(&connection);
        connection
    }

    /// Who is at the other end.
    pub fn client(&self) -> &str {
        &self.client
    }

    /// A request begins; it ends when the guard is dropped.
    pub fn begin(&self) -> Busy<'_> {
        self.in_flight.store(self.in_flight.load(Relaxed) + 1, Relaxed);
        self.phase.store(Phase::Idle as u8, Relaxed);
        Busy { connection: self }
    }

    /// Has the connection's task look at its flags.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Ends the connection if it has been waiting for too long.
    pub fn sweep(&self, now_ms: u64, config: &Config) {
        if self.in_flight.load(Relaxed) > 0 {
            return;
        }
        let limit_ms = if self.is(Phase::Idle) {
            config.keep_alive_timeout_ms
        } else if self.is(Phase::Writing) {
            config.body_timeout_ms
        } else {
            config.header_timeout_ms
        };
        if now_ms.saturating_sub(self.since_ms.load(Relaxed)) > limit_ms {
            self.expired.store(true, Relaxed);
            self.wake();
        }
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.since_ms.store(self.gateway.now_ms(), Relaxed);
    }

    /// Bytes have come. On HTTP/2 they may be a ping, so that only silence counts.
    fn has_read(&self) {
        if self.is_http2.load(Relaxed) {
            self.enter(Phase::Idle);
        } else if self.in_flight.load(Relaxed) == 0 && !self.is(Phase::Headers) {
            self.enter(Phase::Headers);
        }
    }

    fn has_written(&self, is_stuck: bool) {
        if is_stuck != self.is(Phase::Writing) {
            self.enter(if is_stuck { Phase::Writing } else { Phase::Idle });
        }
    }

    fn is_over(&self) -> bool {
        self.expired.load(Relaxed) || (self.is(Phase::New) && self.gateway.is_draining())
    }
}

/// A request in flight.
pub struct Busy<'a> {
    connection: &'a Connection,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let connection = self.connection;
        connection.in_flight.store(connection.in_flight.load(Relaxed) - 1, Relaxed);
        connection.since_ms.store(connection.gateway.now_ms(), Relaxed);
    }
}

/// Serves a connection until it ends; `stream` may be a socket or, later, TLS on one.
pub async fn serve<S>(connection: Arc<Connection>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let wire = Wire { stream, connection: Arc::clone(&connection), head: [0; 24], read: 0, given: 0 };
    let mut served = pin!(speak(Arc::clone(&connection), wire));
    poll_fn(|context| {
        // A task's waker stays the same as long as nothing in it makes its own.
        connection.waker.get_or_init(|| context.waker().clone());
        if connection.is_over() {
            return Poll::Ready(());
        }
        served.as_mut().poll(context)
    })
    .await;
}

async fn speak<S>(connection: Arc<Connection>, mut wire: Wire<S>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Ok(is_http2) = wire.is_http2().await else { return };
    connection.is_http2.store(is_http2, Relaxed);
    let shared = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&shared);
        async move { connection.gateway.answer(&connection, request).await }
    });
    let max_streams = connection.gateway.dataplane.config.max_streams;
    if is_http2 {
        connection.enter(Phase::Idle);
        let mut settings = http2::Builder::new(TokioExecutor::new());
        settings
            .timer(TokioTimer::new())
            .max_concurrent_streams(max_streams)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        // On the heap: HTTP/1.1 connections are many, and need not be as large as these.
        Box::pin(drive(&connection, settings.serve_connection(TokioIo::new(wire), service))).await;
    } else {
        let mut settings = http1::Builder::new();
        // Our own sweep costs no timer per request.
        settings.header_read_timeout(None).max_header_size(MAX_HEADER_BYTES);
        drive(&connection, settings.serve_connection(TokioIo::new(wire), service)).await;
    }
}

/// Runs hyper's connection; tells it once when the gateway drains. Its errors are the client's affair.
async fn drive<C: GracefulConnection>(connection: &Connection, conversation: C) {
    let mut conversation = pin!(conversation);
    let mut told = false;
    poll_fn(|context| {
        if !told && connection.gateway.is_draining() {
            told = true;
            conversation.as_mut().graceful_shutdown();
        }
        conversation.as_mut().poll(context).map(drop)
    })
    .await;
}

/// A stream that tells its connection what happens on it, and gives back the first bytes that were looked at.
struct Wire<S> {
    stream: S,
    connection: Arc<Connection>,
    head: [u8; 24],
    read: u8,
    given: u8,
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Reads until it is sure.
    async fn is_http2(&mut self) -> io::Result<bool> {
        while usize::from(self.read) < PREFACE.len() {
            let len = self.stream.read(&mut self.head[usize::from(self.read)..]).await?;
            self.read += len as u8;
            self.connection.has_read();
            let head = &self.head[..usize::from(self.read)];
            if len == 0 || !PREFACE.starts_with(head) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given < this.read {
            let rest = &this.head[usize::from(this.given)..usize::from(this.read)];
            let len = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..len]);
            this.given += len as u8;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            this.connection.has_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    fn written<T>(&self, outcome: Poll<T>) -> Poll<T> {
        self.connection.has_written(outcome.is_pending());
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.written(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
