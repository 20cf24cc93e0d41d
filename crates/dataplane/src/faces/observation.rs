//! What the control plane sees of one model each time that it looks: the queue now, and what came and went meanwhile.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::queue::{Queue, Replica};
use crate::stats::{FIRST_US, OCTAVES, PER_OCTAVE, Stats};

/// One model's queue at one moment.
pub struct Observed {
    /// Requests that wait or run.
    pub pending: u32,
    /// Busy replicas, with the milliseconds for which they have run their batches.
    pub inflight_age_ms: Vec<(u64, u64)>,
    /// Requests admitted so far.
    pub requests: u64,
    /// Their rows.
    pub rows: u64,
    /// Most rows in 10 ms since the last look.
    pub burst_rows: u32,
    /// Age of the oldest waiting request.
    pub queue_age: Duration,
    /// Replicas that take batches.
    pub replicas: u32,
    /// Batches since the last look: edge, rows, count, microseconds, their squares.
    pub served: Vec<(u32, u32, u64, u64, u64)>,
}

/// Upper bounds of the latency buckets, in microseconds: eight equal steps in each doubling.
pub fn latency_bounds_us() -> Vec<u64> {
    let octave =
        |octave| (1..=PER_OCTAVE).map(move |step| (FIRST_US << octave) / PER_OCTAVE * (PER_OCTAVE + step));
    std::iter::once(FIRST_US).chain((0..OCTAVES).flat_map(octave)).collect()
}

impl Queue {
    /// What the control plane looks at; `None` if nothing has happened since it last looked and nothing is under way.
    pub fn observe(&mut self, now: Instant) -> Option<Observed> {
        let happened = self.stats.happened() + self.arrivals.requests;
        if self.pending == 0 && happened == self.observed {
            return None;
        }
        self.observed = happened;
        let since = |start: Instant| now.duration_since(start);
        let runs = |one: &Replica| Some((one.id, since(one.running.as_ref()?.sent).as_millis() as u64));
        Some(Observed {
            pending: self.pending,
            inflight_age_ms: self.replicas.iter().filter_map(runs).collect(),
            requests: self.arrivals.requests,
            rows: self.arrivals.rows,
            burst_rows: std::mem::take(&mut self.arrivals.burst_rows),
            queue_age: self.line.oldest().map_or(Duration::ZERO, since),
            replicas: self.load(now).ready,
            served: self.stats.take_served(),
        })
    }
}

impl Stats {
    /// Grows with everything that is counted here.
    fn happened(&self) -> u64 {
        let counts = [&self.closed[..], &self.refused[..], &self.latency.0[..]].into_iter().flatten();
        counts.map(|count| count.load(Relaxed)).sum()
    }

    /// Takes the batches that have come back since this was last called, by edge and rows.
    fn take_served(&self) -> Vec<(u32, u32, u64, u64, u64)> {
        let recent = std::mem::take(&mut self.sizes.lock().recent);
        recent.into_iter().map(|((edge, rows), [count, us, us2])| (edge, rows, count, us, us2)).collect()
    }
}
