//! The short lane: a plain inference over HTTP/1.1 that arrived in one piece is read and answered without hyper, whose
//! messages between tasks and maps of headers cost more than the rest of a small request. Everything else leaves the
//! lane, and hyper goes on with the bytes that were read.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt;
use httpdate::HttpDate;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::answer::{Answer, Ticket};
use crate::connection::{Busy, Connection};
use crate::encode::{Encoded, encode};
use crate::error::{Code, Error, PANICKED, Result};
use crate::faces::binary;
use crate::http::{encoded_len, target};
use crate::inference;
use crate::pool::LARGE;
use crate::reply;
use crate::request::Sender;

const MAX_HEADERS: usize = 16;

thread_local! {
    /// Where sockets are read into: a request is understood before the thread reads another, so that a connection which
    /// is idle holds no buffer.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; LARGE]);
    /// The time in answers, and the second that it is for.
    static DATE: RefCell<(u64, String)> = RefCell::default();
}

/// What became of the bytes that were read.
enum Step {
    Submitted(Result<Ticket>, Busy),
    Left(Vec<u8>),
}

/// Answers plain requests until something else arrives. Returns what was read of that; `None` if the conversation is over.
pub async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &Arc<Connection>,
    stream: &mut S,
) -> Option<Vec<u8>> {
    let gateway = &connection.gateway;
    if connection.is_metrics_only || gateway.access.is_some() {
        return Some(Vec::new());
    }
    loop {
        let step = poll_fn(|context| read(stream, context, |bytes| begin(connection, bytes))).await?;
        let (submitted, busy) = match step {
            Step::Left(bytes) => return Some(bytes),
            Step::Submitted(submitted, busy) => (submitted, busy),
        };
        let mut rest = Vec::new();
        let answer = {
            let mut answer = pin!(AssertUnwindSafe(answer(connection, submitted)).catch_unwind());
            let answered = poll_fn(|context| {
                if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                    return Poll::Ready(Some(answer));
                }
                // Who hangs up meanwhile has the request cancelled; what comes meanwhile waits.
                while rest.len() < LARGE {
                    if ready!(read(stream, context, |bytes| rest.extend_from_slice(bytes))).is_none() {
                        return Poll::Ready(None);
                    }
                }
                Poll::Pending
            });
            answered.await?
        };
        drop(busy);
        let is_last = gateway.draining.load(Relaxed);
        let answer = answer.unwrap_or_else(|_| Err(Error::internal(PANICKED)));
        let out = match answer {
            Ok(out) if !is_last => out,
            Ok(out) => closing(&out),
            Err(error) => refusal(&error, is_last),
        };
        connection.state.write(true);
        let written = stream.write_all(&out).await;
        connection.state.write(false);
        written.ok()?;
        if is_last {
            return None;
        }
        if !rest.is_empty() {
            return Some(rest);
        }
    }
}

/// Reads once; `None` if the client has gone.
fn read<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    context: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<Option<T>> {
    READ.with_borrow_mut(|space| {
        let mut buffer = ReadBuf::new(space);
        let outcome = ready!(Pin::new(stream).poll_read(context, &mut buffer));
        let bytes = buffer.filled();
        Poll::Ready((outcome.is_ok() && !bytes.is_empty()).then(|| take(bytes)))
    })
}

/// Submits what was read, if it is one plain request and nothing else.
fn begin(connection: &Arc<Connection>, bytes: &[u8]) -> Step {
    let dataplane = &connection.gateway.dataplane;
    let Some(Plain { path, head, tenant, body }) = plain(bytes, &dataplane.config.tenant_header) else {
        return Step::Left(bytes.to_vec());
    };
    let submit = || {
        let Ok(Some((name, version, "infer"))) = target(path) else { return None };
        connection.state.speak_http1();
        let busy = Busy::new(connection);
        let sender = Sender { tenant: dataplane.tenant(tenant), deadline: None };
        let model = dataplane.model(&name, version);
        let submitted =
            model.and_then(|model| inference::submit(&model, sender, binary::parse(body, head, &model.spec)));
        Some((submitted, busy))
    };
    match catch_unwind(AssertUnwindSafe(submit)) {
        // What is to be kept is not plain.
        Ok(None | Some((Err(Error { code: Code::Durable, .. }), _))) => Step::Left(bytes.to_vec()),
        Ok(Some((submitted, busy))) => Step::Submitted(submitted, busy),
        Err(_) => Step::Submitted(Err(Error::internal(PANICKED)), Busy::new(connection)),
    }
}

