//! The fast path on a fake clock: the data plane's own line and rule, fed with arrivals and service times instead of
//! sockets and replicas. It computes nothing but time.

mod outcome;
pub mod service;
mod stand_in;

use std::time::{Duration, Instant};

use lrai_dataplane::rule::Knobs;
use serde::Deserialize;

use crate::outcome::Tally;
pub use crate::outcome::{Outcome, Window};
use crate::service::{Random, Service};
use crate::stand_in::{Line, Waiting};

/// One simulated model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Replicas that run side by side.
    pub replicas: u32,
    /// The model's `max_batch_size`.
    pub max_rows: u32,
    /// The latency that an answer must not exceed; 0 = none.
    pub goal_us: f64,
    /// What arrives before that time counts in no outcome.
    pub warmup_s: f64,
    /// Of the noise.
    pub seed: u64,
    /// How long batches take.
    pub service: Service,
}

/// A request that comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Nanoseconds since the start.
    pub at_ns: u64,
    /// Its rows.
    pub rows: u32,
    /// Its length; 0 = the model knows none.
    pub length: u32,
}

struct Entry {
    at_ns: u64,
    rows: u32,
}

struct Running {
    until_ns: u64,
    took_ns: u64,
    batch: Waiting<Vec<Entry>>,
}

/// A model, its arrivals and its clock.
pub struct Simulator {
    config: Config,
    arrivals: Vec<Arrival>,
    next: usize,
    base: Instant,
    now_ns: u64,
    knobs: Knobs,
    line: Line<Vec<Entry>>,
    running: Vec<Option<Running>>,
    random: Random,
    tally: Tally,
}

impl Simulator {
    /// Nothing has arrived yet.
    pub fn new(config: Config, arrivals: Vec<Arrival>) -> Result<Self, String> {
        config.service.check()?;
        if !(1..=1024).contains(&config.replicas) || !(1..=65_536).contains(&config.max_rows) {
            return Err("replicas are 1 to 1024, rows of a batch 1 to 65536".into());
        }
        if !arrivals.is_sorted_by_key(|arrival| arrival.at_ns) {
            return Err("arrivals are not in the order of their times".into());
        }
        if arrivals.iter().any(|arrival| !(1..=config.max_rows).contains(&arrival.rows)) {
            return Err(format!("a request has no row or more than {}", config.max_rows));
        }
        Ok(Self {
            tally: Tally::new(&config),
            line: Line::new(config.max_rows),
            running: (0..config.replicas).map(|_| None).collect(),
            random: Random(config.seed),
            knobs: Knobs::default(),
            base: Instant::now(),
            now_ns: 0,
            next: 0,
            arrivals,
            config,
        })
    }

    /// Sets when batches leave from now on.
    pub fn set_knobs(&mut self, knobs: Knobs) {
        self.knobs = knobs;
        self.dispatch();
    }

    /// Lets so many seconds pass.
    pub fn advance(&mut self, seconds: f64) {
        let until_ns = self.now_ns + (seconds * 1e9) as u64;
        while let Some(at_ns) = self.next_event().filter(|at_ns| *at_ns <= until_ns) {
            self.now_ns = self.now_ns.max(at_ns);
            self.finish();
            self.arrive();
            self.dispatch();
        }
        self.now_ns = until_ns;
    }

    /// Lets time pass until every request that came is answered.
    pub fn drain(&mut self) {
        while let Some(at_ns) = self.next_event() {
            self.advance(at_ns.saturating_sub(self.now_ns) as f64 / 1e9 + 1e-9);
        }
    }

    /// What a server would tell its control loop now.
    pub fn window(&self) -> Window {
        let waits = self.line.oldest().map_or(Duration::ZERO, |born| self.now() - born);
        self.tally.window(waits, self.config.replicas)
    }

    /// What has been counted since the warm-up.
    pub fn outcome(&self) -> Outcome {
        self.tally.outcome(self.now_ns)
    }

    fn now(&self) -> Instant {
        self.base + Duration::from_nanos(self.now_ns)
    }

    fn next_event(&self) -> Option<u64> {
        let arrival = self.arrivals.get(self.next).map(|arrival| arrival.at_ns);
        let end = self.running.iter().flatten().map(|running| running.until_ns).min();
        let is_free = self.running.iter().any(Option::is_none);
        let check = is_free.then(|| self.line.next_check(&self.knobs)).flatten();
        let check = check.map(|at| at.saturating_duration_since(self.base).as_nanos() as u64);
        [arrival, end, check].into_iter().flatten().min()
    }

    fn arrive(&mut self) {
        while let Some(arrival) = self.arrivals.get(self.next).filter(|next| next.at_ns <= self.now_ns) {
            self.next += 1;
            let &Arrival { at_ns, rows, length } = arrival;
            let now = self.now();
            self.line.join(rows, length, None, now).push(Entry { at_ns, rows });
            self.tally.arrived(at_ns, rows);
        }
    }

    fn dispatch(&mut self) {
        let now = self.now();
        for running in &mut self.running {
            if running.is_some() || self.line.is_empty() {
                continue;
            }
            let Some((batch, closed)) = self.line.choose(&self.knobs, now) else { return };
            let now_s = self.now_ns as f64 / 1e9;
            let took_ns = self.config.service.draw_ns(batch.key, batch.rows, now_s, &mut self.random);
            self.tally.left(closed);
            *running = Some(Running { until_ns: self.now_ns + took_ns, took_ns, batch });
        }
    }

    fn finish(&mut self) {
        for place in &mut self.running {
            if let Some(Running { took_ns, batch, .. }) = place.take_if(|run| run.until_ns <= self.now_ns) {
                self.tally.ran(self.now_ns, took_ns, (batch.key, batch.rows));
                for entry in &batch.payload {
                    self.tally.answered(entry.at_ns, self.now_ns, entry.rows);
                }
            }
        }
    }
}
