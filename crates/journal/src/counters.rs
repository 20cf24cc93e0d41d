//! What the journal has done, as relaxed atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::store::Totals;

/// Numbers since the start, and what is held now.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes held.
    pub bytes: AtomicU64,
    /// Bytes of requests that are being committed.
    pub(crate) reserved: AtomicU64,
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
        let held = |reserved: u64| reserved.saturating_add(self.bytes.load(Relaxed));
        let fits = |reserved: u64| (held(reserved).saturating_add(size) <= limit).then_some(reserved + size);
        self.reserved.fetch_update(Relaxed, Relaxed, fits).map(drop).map_err(|reserved| {
            self.refused.fetch_add(1, Relaxed);
            held(reserved)
        })
    }

    /// What was set aside is committed, and held, or refused.
    pub(crate) fn settle(&self, size: u64, is_held: bool) {
        self.bytes.fetch_add(if is_held { size } else { 0 }, Relaxed);
        self.reserved.fetch_sub(size, Relaxed);
    }

    /// Gives bytes back that were held.
    pub(crate) fn release(&self, size: u64) {
        let _ = self.bytes.fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(size)));
    }

    /// Takes over what the store counts.
    pub(crate) fn follow(&self, totals: Totals) {
        self.bytes.store(totals.bytes, Relaxed);
        self.waiting.store(totals.waiting, Relaxed);
    }
}
