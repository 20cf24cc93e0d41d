//! Counters of one model: relaxed atomics, a few nanoseconds per update, read as one snapshot.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Upper bounds of the duration buckets, in nanoseconds.
#[rustfmt::skip]
pub const DURATION_BOUNDS_NS: [u64; 17] = [
    50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000,
    100_000_000, 250_000_000, 500_000_000, 1_000_000_000, 2_500_000_000, 5_000_000_000, 10_000_000_000,
];

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident: $($(#[$why:meta])* $variant:ident = $label:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$why])* $variant,)* }

        impl $name {
            /// The reasons' labels, in their order.
            pub const LABELS: [&str; [$($label),*].len()] = [$($label),*];
        }
    };
}

reasons! {
    /// Why a batch left.
    Closed:
    /// It held k rows.
    Full = "full",
    /// Its oldest row was τ old.
    Age = "age",
    /// Waiting longer would have missed a deadline.
    Deadline = "deadline",
    /// A replica was free (work-conserving).
    Idle = "idle",
    /// It is a half of a lost batch.
    Split = "split",
}

reasons! {
    /// Why a request was not answered with outputs.
    Refusal:
    /// The model's queue holds its most requests.
    QueueFull = "queue_full",
    /// The queue holds its most bytes, or the server does.
    BytesFull = "bytes_full",
    /// No replica serves the model.
    NotReady = "not_ready",
    /// It waited longer than it allowed.
    Deadline = "deadline",
    /// Its answer would have come after its deadline.
    Late = "predicted_late",
    /// Its rows have killed replicas before.
    Poison = "poison",
    /// It does not fit the model.
    Invalid = "invalid",
    /// Body or rows above a limit.
    TooLarge = "too_large",
    /// Its client has gone.
    Cancelled = "cancelled",
    /// The model or the server failed.
    Failed = "failed",
    /// Its replica was lost, and the model must not run it again.
    Lost = "lost",
}

/// Counts of durations by bucket.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    pub(crate) buckets: [AtomicU64; DURATION_BOUNDS_NS.len() + 1],
    pub(crate) sum: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, ns: u64) {
        let bucket = DURATION_BOUNDS_NS.iter().take_while(|bound| ns > **bound).count();
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(ns, Relaxed);
    }
}

/// Upper bound of the first bucket of latencies, in microseconds.
pub(crate) const FIRST_US: u64 = 16;
/// Buckets per doubling: a quantile read from them is at most an eighth too high.
pub(crate) const PER_OCTAVE: u64 = 8;
/// Doublings: the last bound is 67 s.
pub(crate) const OCTAVES: u64 = 22;
/// Buckets of latencies.
const LATENCIES: usize = 2 + (OCTAVES * PER_OCTAVE) as usize;

/// The bucket of a latency; one on a bound belongs to the bucket below it.
fn latency_bucket(ns: u64) -> usize {
    let steps = ns.saturating_sub(1) / (1000 * FIRST_US / PER_OCTAVE);
    let Some(octave) = (steps / PER_OCTAVE).checked_ilog2() else { return 0 };
    let bucket = 1 + u64::from(octave) * PER_OCTAVE + (steps >> octave) - PER_OCTAVE;
    (bucket as usize).min(LATENCIES - 1)
}

/// Counts of latencies by bucket.
#[derive(Debug)]
pub(crate) struct Latencies(pub(crate) [AtomicU64; LATENCIES]);

impl Default for Latencies {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; LATENCIES])
    }
}

/// What arrives at one model; written under its lock.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Requests so far.
    pub requests: u64,
    /// Their rows.
    pub rows: u64,
    /// Most rows in 10 ms since this was last taken: of two neighbouring spans of 5 ms each.
    pub burst_rows: u32,
    start: Option<Instant>,
    span: u128,
    spans: [u32; 2],
}

impl Arrivals {
    /// A request has come.
    pub fn count(&mut self, rows: u32, now: Instant) {
        let span = now.duration_since(*self.start.get_or_insert(now)).as_millis() / 5;
        self.spans = match span - self.span.min(span) {
            0 => self.spans,
            1 => [self.spans[1], 0],
            _ => [0, 0],
        };
        self.span = self.span.max(span);
        self.spans[1] += rows;
        self.burst_rows = self.burst_rows.max(self.spans.iter().sum());
        self.requests += 1;
        self.rows += u64::from(rows);
    }
}

