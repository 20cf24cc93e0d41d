use std::collections::VecDeque;
use std::time::Instant;

use lrai_dataplane::rule::{Candidate, Knobs, closes, next_check};
use lrai_dataplane::stats::Closed;

pub struct Waiting<P> {
    pub payload: P,
    pub rows: u32,
    pub key: u32,
    pub born: Instant,
    pub deadline: Option<Instant>,
    pub sealed: bool,
}

pub struct Line<P> {
    max_rows: u32,
    batches: VecDeque<Waiting<P>>,
}

impl<P: Default> Line<P> {
    pub fn new(max_rows: u32) -> Self {
        Self { max_rows, batches: VecDeque::new() }
    }
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
    pub fn oldest(&self) -> Option<Instant> {
        self.batches.front().map(|batch| batch.born)
    }
    pub fn join(&mut self, rows: u32, key: u32, deadline: Option<Instant>, now: Instant) -> &mut P {
        let index = self.batches.iter().rposition(|batch| batch.key == key && !batch.sealed);
        let index = index.filter(|index| {
            let batch = &mut self.batches[*index];
            batch.sealed = batch.rows + rows > self.max_rows;
            !batch.sealed
        });
        let index = index.unwrap_or_else(|| {
            self.batches.push_back(Waiting { payload: P::default(), rows: 0, key, born: now, deadline: None, sealed: false });
            self.batches.len() - 1
        });
        let batch = &mut self.batches[index];
        batch.rows += rows;
        batch.deadline = batch.deadline.into_iter().chain(deadline).min();
        &mut batch.payload
    }
    fn candidate(&self, batch: &Waiting<P>) -> Candidate {
        Candidate { rows: batch.rows, full: batch.sealed || batch.rows >= self.max_rows, born: batch.born, deadline: batch.deadline }
    }
    pub fn choose(&mut self, knobs: &Knobs, now: Instant) -> Option<(Waiting<P>, Closed)> {
        let (index, closed) = self.batches.iter().enumerate().find_map(|(index, batch)| Some((index, closes(&self.candidate(batch), knobs, now)?)))?;
        Some((self.batches.remove(index)?, closed))
    }
    pub fn next_check(&self, knobs: &Knobs) -> Option<Instant> {
        if knobs.work_conserving { return None; }
        self.batches.iter().map(|batch| next_check(&self.candidate(batch), knobs)).min()
    }
}
