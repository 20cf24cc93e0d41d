//! The bound on bytes of request bodies and answers that are in memory at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;

use crate::error::{Error, Result};

/// Smaller pieces are not counted: the buffers of the connection itself weigh more.
const UNCOUNTED: usize = 8 << 10;

/// A budget of bytes, shared by all connections.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Counter>);

#[derive(Debug)]
struct Counter {
    used: AtomicUsize,
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
        Self(Arc::new(Counter { used: AtomicUsize::new(0), limit }))
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// Takes nothing yet; [`Held::grow`] takes.
    pub fn hold(&self) -> Held {
        Held { memory: self.clone(), bytes: 0 }
    }

    /// An answer as reference-counted bytes, counted until the last of them has been written. Answers are never
    /// refused here: their work is done, and the next request finds the budget used up.
    pub fn count(&self, answer: Vec<u8>) -> Bytes {
        if answer.len() <= UNCOUNTED {
            return Bytes::from(answer);
        }
        let mut held = self.hold();
        held.take(answer.len());
        Bytes::from_owner(Counted { answer, _held: held })
    }
}

impl Held {
    /// Counts `total` bytes from now on, or refuses at once.
    pub fn grow(&mut self, total: usize) -> Result<()> {
        if total <= UNCOUNTED || total <= self.bytes {
            return Ok(());
        }
        let (extra, limit) = (total - self.bytes, self.memory.0.limit);
        let used = self.memory.0.used.fetch_add(extra, Relaxed);
        if used + extra > limit {
            self.memory.0.used.fetch_sub(extra, Relaxed);
            return Err(Error::unavailable(format!(
                "{used} of {limit} bytes for requests in memory are in use, hint: retry later or send fewer at once"
            )));
        }
        self.bytes = total;
        Ok(())
    }

    fn take(&mut self, total: usize) {
        self.memory.0.used.fetch_add(total - self.bytes, Relaxed);
        self.bytes = total;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.0.used.fetch_sub(self.bytes, Relaxed);
        }
    }
}

struct Counted {
    answer: Vec<u8>,
    _held: Held,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.answer
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
