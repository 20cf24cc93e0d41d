//! What a policy may set while the server runs, and the service times that it has learnt.

use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

/// The knobs of one model; as JSON, times are whole microseconds and 0 means "none".
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Knobs {
    /// A batch with so many rows leaves; 0 = when nothing more fits.
    pub k: u32,
    /// Most rows of a batch; 0 = as many as the model takes.
    pub cap: u32,
    /// A batch whose oldest row is so old leaves.
    #[serde(rename = "tau_us", deserialize_with = "micros")]
    pub tau: Duration,
    /// Kept free between a predicted end and the deadline.
    #[serde(rename = "slack_us", deserialize_with = "micros")]
    pub slack: Duration,
    /// A batch leaves the moment a replica is free.
    pub work_conserving: bool,
    /// Every request is to be answered so soon after it is complete; zero = when it comes.
    #[serde(rename = "goal_us", deserialize_with = "micros")]
    pub goal: Duration,
    /// How long batches take.
    pub service: Service,
    /// Upper edges of the length buckets of a ragged model.
    pub edges: Vec<u32>,
    /// Most rows times edge of a batch; 0 = any.
    pub token_budget: u64,
    /// Most rows of a batch by the edge of its bucket, ascending; a bucket counts as the next larger one that is here, or
    /// else as the largest. Empty = there are none but `cap`.
    pub caps: Vec<(u32, u32)>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            k: 0,
            cap: 0,
            tau: Duration::ZERO,
            slack: Duration::ZERO,
            work_conserving: true,
            goal: Duration::ZERO,
            service: Service::default(),
            edges: Vec::new(),
            token_budget: 0,
            caps: Vec::new(),
        }
    }
}

impl Knobs {
    /// Reads the knobs from JSON text; a bad value is a sentence.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| {
            Error::invalid(format!("knobs: {error}, hint: write whole numbers, times in us"))
        })
    }

    /// Most rows of a batch of that bucket.
    pub fn most_rows(&self, edge: u32) -> u32 {
        let cap = if self.cap == 0 { u32::MAX } else { self.cap };
        let cap = self.bucket_cap(edge).map_or(cap, |rows| rows.min(cap));
        match self.token_budget.checked_div(edge.into()) {
            Some(rows) if self.token_budget > 0 => cap.min(u32::try_from(rows.max(1)).unwrap_or(cap)),
            _ => cap,
        }
    }

    /// From `caps`. What is in no bucket, edge 0, is longer than any.
    fn bucket_cap(&self, edge: u32) -> Option<u32> {
        let next = self.caps.partition_point(|(upper, _)| edge == 0 || *upper < edge);
        self.caps.get(next).or(self.caps.last()).map(|(_, rows)| (*rows).max(1))
    }

    /// The end of a request's time: the least of the goal, what it allows itself, and when its caller leaves.
    pub fn deadline(&self, now: Instant, allowed: Duration, leaves: Option<Instant>) -> Option<Instant> {
        let least = [self.goal, allowed].into_iter().filter(|time| !time.is_zero()).min();
        least.and_then(|time| now.checked_add(time)).into_iter().chain(leaves).min()
    }
}

fn micros<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_micros)
}

/// Service time by bucket and rows: straight lines between the given points, the last one prolonged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<(u32, u32, f64)>")]
pub struct Service {
    /// Edge of the bucket (0 = no buckets), rows, nanoseconds; sorted.
    points: Vec<(u32, u32, u64)>,
}

impl TryFrom<Vec<(u32, u32, f64)>> for Service {
    type Error = String;

    fn try_from(mut given: Vec<(u32, u32, f64)>) -> Result<Self, String> {
        if let Some((edge, rows, us)) = given.iter().find(|(.., us)| !(0.0..1e12).contains(us)) {
            return Err(format!("service time of {rows} rows with edge {edge} is {us} microseconds"));
        }
        given.sort_by_key(|(edge, rows, _)| (*edge, *rows));
        given.dedup_by_key(|(edge, rows, _)| (*edge, *rows));
        let points = given.into_iter().map(|(edge, rows, us)| (edge, rows, (us * 1e3) as u64)).collect();
        Ok(Self { points })
    }
}

impl Service {
    /// Whether there is anything to predict from.
    pub fn is_known(&self) -> bool {
        !self.points.is_empty()
    }

