//! Counts what happens to requests, within the measured time and second by second.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::report::{ErrorCount, Latency, Report, Second, SendDelay, microseconds};
use crate::wire::{Answer, Fault};
use crate::{Config, Histogram, environment::Environment};

const SECOND: u64 = 1_000_000_000;
const LATE: u64 = 1_000_000;

/// The counts of one run; all times in nanoseconds of the run.
pub struct Tally {
    window: Range<u64>,
    latency: Histogram,
    send_delay: Histogram,
    late: u64,
    waited: u64,
    scheduled: u64,
    answered: u64,
    /// Answered within the window, whenever due.
    finished: u64,
    received_bytes: u64,
    errors: BTreeMap<String, ErrorCount>,
    series: Vec<Second>,
    /// The second that is being counted.
    second: Histogram,
    second_answered: u64,
    second_errors: u64,
    /// Since the start, warm-up included; for whoever watches.
    pub total_answered: u64,
    pub total_errors: u64,
}

impl Tally {
    pub fn new(window: Range<u64>) -> Self {
        Self {
            window,
            latency: Histogram::default(),
            send_delay: Histogram::default(),
            late: 0,
            waited: 0,
            scheduled: 0,
            answered: 0,
            finished: 0,
            received_bytes: 0,
            errors: BTreeMap::new(),
            series: Vec::new(),
            second: Histogram::default(),
            second_answered: 0,
            second_errors: 0,
            total_answered: 0,
            total_errors: 0,
        }
    }

    /// A request is on its way.
    pub fn sent(&mut self, due: u64, now: u64, waited: bool) {
        if self.window.contains(&due) {
            self.scheduled += 1;
            self.send_delay.record(now - due);
            self.late += u64::from(now - due > LATE);
            self.waited += u64::from(waited);
        }
    }

    /// It has been answered, with success or not.
    pub fn answered(&mut self, due: u64, now: u64, answer: Answer) {
        self.received_bytes += answer.bytes;
        if let Some(fault) = answer.fault {
            return self.failed(due, now, fault);
        }
        self.total_answered += 1;
        self.finished += u64::from(self.window.contains(&now));
        if self.window.contains(&due) {
            self.answered += 1;
            self.latency.record(now - due);
        }
        if self.roll(now) {
            self.second_answered += 1;
            self.second.record(now - due);
        }
    }

    /// It was given up; its age counts as its latency, so that waiting in vain cannot improve a percentile.
    pub fn gave_up(&mut self, due: u64, now: u64, sent: bool) {
        if self.window.contains(&due) {
            self.scheduled += u64::from(!sent);
            self.latency.record(now - due);
        }
        let what = if sent { "no answer" } else { "no free connection" };
        self.failed(due, now, Fault::new("timeout", format!("{what} in {} ms", (now - due) / 1_000_000)));
    }

    /// It has failed.
    pub fn failed(&mut self, due: u64, now: u64, fault: Fault) {
        self.total_errors += 1;
        if self.roll(now) {
            self.second_errors += 1;
        }
        if self.window.contains(&due) {
            let kind = self.errors.entry(fault.kind).or_default();
            if kind.count == 0 {
                kind.first = fault.text;
            }
            kind.count += 1;
        }
    }

    /// Closes the seconds that have passed; false during the warm-up.
    fn roll(&mut self, now: u64) -> bool {
        let Some(since) = now.checked_sub(self.window.start) else { return false };
        while (self.series.len() as u64) < since / SECOND {
            self.close_second();
        }
        true
    }

    fn close_second(&mut self) {
        self.series.push(Second {
            answered: std::mem::take(&mut self.second_answered),
            p50_us: microseconds(self.second.quantile(0.5)),
            p99_us: microseconds(self.second.quantile(0.99)),
            errors: std::mem::take(&mut self.second_errors),
        });
        self.second.clear();
    }

    pub fn report(mut self, config: &Config, environment: Environment) -> Report {
        if self.second_answered + self.second_errors > 0 {
            self.close_second();
        }
        Report {
            settings: config.clone(),
            environment,
            scheduled: self.scheduled,
            answered: self.answered,
            errors: self.errors.values().map(|kind| kind.count).sum(),
            rate: self.finished as f64 * SECOND as f64 / (self.window.end - self.window.start) as f64,
            received_bytes: self.received_bytes,
            latency: Latency::of(&self.latency),
            send_delay: (config.mean_gap_ns() > 0.0).then(|| SendDelay {
                p50_us: microseconds(self.send_delay.quantile(0.5)),
                p99_us: microseconds(self.send_delay.quantile(0.99)),
                max_us: microseconds(self.send_delay.max()),
                late: self.late,
                waited: self.waited,
            }),
            errors_by_kind: self.errors,
            series: self.series,
        }
    }
}
