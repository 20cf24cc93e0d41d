//! What a run is told.

use serde::{Deserialize, Serialize};

use crate::LoadError;

/// How requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1; a request is the complete text, head and body.
    Http,
    /// gRPC over HTTP/2 without TLS; a request is the encoded message.
    Grpc,
}

/// One run of the load generator.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `host:port`, `[v6]:port` or `unix:/path`.
    pub address: String,
    /// How requests travel.
    pub protocol: Protocol,
    /// The method's path; gRPC only.
    #[serde(default)]
    pub path: String,
    /// Connections, each with at most one request in flight.
    pub connections: usize,
    /// Requests per second, sent when due (open loop); absent: each connection sends when it has been answered (closed loop).
    #[serde(default)]
    pub rate: Option<f64>,
    /// Open loop at these microseconds since the start of the warm-up, in rising order, instead of a rate.
    #[serde(default, skip_serializing)]
    pub due_us: Vec<u64>,
    /// Open loop: exponentially distributed gaps instead of equal ones.
    #[serde(default)]
    pub poisson: bool,
    /// Seed of the gaps.
    #[serde(default)]
    pub seed: u64,
    /// Seconds measured, after the warm-up.
    pub duration_s: f64,
    /// Seconds of load before measuring begins.
    #[serde(default)]
    pub warmup_s: f64,
    /// Seconds after its due time at which a request is given up.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: f64,
    /// Microseconds before a due time in which the thread polls instead of sleeping; absent: a tenth of the mean gap,
    /// at most 50, so that polling never costs more than a tenth of a core.
    #[serde(default)]
    pub spin_us: Option<f64>,
}

fn default_timeout_s() -> f64 {
    10.0
}

impl Config {
    /// Nanoseconds between due times; 0 in a closed loop.
    pub fn mean_gap_ns(&self) -> f64 {
        match (self.rate, self.due_us.last()) {
            (Some(rate), _) => 1e9 / rate,
            (None, Some(last)) => *last as f64 * 1e3 / self.due_us.len() as f64,
            (None, None) => 0.0,
        }
    }

    /// Refuses values that no run can have.
    pub fn check(&self) -> Result<(), LoadError> {
        let refuse = |message: String| Err(LoadError::Config(message));
        if !(1..=10_000).contains(&self.connections) {
            return refuse(format!("{} connections, 1 to 10000 are possible", self.connections));
        }
        if let Some(rate) = self.rate.filter(|rate| !(*rate > 0.0 && *rate <= 10e6)) {
            return refuse(format!("rate {rate}/s is not above 0 and at most 10 million"));
        }
        if !self.due_us.is_sorted() || (self.rate.is_some() && !self.due_us.is_empty()) {
            return refuse("due times do not rise, or stand beside a rate".into());
        }
        for (name, value, low) in [
            ("duration", self.duration_s, 0.01),
            ("warm-up", self.warmup_s, 0.0),
            ("time-out", self.timeout_s, 0.001),
        ] {
            if !(low..=86_400.0).contains(&value) {
                return refuse(format!("{name} of {value} s is not between {low} s and a day"));
            }
        }
        Ok(())
    }
}
