//! What a simulation counts: for the control loop as the server does, for the report exactly.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lrai_dataplane::faces::observation::latency_bounds_us;
use lrai_dataplane::stats::{Arrivals, Closed};
use serde::Serialize;

use crate::Config;

/// What `Gateway.observe()` tells of a model, at one moment, as far as policies look at it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    /// There is one model.
    pub key: u64,
    /// Replicas that take batches.
    pub replicas: u32,
    /// Upper bounds of the buckets of `latency_counts`.
    pub latency_bounds_us: Vec<u64>,
    /// Admitted so far.
    pub requests: u64,
    /// Admitted so far.
    pub rows_in: u64,
    /// Most rows that came in 10 ms since the last look.
    pub burst_rows: u32,
    /// Answered so far, by latency.
    pub latency_counts: Vec<u64>,
    /// Answered after their deadline so far.
    pub late: u64,
    /// Refused so far because they would have been late.
    pub refused_late: u64,
    /// Age of the oldest request that waits.
    pub queue_age_us: u64,
    /// Requests that wait or run.
    pub pending: u32,
    /// Sum of all batches' times so far.
    pub busy_ns: u64,
    /// Batches so far.
    pub batches: u64,
    /// Rows in them.
    pub rows: u64,
    /// Batches since the last look: edge, rows, count, sum in us, sum of squares in us2.
    pub service: Vec<(u32, u32, u64, f64, f64)>,
    /// Requests since the last look by length, where they have one.
    pub lengths: Vec<(u32, u32)>,
}

/// What a report tells, without what arrived in the warm-up.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Time that was counted.
    pub seconds: f64,
    /// Requests that were answered or refused.
    pub requests: u64,
    /// Those answered after the goal, refused or dropped.
    pub misses: u64,
    /// Latencies of those that were answered.
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Share of the replicas' time.
    pub busy: f64,
    /// Batches that ran.
    pub batches: u64,
    /// Rows in them.
    pub rows: u64,
    /// Batches by why they left.
    pub closed: BTreeMap<&'static str, u64>,
}

pub struct Tally {
    goal_ns: u64,
    warmup_ns: u64,
    counters: Counters,
    arrivals: Arrivals,
    lengths: BTreeMap<u32, u32>,
    service: BTreeMap<(u32, u32), (u64, f64, f64)>,
    latencies_ns: Vec<u64>,
    misses: u64,
    refused: u64,
    busy_ns: u64,
    batches: u64,
    rows: u64,
    closed: [u64; Closed::LABELS.len()],
}

impl Tally {
    pub fn new(config: &Config) -> Self {
        let latency_bounds_us = latency_bounds_us();
        let counters = Counters {
            replicas: config.replicas,
            latency_counts: vec![0; latency_bounds_us.len() + 1],
            latency_bounds_us,
            ..Counters::default()
        };
        Self {
            goal_ns: if config.goal_us > 0 { config.goal_us * 1000 } else { u64::MAX },
            warmup_ns: (config.warmup_s * 1e9) as u64,
            counters,
            arrivals: Arrivals::default(),
            lengths: BTreeMap::new(),
            service: BTreeMap::new(),
            latencies_ns: Vec::new(),
            misses: 0,
            refused: 0,
            busy_ns: 0,
            batches: 0,
            rows: 0,
            closed: [0; Closed::LABELS.len()],
        }
    }

    /// A request joined the line.
    pub fn admitted(&mut self, rows: u32, length: u32, now: Instant) {
        if length > 0 {
            *self.lengths.entry(length).or_default() += 1;
        }
        self.arrivals.count(rows, now);
        self.counters.pending += 1;
    }

    /// A request was refused when it came.
    pub fn refused(&mut self, at_ns: u64) {
        self.counters.refused_late += 1;
        let counts = u64::from(at_ns >= self.warmup_ns);
        self.misses += counts;
        self.refused += counts;
    }

    /// A request was refused when it would have run.
    pub fn dropped(&mut self, at_ns: u64) {
        self.counters.pending -= 1;
        self.refused(at_ns);
    }

    /// A batch left.
    pub fn left(&mut self, closed: Closed) {
        self.closed[closed as usize] += 1;
    }

    /// A batch of that edge and so many rows came back.
    pub fn ran(&mut self, now_ns: u64, took_ns: u64, (edge, rows): (u32, u32)) {
        self.counters.batches += 1;
        self.counters.rows += u64::from(rows);
        self.counters.busy_ns += took_ns;
        if now_ns >= self.warmup_ns {
            self.busy_ns += took_ns;
            self.batches += 1;
            self.rows += u64::from(rows);
        }
        let us = took_ns as f64 / 1e3;
        let (count, sum, squares) = self.service.entry((edge, rows)).or_default();
        (*count, *sum, *squares) = (*count + 1, *sum + us, *squares + us * us);
    }

    /// A request was answered.
    pub fn answered(&mut self, at_ns: u64, now_ns: u64, is_late: bool) {
        let latency_ns = now_ns - at_ns;
        let us = latency_ns.div_ceil(1000);
        let bucket = self.counters.latency_bounds_us.partition_point(|bound| *bound < us);
        self.counters.latency_counts[bucket] += 1;
        self.counters.pending -= 1;
        self.counters.late += u64::from(is_late);
        if at_ns >= self.warmup_ns {
            self.latencies_ns.push(latency_ns);
            self.misses += u64::from(latency_ns > self.goal_ns);
        }
    }

    pub fn observe(&mut self, age: Duration) -> Counters {
        let service = std::mem::take(&mut self.service).into_iter();
        let service = service.map(|((edge, rows), (count, sum, squares))| (edge, rows, count, sum, squares));
        let queue_age_us = age.as_micros() as u64;
        Counters {
            requests: self.arrivals.requests,
            rows_in: self.arrivals.rows,
            burst_rows: std::mem::take(&mut self.arrivals.burst_rows),
            queue_age_us,
            service: service.collect(),
            lengths: std::mem::take(&mut self.lengths).into_iter().collect(),
            ..self.counters.clone()
        }
    }

    pub fn outcome(&self, now_ns: u64) -> Outcome {
        let seconds = now_ns.saturating_sub(self.warmup_ns) as f64 / 1e9;
        let mut latencies = self.latencies_ns.clone();
        let count = latencies.len();
        let mean_us = latencies.iter().sum::<u64>() as f64 / 1e3 / count.max(1) as f64;
        let shares = [0.5, 0.9, 0.99, 0.999, 1.0];
        let [p50_us, p90_us, p99_us, p999_us, max_us] = shares.map(|share| {
            let rank = ((count as f64 * share).ceil() as usize).clamp(1, count.max(1)) - 1;
            if count == 0 { 0.0 } else { *latencies.select_nth_unstable(rank).1 as f64 / 1e3 }
        });
        Outcome {
            seconds,
            requests: count as u64 + self.refused,
            misses: self.misses,
            mean_us,
            p50_us,
            p90_us,
            p99_us,
            p999_us,
            max_us,
            busy: self.busy_ns as f64 / 1e9 / seconds.max(1e-9) / f64::from(self.counters.replicas),
            batches: self.batches,
            rows: self.rows,
            closed: Closed::LABELS.into_iter().zip(self.closed).collect(),
        }
    }
}