/// A plain request: it posts, is complete, and has no header but those that are understood here.
struct Plain<'a> {
    path: &'a str,
    /// The length of the JSON head, as the client states it.
    head: Option<&'a [u8]>,
    tenant: Option<&'a [u8]>,
    body: &'a [u8],
}

fn plain<'a>(bytes: &'a [u8], tenant_header: &str) -> Option<Plain<'a>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(start)) = request.parse(bytes) else { return None };
    let (mut len, mut head, mut tenant) = (None, None, None);
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") && len.is_none() {
            len = Some(header.value);
        } else if is("inference-header-content-length") && head.is_none() {
            head = Some(header.value);
        } else if is(tenant_header) {
            tenant = tenant.or(Some(header.value));
        } else if is("connection") && header.value.eq_ignore_ascii_case(b"keep-alive") {
            // It is how HTTP/1.1 is anyway.
        } else if !["host", "content-type", "user-agent", "accept"].into_iter().any(is) {
            return None;
        }
    }
    let (body, is_post) = (&bytes[start..], request.method == Some("POST"));
    let is_whole = len == Some(itoa::Buffer::new().format(body.len()).as_bytes());
    let path = request.path?;
    (is_post && request.version == Some(1) && is_whole).then_some(Plain { path, head, tenant, body })
}

/// Waits for an answer and writes it, head and body.
async fn answer(connection: &Connection, submitted: Result<Ticket>) -> Result<Bytes> {
    let dataplane = &connection.gateway.dataplane;
    let encode = |answer: &Answer| {
        encode(&answer.model().spec, answer.wanted(), &answer.views()).map(|encoded| written(&encoded))
    };
    let is_large = |answer: &Answer| encoded_len(answer) > LARGE;
    let out = inference::finish(&dataplane.pool, submitted?, is_large, encode).await?;
    Ok(dataplane.memory.count(out))
}

fn written(encoded: &Encoded) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.body.len() + 192);
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: application/");
    if let Some(len) = encoded.head_len {
        out.extend_from_slice(b"octet-stream\r\ninference-header-content-length: ");
        out.extend_from_slice(itoa::Buffer::new().format(len).as_bytes());
    } else {
        out.extend_from_slice(b"json");
    }
    end_head(&mut out, &encoded.body);
    out
}

/// The headers that every answer ends with, and its body.
fn end_head(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(b"\r\ncontent-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
    out.extend_from_slice(b"\r\ndate: ");
    DATE.with_borrow_mut(|(second, text)| {
        let now = SystemTime::now();
        let passed = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if *second != passed {
            (*second, *text) = (passed, HttpDate::from(now).to_string());
        }
        out.extend_from_slice(text.as_bytes());
    });
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(body);
}

/// An answer that was written already, with the word that it is the connection's last.
#[cold]
fn closing(out: &Bytes) -> Bytes {
    let status_end = out.windows(2).position(|pair| pair == b"\r\n").unwrap_or(0);
    [&out[..status_end], b"\r\nconnection: close", &out[status_end..]].concat().into()
}

#[cold]
fn refusal(error: &Error, is_last: bool) -> Bytes {
    let (parts, body) = reply::refusal(error).into_parts();
    let mut out = format!("HTTP/1.1 {}", parts.status).into_bytes();
    for (name, value) in &parts.headers {
        out.extend_from_slice(format!("\r\n{name}: ").as_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    end_head(&mut out, &body);
    if is_last { closing(&out.into()) } else { out.into() }
}

/// A connection's stream from when it leaves the lane: first what was read from it; and the connection hears of all reads.
pub struct Rewound<S> {
    connection: Arc<Connection>,
    read: Vec<u8>,
    stream: S,
}

impl<S> Rewound<S> {
    /// `read` comes first.
    pub fn new(connection: &Arc<Connection>, read: Vec<u8>, stream: S) -> Self {
        Self { connection: Arc::clone(connection), read, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        } else {
            let len = self.read.len().min(buffer.remaining());
            buffer.put_slice(&self.read[..len]);
            self.read.drain(..len);
        }
        self.connection.state.hear();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