    /// How long a batch takes; `None` = nothing is known. A bucket without points counts as the next larger one that
    /// has some, or else as the largest.
    pub fn predict(&self, edge: u32, rows: u32) -> Option<Duration> {
        let largest = self.points.last()?.0;
        let start = self.points.partition_point(|(other, ..)| *other < edge.min(largest));
        let edge = self.points[start].0;
        let len = self.points[start..].partition_point(|(other, ..)| *other == edge);
        let points = &self.points[start..start + len];
        let after = points.partition_point(|(_, other, _)| *other < rows).clamp(1, len.max(2) - 1);
        let (_, low_rows, low_ns) = points[after - 1];
        let (_, high_rows, high_ns) = points[after.min(len - 1)];
        if rows <= low_rows || low_rows == high_rows {
            return Some(Duration::from_nanos(low_ns));
        }
        let slope = (high_ns as f64 - low_ns as f64) / f64::from(high_rows - low_rows);
        let ns = slope.mul_add(f64::from(rows - low_rows), low_ns as f64);
        Some(Duration::from_nanos(ns.max(0.0) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn knobs_are_json_with_defaults_and_without_unknown_fields() {
        assert_eq!(Knobs::parse("{}"), Ok(Knobs::default()));
        let knobs = Knobs::parse(r#"{"k":8,"tau_us":200,"goal_us":5000,"service":[[0,1,93.5]]}"#).unwrap();
        assert_eq!((knobs.k, knobs.tau, knobs.goal), (8, 200 * US, 5000 * US));
        assert_eq!(knobs.service.predict(0, 7), Some(Duration::from_nanos(93_500)));
        for (text, part) in [
            (r#"{"taus":1}"#, "unknown field `taus`"),
            (r#"{"tau_us":-1}"#, "invalid value"),
            (r#"{"service":[[0,1,-2]]}"#, "service time of 1 rows with edge 0 is -2 microseconds"),
        ] {
            let error = Knobs::parse(text).unwrap_err();
            assert!(error.message.contains(part) && error.message.contains("hint: "), "{error}");
        }
    }

    #[test]
    fn service_times_are_interpolated_in_their_bucket() {
        let points = vec![(0, 1, 100.), (0, 3, 200.), (0, 5, 800.), (64, 2, 10.), (64, 4, 30.)];
        let service = Service::try_from(points).unwrap();
        let us = |edge, rows| service.predict(edge, rows).map(|time| time.as_micros());
        assert_eq!([1, 2, 3, 4, 5, 6].map(|rows| us(0, rows)), [100, 150, 200, 500, 800, 1100].map(Some));
        assert_eq!([1, 2, 3, 4, 9].map(|rows| us(64, rows)), [10, 10, 20, 30, 80].map(Some));
        assert_eq!((us(32, 3), us(99, 3)), (Some(20), Some(20)), "the next larger bucket, or the largest");
        assert_eq!(Service::default().predict(0, 1), None);
    }

    #[test]
    fn a_batch_is_limited_by_cap_and_by_tokens() {
        let knobs = Knobs { cap: 16, token_budget: 1000, ..Knobs::default() };
        assert_eq!([0, 10, 100, 5000].map(|edge| knobs.most_rows(edge)), [16, 16, 10, 1]);
        assert_eq!(Knobs::default().most_rows(512), u32::MAX);
        let knobs = Knobs { caps: vec![(64, 8), (128, 2), (256, 1)], ..knobs };
        assert_eq!([16, 64, 65, 128, 200, 5000, 0].map(|edge| knobs.most_rows(edge)), [8, 8, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn a_deadline_is_the_least_that_applies() {
        let (now, goal) = (Instant::now(), 50 * US);
        let knobs = Knobs { goal, ..Knobs::default() };
        assert_eq!(knobs.deadline(now, Duration::ZERO, None), Some(now + goal));
        assert_eq!(knobs.deadline(now, 20 * US, Some(now + 30 * US)), Some(now + 20 * US));
        assert_eq!(knobs.deadline(now, 90 * US, Some(now + 30 * US)), Some(now + 30 * US));
        assert_eq!(Knobs::default().deadline(now, Duration::ZERO, None), None);
    }
}
