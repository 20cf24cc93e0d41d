//! What a simulation counts: for the control loop, as the server would, and for the report, exactly.

use std::collections::BTreeMap;
use std::time::Duration;

use lrai_dataplane::stats::Closed;
use serde::Serialize;

use crate::Config;

const BURST_NS: u64 = 10_000_000;

/// The counters of `Gateway.observe()`, as they are at one moment.
#[derive(Clone, Debug, Default)]
pub struct Window {
    pub requests: u64,
    pub rows_in: u64,
    pub burst_rows: u32,
    pub latency_counts: Vec<u64>,
    pub late: u64,
    pub pending: u32,
    pub batches: u64,
    pub rows: u64,
    pub queue_age_us: u64,
    pub replicas: u32,
    pub busy_ns: u64,
    pub service: Vec<(u32, u32, u64, f64, f64)>,
}

/// What a report tells, without the warm-up.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub seconds: f64,
    pub requests: u64,
    pub misses: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Share of the replicas' time.
    pub busy: f64,
    pub batches: u64,
    pub rows: u64,
    pub closed: BTreeMap<&'static str, u64>,
}

pub struct Tally {
    goal_ns: u64,
    warmup_ns: u64,
    replicas: u32,
    window: Window,
    service: BTreeMap<(u32, u32), (u64, f64, f64)>,
    latencies: Vec<u64>,
    misses: u64,
    busy_ns: u64,
    batches: u64,
    rows: u64,
    closed: [u64; Closed::LABELS.len()],
}

impl Tally {
    pub fn new(config: &Config) -> Self {
        Self {
            goal_ns: if config.goal_us > 0.0 { (config.goal_us * 1e3) as u64 } else { u64::MAX },
            warmup_ns: (config.warmup_s * 1e9) as u64,
            replicas: config.replicas,
            window: Window::default(),
            service: BTreeMap::new(),
            latencies: Vec::new(),
            misses: 0, busy_ns: 0, batches: 0, rows: 0,
            closed: [0; Closed::LABELS.len()],
        }
    }

    pub fn arrived(&mut self, _at_ns: u64, rows: u32) {
        self.window.requests += 1;
        self.window.rows_in += u64::from(rows);
        self.window.pending += 1;
    }

    pub fn left(&mut self, closed: Closed) {
        self.closed[closed as usize] += 1;
    }

    pub fn ran(&mut self, now_ns: u64, took_ns: u64, (edge, rows): (u32, u32)) {
        self.window.batches += 1;
        self.window.rows += u64::from(rows);
        self.window.busy_ns += took_ns;
        if now_ns >= self.warmup_ns {
            self.busy_ns += took_ns;
            self.batches += 1;
            self.rows += u64::from(rows);
        }
        let us = took_ns as f64 / 1e3;
        let row = self.service.entry((edge, rows)).or_default();
        *row = (row.0 + 1, row.1 + us, row.2 + us * us);
    }

    pub fn answered(&mut self, at_ns: u64, now_ns: u64, _rows: u32) {
        let latency = now_ns - at_ns;
        self.window.pending -= 1;
        self.window.late += u64::from(latency > self.goal_ns);
        if at_ns >= self.warmup_ns {
            self.latencies.push(latency);
            self.misses += u64::from(latency > self.goal_ns);
        }
    }

    pub fn window(&self, age: Duration, replicas: u32) -> Window {
        Window { queue_age_us: age.as_micros() as u64, replicas, ..self.window.clone() }
    }

    pub fn outcome(&self, now_ns: u64) -> Outcome {
        let seconds = now_ns.saturating_sub(self.warmup_ns) as f64 / 1e9;
        let mut latencies = self.latencies.clone();
        let mut at = |share: f64| {
            if latencies.is_empty() { return 0.0; }
            let index = ((latencies.len() as f64 * share).ceil() as usize).clamp(1, latencies.len()) - 1;
            *latencies.select_nth_unstable(index).1 as f64 / 1e3
        };
        let [p50_us, p90_us, p99_us, p999_us, max_us] = [0.5, 0.9, 0.99, 0.999, 1.0].map(&mut at);
        let count = self.latencies.len();
        Outcome {
            seconds, requests: count as u64, misses: self.misses,
            mean_us: self.latencies.iter().sum::<u64>() as f64 / 1e3 / count.max(1) as f64,
            p50_us, p90_us, p99_us, p999_us, max_us,
            busy: self.busy_ns as f64 / 1e9 / seconds.max(1e-9) / f64::from(self.replicas),
            batches: self.batches, rows: self.rows,
            closed: Closed::LABELS.into_iter().zip(self.closed).collect(),
        }
    }
}
