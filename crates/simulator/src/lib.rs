//! The fast path on a fake clock: the data plane's own line and knobs, fed with arrivals and service times instead of
//! sockets and replicas. It computes nothing but time.

mod service;
mod tally;

use std::time::{Duration, Instant};

use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::line::{self, Admission, LOWEST, Leaving, Line, Replicas, Waiting};
use lrai_loadgen::SplitMix;
use serde::Deserialize;

pub use crate::service::Service;
use crate::tally::Tally;
pub use crate::tally::{Counters, Outcome};

/// One simulated model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Replicas that run side by side.
    pub replicas: u32,
    /// The model's `max_batch_size`.
    pub max_rows: u32,
    /// What a later answer misses; 0 = nothing. Deadlines come from the knobs' own goal.
    pub goal_us: u64,
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
    deadline: Option<Instant>,
}

/// Requests of one length, or of one bucket and padded to its edge.
struct Batch {
    padded: u32,
    entries: Vec<Entry>,
}

struct Running {
    since_ns: u64,
    until_ns: u64,
    predicted: Duration,
    edge: u32,
    rows: u32,
    batch: Batch,
}

/// A model, its arrivals and its clock.
pub struct Simulator {
    config: Config,
    arrivals: std::vec::IntoIter<Arrival>,
    base: Instant,
    now_ns: u64,
    knobs: Knobs,
    line: Line<Batch>,
    running: Vec<Option<Running>>,
    random: SplitMix,
    tally: Tally,
}

impl Simulator {
    /// Nothing has arrived yet; a bad setting is a sentence.
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
            arrivals: arrivals.into_iter(),
            base: Instant::now(),
            now_ns: 0,
            knobs: Knobs::default(),
            line: Line::default(),
            running: (0..config.replicas).map(|_| None).collect(),
            random: SplitMix(config.seed),
            tally: Tally::new(&config),
            config,
        })
    }

    /// Sets when batches leave and what is refused from now on.
    pub fn set_knobs(&mut self, knobs: Knobs) {
        self.knobs = knobs;
        self.line.predict(&self.knobs);
        self.dispatch();
    }

    /// Lets so many seconds pass.
    pub fn advance(&mut self, seconds: f64) {
        let until_ns = self.now_ns + (seconds * 1e9) as u64;
        while let Some(at_ns) = self.next_event().filter(|at_ns| *at_ns <= until_ns) {
            self.step(at_ns);
        }
        self.now_ns = until_ns;
    }

    /// Lets time pass until every request is answered or refused.
    pub fn drain(&mut self) {
        while let Some(at_ns) = self.next_event() {
            self.step(at_ns);
        }
    }

    /// What a server would tell its control loop now.
    pub fn observe(&mut self) -> Counters {
        let now = self.now();
        let age = self.line.oldest().map_or(Duration::ZERO, |born| now - born);
        self.tally.observe(age)
    }

    /// What has been counted since the warm-up.
    pub fn outcome(&self) -> Outcome {
        self.tally.outcome(self.now_ns)
    }

    fn now(&self) -> Instant {
        self.base + Duration::from_nanos(self.now_ns)
    }

    fn step(&mut self, at_ns: u64) {
        self.now_ns = self.now_ns.max(at_ns);
        self.finish();
        while self.arrivals.as_slice().first().is_some_and(|next| next.at_ns <= self.now_ns)
            && let Some(arrival) = self.arrivals.next()
        {
            self.admit(arrival);
        }
        self.dispatch();
    }

    fn next_event(&self) -> Option<u64> {
        let arrival = self.arrivals.as_slice().first().map(|arrival| arrival.at_ns);
        let end = self.running.iter().flatten().map(|running| running.until_ns).min();
        let is_free = self.running.iter().any(Option::is_none);
        let check = is_free.then(|| self.line.next_check(&self.knobs)).flatten();
        let check = check.map(|at| at.saturating_duration_since(self.base).as_nanos() as u64);
        [arrival, end, check].into_iter().flatten().min()
    }

    fn admit(&mut self, Arrival { at_ns, rows, length }: Arrival) {
        let now = self.base + Duration::from_nanos(at_ns);
        let bucket = self.knobs.edges.iter().find(|edge| length > 0 && **edge >= length).copied();
        let padded = bucket.unwrap_or(length);
        let arrival = line::Arrival {
            rows,
            edge: bucket.unwrap_or(0),
            rank: LOWEST,
            account: 0,
            now,
            deadline: self.knobs.deadline(now, Duration::ZERO, None),
        };
        let (replicas, is_alike) = (self.replicas(), |batch: &Batch| batch.padded == padded);
        let index = match self.line.admit(&arrival, &self.knobs, replicas, is_alike, |_| true) {
            Admission::Joins(index) => index,
            Admission::Opens => {
                self.line.open(&arrival, self.config.max_rows, Batch { padded, entries: Vec::new() })
            }
            Admission::Late(_) => return self.tally.refused(at_ns),
        };
        self.tally.admitted(rows, length, now);
        let waiting = self.line.add(index, &arrival, &self.knobs);
        waiting.payload.entries.push(Entry { at_ns, rows, deadline: arrival.deadline });
    }

    fn replicas(&self) -> Replicas {
        let ready = self.config.replicas;
        let running = self.running.iter().flatten();
        let rest = running.map(|running| {
            let passed = Duration::from_nanos(self.now_ns.saturating_sub(running.since_ns));
            running.predicted.saturating_sub(passed)
        });
        Replicas { ready, free: ready - self.running.iter().flatten().count() as u32, rest: rest.sum() }
    }

    fn dispatch(&mut self) {
        while let Some(place) = self.running.iter().position(Option::is_none) {
            let now = self.now();
            let Some(leaving) = self.line.choose(now, &self.knobs) else { break };
            if let Some(running) = self.start(leaving) {
                self.running[place] = Some(running);
            }
        }
    }

    /// Drops the requests that would be late; nothing may be left to run.
    fn start(&mut self, Leaving { batch: waiting, closed, hopeless }: Leaving<Batch>) -> Option<Running> {
        let Waiting { payload: mut batch, service: predicted, edge, .. } = waiting;
        let is_hopeless = |entry: &mut Entry| entry.deadline.is_some_and(|end| Some(end) < hopeless);
        for entry in batch.entries.extract_if(.., is_hopeless) {
            self.tally.dropped(entry.at_ns);
        }
        let rows = batch.entries.iter().map(|entry| entry.rows).sum();
        if rows == 0 {
            return None;
        }
        let now_s = self.now_ns as f64 / 1e9;
        let took_ns = self.config.service.draw_ns(batch.padded, rows, now_s, &mut self.random);
        self.tally.left(closed);
        let since_ns = self.now_ns;
        Some(Running { since_ns, until_ns: since_ns + took_ns, predicted, edge, rows, batch })
    }

    fn finish(&mut self) {
        let now = self.now();
        for place in &mut self.running {
            let ended = place.take_if(|running| running.until_ns <= self.now_ns);
            let Some(Running { since_ns, until_ns, edge, rows, batch, .. }) = ended else { continue };
            self.tally.ran(self.now_ns, until_ns - since_ns, (edge, rows));
            for Entry { at_ns, deadline, .. } in batch.entries {
                self.tally.answered(at_ns, self.now_ns, deadline.is_some_and(|end| end < now));
            }
        }
    }
}
