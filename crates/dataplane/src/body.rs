//! Request bodies: read with limits and a deadline, their bytes counted as held.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, sleep_until, timeout};

use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::memory::Held;

/// A body that makes progress earns this much more time per byte: 64 KiB a second.
const EARNED_PER_BYTE: Duration = Duration::from_nanos(1_000_000_000 / (64 << 10));

/// How long and how far the body of a refused request is read on.
const DISCARD: Duration = Duration::from_secs(2);
const DISCARD_BYTES: usize = 256 << 20;

/// Puts the parts of a body together, within limits.
pub struct Reader {
    /// What has come in and was not taken out, in one piece.
    pub data: Bytes,
    /// What that takes of the budget.
    pub held: Held,
    patience: Duration,
    limit: usize,
}

impl Reader {
    /// Nothing has been read yet.
    pub fn new(Dataplane { config, memory, .. }: &Dataplane) -> Self {
        let patience = Duration::from_millis(config.body_timeout_ms);
        Self { data: Bytes::new(), held: memory.hold(), patience, limit: config.max_body_bytes }
    }

    /// Reads to the end; refuses what is too large, too slow, or finds no memory left.
    pub async fn all(&mut self, body: &mut Incoming) -> Result<Bytes> {
        check_size(expected(body), self.limit)?;
        let began = Instant::now();
        while !body.is_end_stream() && self.more(body, Some(began)).await? {
            check_size(self.data.len(), self.limit)?;
        }
        Ok(self.held.with(std::mem::take(&mut self.data)))
    }

    /// Waits for more bytes; false = that was the end. Time runs since `began`, if at all.
    pub async fn more(&mut self, body: &mut Incoming, began: Option<Instant>) -> Result<bool> {
        let frame = match began {
            None => body.frame().await,
            Some(began) => {
                let deadline = began + self.patience + EARNED_PER_BYTE * self.data.len() as u32;
                // The timer is registered only if the bytes are not here yet.
                tokio::select! {
                    biased;
                    frame = body.frame() => frame,
                    () = sleep_until(deadline) => return Err(self.late()),
                }
            }
        };
        let Some(frame) = frame else { return Ok(false) };
        let frame = frame.map_err(|error| Error::invalid(format!("the body broke off: {error}")))?;
        let chunk = frame.into_data().unwrap_or_default();
        self.held.grow(self.data.len() + chunk.len())?;
        if self.data.is_empty() {
            self.data = chunk;
            return Ok(true);
        }
        // Growing is amortised: our own bytes come back with their spare room.
        let mut whole = BytesMut::from(std::mem::take(&mut self.data));
        whole.reserve(chunk.len() + expected(body));
        whole.extend_from_slice(&chunk);
        self.data = whole.freeze();
        Ok(true)
    }

    #[cold]
    fn late(&self) -> Error {
        let limit_ms = self.patience.as_millis();
        Error::timeout(format!("the request body was not complete after {limit_ms} ms"))
    }
}

/// Bytes that have not come yet, as far as the client has told.
fn expected(body: &Incoming) -> usize {
    usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX)
}

/// Reads the rest of a refused request's body for a moment, so that a client that sends first and reads then gets its
/// answer instead of a reset connection.
pub async fn discard(mut body: Incoming) {
    let read_on = async {
        let mut total = 0;
        while total <= DISCARD_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            total += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // When the time is over, the connection is closed by dropping the body.
    drop(timeout(DISCARD, read_on).await);
}

/// Refuses a body of more than `limit` bytes.
pub fn check_size(bytes: usize, limit: usize) -> Result<()> {
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::too_large(format!(
        "request body of {bytes} bytes or more exceeds the maximum allowed value of {limit} bytes, hint: raise --max-body-bytes"
    )))
}
