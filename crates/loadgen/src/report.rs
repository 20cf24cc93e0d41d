//! What a run found, as it is written to JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Config, Histogram, environment::Environment};

/// A finished run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was asked.
    pub settings: Config,
    /// Where it ran, and what else used the machine meanwhile.
    pub environment: Environment,
    /// Requests due within the measured time; in a closed loop, sent in it.
    pub scheduled: u64,
    /// Those of them that were answered with success.
    pub answered: u64,
    /// Failures of them, and failed attempts to connect.
    pub errors: u64,
    /// Successful answers per second of the measured time.
    pub rate: f64,
    /// Bytes read.
    pub received_bytes: u64,
    /// From due to answered; a request given up counts with its age, a failed one does not count.
    pub latency: Latency,
    /// From due to sent; open loop only.
    pub send_delay: Option<SendDelay>,
    /// By kind, such as `http 503`, `grpc 14`, `connect`, `reset`, `timeout`.
    pub errors_by_kind: BTreeMap<String, ErrorCount>,
    /// One row per second after the warm-up, by the time of the answer.
    pub series: Vec<Second>,
}

/// A distribution of latencies in microseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean_us: f64,
    /// Half are at most this.
    pub p50_us: f64,
    /// 90%.
    pub p90_us: f64,
    /// 95%.
    pub p95_us: f64,
    /// 99%.
    pub p99_us: f64,
    /// 99.9%.
    pub p999_us: f64,
    /// The largest.
    pub max_us: f64,
    /// Percentage and value, for a plot whose axis stretches the tail.
    pub curve: Vec<(f64, f64)>,
}

/// How late requests were sent.
#[derive(Debug, Serialize)]
pub struct SendDelay {
    /// Half were at most this late.
    pub p50_us: f64,
    /// 99%.
    pub p99_us: f64,
    /// The latest.
    pub max_us: f64,
    /// Sent more than a millisecond late.
    pub late: u64,
    /// Waited because every connection was busy.
    pub waited: u64,
}

/// Errors of one kind.
#[derive(Debug, Default, Serialize)]
pub struct ErrorCount {
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub first: String,
}

/// One second of a run.
#[derive(Debug, Serialize)]
pub struct Second {
    /// Successful answers.
    pub answered: u64,
    /// Median latency of the answers.
    pub p50_us: f64,
    /// 99% of them.
    pub p99_us: f64,
    /// Errors of any kind.
    pub errors: u64,
}

pub fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

impl Latency {
    pub fn of(histogram: &Histogram) -> Self {
        let at = |share: f64| microseconds(histogram.quantile(share));
        // Ten points per tenfold shorter tail, up to the last request.
        let tails = (0..).map(|step| 10_f64.powf(-f64::from(step) / 10.0));
        let curve = tails
            .take_while(|tail| tail * histogram.count() as f64 >= 1.0)
            .map(|tail| (100.0 * (1.0 - tail), at(1.0 - tail)));
        Self {
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p95_us: at(0.95),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: microseconds(histogram.max()),
            curve: curve.collect(),
        }
    }
}
