//! What the control plane sees of one model each time that it looks: the queue now, and what came and went meanwhile.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::Serialize;

use crate::models::Model;
use crate::queue::Replica;
use crate::stats::{FIRST_US, OCTAVES, PER_OCTAVE, Refusal, Stats};

/// One model's numbers at one moment; counters since the start, if nothing else is said.
#[derive(Clone, Debug, Serialize)]
pub struct Observed {
    /// The model.
    pub key: u64,
    /// Requests that wait or run.
    pub pending: u32,
    /// Busy replicas, with the milliseconds for which they have run their batches.
    pub inflight_age_ms: Vec<(u64, u64)>,
    /// Requests admitted.
    pub requests: u64,
    /// Their rows.
    pub rows_in: u64,
    /// Most rows in 10 ms since the last look.
    pub burst_rows: u32,
    /// Age of the oldest waiting request.
    pub queue_age_us: u64,
    /// Replicas that take batches.
    pub replicas: u32,
    /// Batches since the last look: edge, rows, count, microseconds at the replica as the gateway saw it, their squares.
    pub service: Vec<(u32, u32, u64, u64, u64)>,
    /// Lengths of a ragged model's requests since the last look, each with its rows.
    pub lengths: Vec<(u32, u64)>,
    /// Batches run.
    pub batches: u64,
    /// Rows answered.
    pub rows: u64,
    /// Time of all batches at their replicas.
    pub busy_ns: u64,
    /// Upper bounds of the buckets of `compute_counts`, whose last one has none.
    pub compute_bounds_us: Vec<u64>,
    /// Batches by their time at the replica.
    pub compute_counts: Vec<u64>,
    /// Upper bounds of the buckets of `latency_counts`, whose last one has none.
    pub latency_bounds_us: Vec<u64>,
    /// Requests by the time from their submission to their encoded answer.
    pub latency_counts: Vec<u64>,
    /// Requests answered after their deadline.
    pub late: u64,
    /// Requests refused because they would have been.
    pub refused_late: u64,
}

/// Upper bounds of the latency buckets, in microseconds: eight equal steps in each doubling.
pub fn latency_bounds_us() -> Vec<u64> {
    let octave =
        |octave| (1..=PER_OCTAVE).map(move |step| (FIRST_US << octave) / PER_OCTAVE * (PER_OCTAVE + step));
    std::iter::once(FIRST_US).chain((0..OCTAVES).flat_map(octave)).collect()
}

impl Model {
    /// What the control plane looks at; `None` if nothing has happened since it last looked and nothing is under way.
    pub fn observe(&self) -> Option<Observed> {
        let (now, mut queue) = (Instant::now(), self.queue.lock());
        let happened = self.stats.happened() + queue.arrivals.requests;
        if queue.pending == 0 && happened == queue.observed {
            return None;
        }
        queue.observed = happened;
        let since = |start: Instant| now.duration_since(start);
        let runs = |one: &Replica| Some((one.id, since(one.running.as_ref()?.sent).as_millis() as u64));
        let (numbers, ragged) = (self.stats.snapshot(), self.spec.ragged.as_ref());
        Some(Observed {
            key: self.key,
            pending: queue.pending,
            inflight_age_ms: queue.replicas.iter().filter_map(runs).collect(),
            requests: queue.arrivals.requests,
            rows_in: queue.arrivals.rows,
            burst_rows: std::mem::take(&mut queue.arrivals.burst_rows),
            queue_age_us: queue.line.oldest().map_or(0, |born| since(born).as_micros() as u64),
            replicas: queue.load(now).ready,
            service: self.stats.take_served(),
            lengths: ragged.map_or_else(Vec::new, |ragged| queue.lengths.take(ragged)),
            batches: numbers.execution_count,
            rows: numbers.inference_count,
            busy_ns: numbers.compute_duration.sum,
            compute_bounds_us: numbers.compute_duration.bounds.iter().map(|ns| ns / 1000).collect(),
            compute_counts: numbers.compute_duration.buckets,
            latency_bounds_us: latency_bounds_us(),
            latency_counts: numbers.latency_counts,
            late: numbers.late,
            refused_late: numbers.refused[Refusal::Late as usize],
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
