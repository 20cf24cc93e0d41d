//! What a connection says and hears, for either protocol: bytes to write next, bytes that came, answers.

use std::sync::Arc;

use crate::{grpc::Stream, http::Reader};

/// Bytes kept of an answer that reports an error.
pub const MAX_TEXT_BYTES: usize = 300;
/// An answer's head, or a gRPC header block, beyond this is refused.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// One complete answer.
#[derive(Debug)]
pub struct Answer {
    /// Why it does not count as a success.
    pub fault: Option<Fault>,
    /// Bytes read for it.
    pub bytes: u64,
    /// Whether the connection can carry another request.
    pub reusable: bool,
}

/// A failure, by a kind that can be counted, with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Such as `http 503`, `grpc 14`, `reset`, `timeout`.
    pub kind: String,
    /// What the server or the kernel said.
    pub text: String,
}

impl Fault {
    pub fn new(kind: impl Into<String>, text: impl Into<String>) -> Self {
        Self { kind: kind.into(), text: text.into() }
    }
}

/// The protocol state of one connection.
pub enum Wire {
    Http { reader: Reader, request: Arc<[u8]>, sent: usize },
    Grpc(Box<Stream>),
}

impl Wire {
    /// Begins to send a request; the former one has been answered.
    pub fn start(&mut self, next: &Arc<[u8]>) {
        match self {
            Self::Http { request, sent, .. } => {
                *request = Arc::clone(next);
                *sent = 0;
            }
            Self::Grpc(stream) => stream.start(next),
        }
    }

    /// The bytes to write next; empty when there is nothing to write, or the peer's flow control forbids it.
    pub fn pending(&mut self) -> &[u8] {
        match self {
            Self::Http { request, sent, .. } => &request[*sent..],
            Self::Grpc(stream) => stream.pending(),
        }
    }

    /// That many of them have been written.
    pub fn wrote(&mut self, count: usize) {
        match self {
            Self::Http { sent, .. } => *sent += count,
            Self::Grpc(stream) => stream.wrote(count),
        }
    }

    /// Takes what has arrived; an answer when one is complete.
    pub fn read(&mut self, input: &[u8]) -> Result<Option<Answer>, Fault> {
        match self {
            Self::Http { reader, request, sent } => {
                let mut answer = reader.read(input)?;
                if let Some(answer) = &mut answer {
                    // Answered before all was sent: the rest would be read as the next request.
                    answer.reusable &= *sent == request.len();
                }
                Ok(answer)
            }
            Self::Grpc(stream) => stream.read(input),
        }
    }

    /// The peer wants no further request on this connection.
    pub fn is_going(&self) -> bool {
        matches!(self, Self::Grpc(stream) if stream.is_going())
    }

    /// The connection has ended: an answer if that is how its body ends.
    pub fn end(&mut self) -> Option<Answer> {
        match self {
            Self::Http { reader, .. } => reader.end(),
            Self::Grpc(_) => None,
        }
    }
}
