//! What happens to requests when their replica fails or dies: run again, in halves where they are suspects, or refused.

use std::collections::HashMap;
use std::hash::RandomState;
use std::time::{Duration, Instant};

use crate::batch::{Batch, Requests};
use crate::error::Error;
use crate::queue::{Queue, Refused};
use crate::stats::Refusal;
use crate::tensor::ModelSpec;

/// How long the digest of a request that ended its actor is refused.
const POISON_TIME: Duration = Duration::from_secs(600);
/// How often a batch may be lost to deaths that are nobody's fault.
const MAX_LOSSES: u32 = 10;
/// How long requests wait for a model that has no running replica.
const ORPHAN_TIME: Duration = Duration::from_secs(30);

/// Digests of requests that ended their actors.
#[derive(Default)]
pub struct Poison {
    since: HashMap<u64, Instant>,
    hasher: RandomState,
}

impl Poison {
    /// Refuses a request that is known.
    pub(crate) fn check(&self, batch: &Requests, entry: usize, spec: &ModelSpec) -> Result<(), Refused> {
        let is_known = || {
            let since =
                self.since.get(&batch.digest(&batch.entries[entry], spec.ragged.as_ref(), &self.hasher));
            since.is_some_and(|since| since.elapsed() < POISON_TIME)
        };
        if self.since.is_empty() || !is_known() {
            return Ok(());
        }
        let text = format!("this request has ended an actor of model '{}' before", spec.name);
        Err((Error::invalid(format!("{text} and is refused for ten minutes")), Refusal::Poison))
    }

    /// Remembers the only request of a batch; returns its digest.
    fn learn(&mut self, batch: &Requests, spec: &ModelSpec) -> Option<u64> {
        let digest = batch.digest(batch.entries.first()?, spec.ragged.as_ref(), &self.hasher);
        self.since.retain(|_, since| since.elapsed() < POISON_TIME);
        self.since.insert(digest, Instant::now());
        Some(digest)
    }
}

impl Queue {
    /// A replica is gone and so is the reason: runs its batch again, or refuses its culprit, whose digest is returned.
    pub fn lost(&mut self, replica: u64, fault: &str) -> Option<u64> {
        let index = self.replicas.iter().position(|candidate| candidate.id == replica)?;
        let replica = self.replicas.remove(index);
        if self.replicas.is_empty() {
            self.orphaned = Instant::now();
        }
        let mut batch = replica.running?.batch;
        batch.payload.losses += u32::from(fault.is_empty());
        let name = &self.spec.name;
        if !self.spec.retry {
            let how = "and it must not be run twice";
            let text = format!("the actor of model '{name}' died while it ran this request, {how}");
            self.fail(batch, &Error::unavailable(text), Refusal::Lost);
        } else if batch.payload.losses > MAX_LOSSES && fault.is_empty() {
            let text =
                format!("the actors of model '{name}' died {MAX_LOSSES} times while they ran this request");
            self.fail(batch, &Error::unavailable(text), Refusal::Lost);
        } else if fault.is_empty()
            || (fault == "hang" && batch.payload.entries.len() == 1 && !batch.is_rerun())
        {
            // Slowness has many causes: a hang counts when it has happened twice.
            self.line.again(batch);
        } else if batch.payload.entries.len() > 1 {
            self.split(batch);
        } else {
            let what = format!("this request ended an actor of model '{name}' ({fault})");
            let digest = self.poison.learn(&batch.payload, &self.spec);
            let error = Error::invalid(format!("{what} and is refused for ten minutes"));
            self.fail(batch, &error, Refusal::Poison);
            return digest;
        }
        None
    }

    /// Runs the halves of a batch again, before everything else.
    pub fn split(&mut self, batch: Batch) {
        for half in batch.split(self.take_id()) {
            self.line.again(half);
        }
    }

    /// Answers every request of a batch with an error.
    pub fn fail(&mut self, batch: Batch, error: &Error, why: Refusal) {
        self.forget(&batch.payload.entries);
        for entry in batch.payload.entries {
            self.stats.refused(why, entry.enqueued.elapsed().as_nanos() as u64);
            let _ = entry.answer.send(Err(error.clone()));
        }
    }

    /// Gives idle pages back, and fails what has waited too long for a model without a replica. Called every second.
    pub fn keep_house(&mut self, now: Instant) {
        for slab in self.replicas.iter().map(|replica| &replica.output).chain([&self.slab]) {
            slab.trim(now, Duration::from_secs(2));
        }
        if !self.replicas.is_empty() || now.duration_since(self.orphaned) < ORPHAN_TIME {
            return;
        }
        let error = Error::unavailable(format!("model '{}' has no running actor", self.spec.name));
        while let Some(batch) = self.line.take(|batch| batch.writing == 0) {
            self.fail(batch, &error, Refusal::NotReady);
        }
    }
}
