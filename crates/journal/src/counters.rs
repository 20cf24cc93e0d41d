//! What the journal has done, as relaxed atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Numbers since the start, and what is held now.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes held.
    pub bytes: AtomicU64,
    /// Requests that wait for their answers.
    pub waiting: AtomicU64,
    /// Requests taken.
    pub accepted: AtomicU64,
    /// Requests answered.
    pub answered: AtomicU64,
    /// Requests refused for want of room.
    pub refused: AtomicU64,
    /// Groups committed.
    pub commits: AtomicU64,
    /// Time that commits took, in microseconds.
    pub commit_us: AtomicU64,
}

impl Counters {
    /// Counts a commit.
    pub(crate) fn commit(&self, took: Duration) {
        self.commits.fetch_add(1, Relaxed);
        self.commit_us.fetch_add(took.as_micros() as u64, Relaxed);
    }

    /// Sets bytes aside if they fit under the limit; else tells how many are held.
    pub(crate) fn reserve(&self, size: u64, limit: u64) -> Result<(), u64> {
        let fits = |used: u64| used.checked_add(size).filter(|total| *total <= limit);
        self.bytes.fetch_update(Relaxed, Relaxed, fits).map(drop).inspect_err(|_| {
            self.refused.fetch_add(1, Relaxed);
        })
    }

    /// Gives bytes back.
    pub(crate) fn release(&self, size: u64) {
        let _ = self.bytes.fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(size)));
    }
}