/// Batches by size.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    /// By rows: count, hand-over and inference in nanoseconds.
    pub(crate) all: BTreeMap<u32, [u64; 3]>,
    /// By edge and rows, since they were last taken: count, microseconds at the replica, their squares.
    pub(crate) recent: BTreeMap<(u32, u32), [u64; 3]>,
}

/// What one model version has done so far.
#[derive(Debug, Default)]
pub struct Stats {
    pub(crate) request: Histogram,
    pub(crate) queue: Histogram,
    pub(crate) compute: Histogram,
    pub(crate) request_compute_ns: AtomicU64,
    pub(crate) output_ns: AtomicU64,
    pub(crate) fail_ns: AtomicU64,
    pub(crate) inferences: AtomicU64,
    pub(crate) last_inference_ms: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) closed: [AtomicU64; Closed::LABELS.len()],
    pub(crate) refused: [AtomicU64; Refusal::LABELS.len()],
    pub(crate) latency: Latencies,
    pub(crate) late: AtomicU64,
    pub(crate) sizes: Mutex<Sizes>,
}

impl Stats {
    /// A request was answered with outputs and its answer is encoded.
    pub fn answered(&self, queue_ns: u64, compute_ns: u64, total_ns: u64, rows: u32, is_late: bool) {
        self.latency.0[latency_bucket(total_ns)].fetch_add(1, Relaxed);
        if is_late {
            self.late.fetch_add(1, Relaxed);
        }
        self.request.record(total_ns);
        self.queue.record(queue_ns);
        self.request_compute_ns.fetch_add(compute_ns, Relaxed);
        self.output_ns.fetch_add(total_ns.saturating_sub(queue_ns + compute_ns), Relaxed);
        self.inferences.fetch_add(u64::from(rows), Relaxed);
    }

    /// A request was answered with an error after `total_ns`, or its client has gone.
    pub fn refused(&self, why: Refusal, total_ns: u64) {
        self.refused[why as usize].fetch_add(1, Relaxed);
        if why != Refusal::Cancelled {
            self.fail_ns.fetch_add(total_ns, Relaxed);
        }
    }

    /// A batch of that bucket and size has come back: the replica ran it for `infer_ns`, the gateway waited for
    /// `compute_ns`.
    pub fn batch(&self, (edge, rows): (u32, u32), closed: Closed, infer_ns: u64, compute_ns: u64) {
        self.closed[closed as usize].fetch_add(1, Relaxed);
        self.compute.record(compute_ns);
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
        self.last_inference_ms.store(now_ms, Relaxed);
        let (us, mut sizes) = (compute_ns / 1000, self.sizes.lock());
        let [count, handover, infer] = sizes.all.entry(rows).or_default();
        *count += 1;
        *handover += compute_ns.saturating_sub(infer_ns);
        *infer += infer_ns;
        let [count, sum, squares] = sizes.recent.entry((edge, rows)).or_default();
        (*count, *sum, *squares) = (*count + 1, *sum + us, squares.saturating_add(us.saturating_mul(us)));
    }

    /// A replica has taken the place of a dead one.
    pub fn restarted(&self) {
        self.restarts.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::faces::observation::latency_bounds_us;

    #[test]
    fn a_latency_belongs_to_the_first_bucket_whose_bound_it_does_not_pass() {
        let bounds = latency_bounds_us();
        assert_eq!((bounds[..4].to_vec(), bounds.len() + 1), (vec![16, 18, 20, 22], LATENCIES));
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
        for (index, us) in bounds.iter().enumerate() {
            let ns = us * 1000;
            assert_eq!((latency_bucket(ns), latency_bucket(ns + 1)), (index, index + 1), "{us} us");
        }
        assert_eq!((latency_bucket(0), latency_bucket(u64::MAX)), (0, LATENCIES - 1));
    }

    #[test]
    fn a_burst_is_what_came_in_two_neighbouring_spans() {
        let (mut arrivals, start) = (Arrivals::default(), Instant::now());
        for (ms, rows, burst) in
            [(0, 3, 3), (4, 2, 5), (5, 1, 6), (9, 4, 10), (10, 1, 10), (16, 9, 10), (40, 8, 10)]
        {
            arrivals.count(rows, start + Duration::from_millis(ms));
            assert_eq!(arrivals.burst_rows, burst, "after {ms} ms");
        }
        assert_eq!((arrivals.requests, arrivals.rows), (7, 28));
    }
}
