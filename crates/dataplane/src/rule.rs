//! The dispatch rule: when does a batch leave? It decides on numbers that are already there and allocates nothing.

use std::time::{Duration, Instant};

use crate::stats::Closed;

/// What a policy may set at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// A batch with so many rows leaves; 0 = when nothing more fits.
    pub k: u32,
    /// A batch whose oldest row is so old leaves.
    pub tau: Duration,
    /// A batch leaves when a deadline in it is so near.
    pub slack: Duration,
    /// A batch leaves the moment a replica is free.
    pub work_conserving: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self { k: 0, tau: Duration::ZERO, slack: Duration::ZERO, work_conserving: true }
    }
}

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Rows in the batch.
    pub rows: u32,
    /// Whether nothing more can join it.
    pub full: bool,
    /// When its oldest row came.
    pub born: Instant,
    /// The nearest deadline in it.
    pub deadline: Option<Instant>,
}

/// Whether the batch leaves now that a replica is free, and why.
pub fn closes(batch: &Candidate, knobs: &Knobs, now: Instant) -> Option<Closed> {
    if batch.full || (knobs.k > 0 && batch.rows >= knobs.k) {
        return Some(Closed::Full);
    }
    if knobs.work_conserving {
        return Some(Closed::Idle);
    }
    if now >= batch.born + knobs.tau {
        return Some(Closed::Age);
    }
    batch.deadline.is_some_and(|deadline| now + knobs.slack >= deadline).then_some(Closed::Deadline)
}

/// When the rule must be asked again if nothing else happens.
pub fn next_check(batch: &Candidate, knobs: &Knobs) -> Instant {
    let age = batch.born + knobs.tau;
    match batch.deadline.and_then(|deadline| deadline.checked_sub(knobs.slack)) {
        Some(deadline) => age.min(deadline),
        None => age,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn patient() -> Knobs {
        Knobs { k: 8, tau: 10 * MS, slack: 2 * MS, work_conserving: false }
    }

    #[test]
    fn a_batch_leaves_full_then_old_then_urgent_and_else_waits() {
        let born = Instant::now();
        let batch = Candidate { rows: 3, full: false, born, deadline: Some(born + 7 * MS) };
        assert_eq!(closes(&Candidate { rows: 8, ..batch }, &patient(), born), Some(Closed::Full));
        assert_eq!(closes(&Candidate { full: true, ..batch }, &patient(), born), Some(Closed::Full));
        assert_eq!(closes(&batch, &patient(), born + 4 * MS), None);
        assert_eq!(closes(&batch, &patient(), born + 5 * MS), Some(Closed::Deadline));
        assert_eq!(closes(&batch, &patient(), born + 10 * MS), Some(Closed::Age));
        assert_eq!(next_check(&batch, &patient()), born + 5 * MS);
        assert_eq!(next_check(&Candidate { deadline: None, ..batch }, &patient()), born + 10 * MS);
    }

    #[test]
    fn a_work_conserving_batch_never_waits() {
        let born = Instant::now();
        let batch = Candidate { rows: 1, full: false, born, deadline: None };
        assert_eq!(closes(&batch, &Knobs::default(), born), Some(Closed::Idle));
    }
}
