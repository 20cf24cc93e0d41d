//! What a model has done so far as one set of numbers: for the statistics extension, Prometheus and the control plane.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::models::Model;
use crate::stats::{Closed, DURATION_BOUNDS_NS, Histogram, Refusal, Stats};

/// Upper bounds of the batch size buckets, in rows.
const ROW_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// How often, and for how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Occurrences.
    pub count: u64,
    /// Their sum in nanoseconds.
    pub ns: u64,
}

/// A histogram at one moment: `buckets[i]` counts values up to `bounds[i]` and above the bound before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Upper bounds.
    pub bounds: &'static [u64],
    /// One count more than bounds; the last one is for all that is larger.
    pub buckets: Vec<u64>,
    /// The sum of all values.
    pub sum: u64,
}

impl Distribution {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Batches of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSize {
    /// Rows in the batch.
    pub rows: u32,
    /// Hand-over of rows and outputs: what the gateway saw less what the replica ran.
    pub handover: Total,
    /// The run itself, told by the replica.
    pub infer: Total,
}

/// Everything counted, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests answered with outputs, from submit to the encoded answer.
    pub success: Total,
    /// Requests answered with an error.
    pub fail: Total,
    /// Time in the queue, of successful requests.
    pub queue: Total,
    /// Time at the replica, of successful requests.
    pub compute: Total,
    /// Time from the replica's outputs to the encoded answer.
    pub output: Total,
    /// Requests whose client has gone.
    pub cancelled: u64,
    /// Rows answered.
    pub inference_count: u64,
    /// Batches run.
    pub execution_count: u64,
    /// Milliseconds since 1970 of the last answer; 0 = none yet.
    pub last_inference_ms: u64,
    /// Replicas that took the place of a dead one.
    pub restarts: u64,
    /// Of successful requests.
    pub request_duration: Distribution,
    /// Of successful requests.
    pub queue_duration: Distribution,
    /// Per batch, as the gateway saw it.
    pub compute_duration: Distribution,
    /// Rows per batch.
    pub batch_rows: Distribution,
    /// Batches by reason, in the order of [`Closed::LABELS`].
    pub closed: [u64; Closed::LABELS.len()],
    /// Refusals by reason, in the order of [`Refusal::LABELS`].
    pub refused: [u64; Refusal::LABELS.len()],
    /// From request complete to answer begun, by [`super::observation::latency_bounds_us`].
    pub latency_counts: Vec<u64>,
    /// Requests answered after their deadline.
    pub late: u64,
    /// Batches by size, smallest first.
    pub batch_sizes: Vec<BatchSize>,
}

impl Histogram {
    fn read(&self) -> Distribution {
        let (buckets, sum) = (read(&self.buckets).to_vec(), self.sum.load(Relaxed));
        Distribution { bounds: &DURATION_BOUNDS_NS, buckets, sum }
    }
}

/// Rows per batch, of batches by size.
fn rows(sizes: &[BatchSize]) -> Distribution {
    let (mut buckets, mut sum) = (vec![0; ROW_BOUNDS.len() + 1], 0);
    for BatchSize { rows, infer: Total { count, .. }, .. } in sizes {
        buckets[ROW_BOUNDS.partition_point(|bound| *bound < u64::from(*rows))] += count;
        sum += u64::from(*rows) * count;
    }
    Distribution { bounds: &ROW_BOUNDS, buckets, sum }
}

fn read<const LEN: usize>(counters: &[AtomicU64; LEN]) -> [u64; LEN] {
    std::array::from_fn(|index| counters[index].load(Relaxed))
}

impl Model {
    /// Requests that wait or run.
    pub fn pending(&self) -> u32 {
        self.queue.lock().pending
    }
}

impl Stats {
    /// All numbers; each is exact, but not all of the same nanosecond.
    pub fn snapshot(&self) -> Snapshot {
        let request_duration = self.request.read();
        let queue_duration = self.queue.read();
        let (closed, refused) = (read(&self.closed), read(&self.refused));
        let cancelled = refused[Refusal::Cancelled as usize];
        let count = request_duration.count();
        let size = |(rows, [count, handover, infer]): (&u32, &[u64; 3])| BatchSize {
            rows: *rows,
            handover: Total { count: *count, ns: *handover },
            infer: Total { count: *count, ns: *infer },
        };
        let batch_sizes: Vec<_> = self.sizes.lock().all.iter().map(size).collect();
        Snapshot {
            success: Total { count, ns: request_duration.sum },
            fail: Total { count: refused.iter().sum::<u64>() - cancelled, ns: self.fail_ns.load(Relaxed) },
            queue: Total { count, ns: queue_duration.sum },
            compute: Total { count, ns: self.request_compute_ns.load(Relaxed) },
            output: Total { count, ns: self.output_ns.load(Relaxed) },
            cancelled,
            inference_count: self.inferences.load(Relaxed),
            execution_count: closed.iter().sum(),
            last_inference_ms: self.last_inference_ms.load(Relaxed),
            restarts: self.restarts.load(Relaxed),
            request_duration,
            queue_duration,
            compute_duration: self.compute.read(),
            batch_rows: rows(&batch_sizes),
            closed,
            refused,
            latency_counts: read(&self.latency.0).to_vec(),
            late: self.late.load(Relaxed),
            batch_sizes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_the_bucket_below_it() {
        let stats = Stats::default();
        for rows in [1, 2, 3, 64, 65, 5000] {
            stats.batch((0, rows), Closed::Full, 50_000, 50_000);
        }
        let Snapshot { batch_rows, compute_duration, .. } = stats.snapshot();
        assert_eq!(batch_rows.buckets, [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1]);
        assert_eq!((batch_rows.sum, batch_rows.count()), (5135, 6));
        assert_eq!((compute_duration.buckets[0], compute_duration.sum), (6, 300_000));
    }

    #[test]
    fn totals_follow_answers_refusals_and_batches() {
        let stats = Stats::default();
        stats.batch((0, 2), Closed::Full, 700, 1000);
        stats.answered(100, 1000, 1500, 1, false);
        stats.answered(300, 1000, 1400, 1, true);
        stats.refused(Refusal::QueueFull, 20);
        stats.refused(Refusal::Cancelled, 9999);
        let read = stats.snapshot();
        assert_eq!(read.success, Total { count: 2, ns: 2900 });
        assert_eq!(read.fail, Total { count: 1, ns: 20 });
        assert_eq!(read.queue, Total { count: 2, ns: 400 });
        assert_eq!(read.output, Total { count: 2, ns: 500 });
        assert_eq!((read.inference_count, read.execution_count, read.cancelled), (2, 1, 1));
        let (handover, infer) = (Total { count: 1, ns: 300 }, Total { count: 1, ns: 700 });
        assert_eq!(read.batch_sizes, [BatchSize { rows: 2, handover, infer }]);
        assert!(read.last_inference_ms > 1_700_000_000_000);
    }
}
