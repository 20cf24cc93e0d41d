//! The bound on bytes of request bodies and answers that are in memory at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;

use crate::error::{Error, Result};

/// Smaller pieces are not counted: the buffers of the connection itself weigh more.
const UNCOUNTED: usize = 8 << 10;

/// A budget of bytes, shared by all connections.
#[derive(Clone, Debug)]
pub struct Memory {
    used: Arc<AtomicUsize>,
    limit: usize,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Held {
    memory: Memory,
    bytes: usize,
}

impl Memory {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { used: Arc::default(), limit }
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Takes nothing yet; [`Held::grow`] takes.
    pub fn hold(&self) -> Held {
        Held { memory: self.clone(), bytes: 0 }
    }

    /// An answer as reference-counted bytes, counted until the last of them has been written. Answers are never
    /// refused here: their work is done, and the next request finds the budget used up.
    pub fn count(&self, answer: Vec<u8>) -> Bytes {
        let mut held = self.hold();
        if answer.len() > UNCOUNTED {
            held.bytes = answer.len();
            self.used.fetch_add(held.bytes, Relaxed);
        }
        held.with(answer.into())
    }
}

impl Held {
    /// Counts `total` bytes from now on, or refuses at once.
    pub fn grow(&mut self, total: usize) -> Result<()> {
        if total <= UNCOUNTED || total <= self.bytes {
            return Ok(());
        }
        let (extra, Memory { used, limit }) = (total - self.bytes, &self.memory);
        let before = used.fetch_add(extra, Relaxed);
        if before + extra > *limit {
            used.fetch_sub(extra, Relaxed);
            return Err(Error::unavailable(format!(
                "{before} of {limit} bytes for requests in memory are in use, hint: retry later or send fewer at once"
            )));
        }
        self.bytes = total;
        Ok(())
    }

    /// Ties what was taken to the bytes that take it; from now on this is a part of the budget for others.
    pub fn with(&mut self, data: Bytes) -> Bytes {
        if self.bytes == 0 {
            return data;
        }
        let rest = self.memory.hold();
        Bytes::from_owner(Counted(data, std::mem::replace(self, rest)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.used.fetch_sub(self.bytes, Relaxed);
        }
    }
}

struct Counted(Bytes, #[expect(dead_code, reason = "it is held")] Held);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_above_the_budget_is_refused_and_what_was_held_comes_back() {
        let memory = Memory::new(100_000);
        let mut first = memory.hold();
        first.grow(60_000).expect("within the budget");
        let refused = memory.hold().grow(60_000).expect_err("above the budget");
        assert!(refused.message.starts_with("60000 of 100000 bytes"), "{refused}");
        drop(first);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn an_answer_counts_until_its_last_part_is_dropped() {
        let memory = Memory::new(100_000);
        let answer = memory.count(vec![1; 50_000]);
        let rest = answer.slice(10..);
        drop(answer);
        assert_eq!(memory.used(), 50_000);
        drop(rest);
        assert_eq!(memory.used(), 0);
    }
}
