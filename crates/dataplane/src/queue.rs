//! One model's waiting line: admission, rows into the open batch, dispatch to free replicas, and what happens when a
//! replica fails or dies. Everything here runs under the model's lock and never waits.

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::answer::Part;
use crate::batch::{Batch, Entry, Shapes};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::rule::{Knobs, closes, next_check};
use crate::slab::{Buffer, InputSlab, OutputSlab, OutputSlot, Region};
use crate::stats::{Closed, Refusal, Stats};
use crate::tensor::ModelSpec;

/// How long the digest of a request that ended its actor is refused.
const POISON_TIME: Duration = Duration::from_secs(600);
/// How often a batch may be lost to deaths that are nobody's fault.
const MAX_LOSSES: u32 = 10;
/// How long requests wait for a model that has no running replica.
const ORPHAN_TIME: Duration = Duration::from_secs(30);

/// A request's numbers, as admission needs them.
pub struct Admission {
    /// Rows.
    pub rows: u32,
    /// Shapes that all requests of a batch share.
    pub shapes: Shapes,
    /// Bytes per row of every input; `None` for strings.
    pub row_bytes: SmallVec<[Option<usize>; 2]>,
    /// Bytes of every input (for strings, at most).
    pub sizes: SmallVec<[usize; 2]>,
    /// When it wants to be answered.
    pub deadline: Option<Instant>,
}

/// Rows set aside for one request.
pub struct Reservation {
    /// The batch.
    pub batch: u64,
    /// The request's place in it.
    pub entry: usize,
    /// One region per input.
    pub regions: SmallVec<[Region; 2]>,
    /// Where the answer will arrive.
    pub answer: oneshot::Receiver<Result<Part>>,
}

/// A batch at a replica.
pub struct Running {
    /// The batch.
    pub batch: Batch,
    /// Where its outputs go.
    pub slot: OutputSlot,
    /// When it was sent.
    pub sent: Instant,
    /// Why it left.
    pub closed: Closed,
}

/// The gateway's view of one actor.
pub struct Replica {
    /// Unique in the server.
    pub id: u64,
    /// Its socket.
    pub link: Arc<Link>,
    /// Its outputs.
    pub output: Arc<OutputSlab>,
    /// It has said READY and its link is open.
    pub ready: bool,
    /// The batch that it runs.
    pub running: Option<Running>,
}

impl Replica {
    fn is_free(&self) -> bool {
        self.ready && self.running.is_none()
    }
}

/// One model's queue and replicas.
pub struct Queue {
    stats: Arc<Stats>,
    spec: Arc<ModelSpec>,
    slab: Arc<InputSlab>,
    batches: VecDeque<Batch>,
    /// The actors.
    pub replicas: Vec<Replica>,
    /// The current knobs.
    pub knobs: Knobs,
    /// Requests that wait or run.
    pub pending: u32,
    bytes: u64,
    next_batch: u64,
    poison: HashMap<u64, Instant>,
    hasher: RandomState,
    /// A replica could not run for want of an output slot.
    pub starved: bool,
    orphaned: Instant,
    /// No new requests.
    pub closing: bool,
}

impl Queue {
    /// An empty queue over a slab.
    pub fn new(spec: Arc<ModelSpec>, stats: Arc<Stats>, slab: Arc<InputSlab>) -> Self {
        Self {
            stats,
            spec,
            slab,
            batches: VecDeque::new(),
            replicas: Vec::new(),
            knobs: Knobs::default(),
            pending: 0,
            bytes: 0,
            next_batch: 1,
            poison: HashMap::new(),
            hasher: RandomState::new(),
            starved: false,
            orphaned: Instant::now(),
            closing: false,
        }
    }

    /// Sets rows aside, or refuses at once.
    pub fn reserve(&mut self, admission: &Admission, now: Instant) -> Result<Reservation, (Error, Refusal)> {
        let bytes: u64 = admission.sizes.iter().map(|size| *size as u64).sum();
        if self.closing {
            let text = format!("model '{}' is being unloaded", self.spec.name);
            return Err((Error::unavailable(text), Refusal::NotReady));
        }
        let is_full = |queue: &Self| {
            (queue.pending >= queue.spec.max_queue_requests, queue.bytes + bytes > queue.spec.max_queue_bytes)
        };
        if is_full(self) != (false, false) {
            self.sweep();
        }
        match is_full(self) {
            (true, _) => return Err((Error::unavailable("Exceeds maximum queue size"), Refusal::QueueFull)),
            (_, true) => {
                let text = format!("Exceeds maximum queue size of {} bytes", self.spec.max_queue_bytes);
                return Err((Error::unavailable(text), Refusal::BytesFull));
            }
            _ => {}
        }
        let index = match self.joinable(admission) {
            Some(index) => index,
            None => self.open(admission, now)?,
        };
        let batch = &mut self.batches[index];
        let (regions, spans) = batch.buffer.append(&admission.sizes);
        let (sender, answer) = oneshot::channel();
        batch.rows += admission.rows;
        batch.writing += 1;
        if let Some(deadline) = admission.deadline {
            batch.deadline = Some(batch.deadline.map_or(deadline, |nearest| nearest.min(deadline)));
        }
        let entry = batch.entries.len();
        let (rows, answer_to) = (admission.rows, sender);
        batch.entries.push(Entry { rows, spans, ready: false, answer: answer_to, enqueued: now, bytes });
        self.pending += 1;
        self.bytes += bytes;
        self.stats.set_pending(u64::from(self.pending));
        Ok(Reservation { batch: batch.id, entry, regions, answer })
    }

    /// The youngest batch that the request can join. When one of its kind is too full, it is sealed: order is kept.
    fn joinable(&mut self, admission: &Admission) -> Option<usize> {
        let is_alike = |batch: &Batch| !batch.sealed && batch.shapes == admission.shapes;
        let index = self.batches.iter().rposition(is_alike)?;
        let batch = &mut self.batches[index];
        let has_room = self.spec.is_batched()
            && batch.rows + admission.rows <= batch.buffer.max_rows()
            && batch.buffer.fits(&admission.sizes);
        batch.sealed = !has_room;
        has_room.then_some(index)
    }

    fn open(&mut self, admission: &Admission, now: Instant) -> Result<usize, (Error, Refusal)> {
        let Some(slot) = self.slab.take() else {
            return Err((Error::unavailable("Exceeds maximum queue size"), Refusal::QueueFull));
        };
        let max_rows = if self.spec.is_batched() { self.spec.max_batch_size } else { admission.rows };
        let buffer = Buffer::new(slot, &admission.row_bytes, admission.rows, max_rows.max(admission.rows));
        let Some(buffer) = buffer.filter(|buffer| buffer.fits(&admission.sizes)) else {
            let text =
                format!("the inputs take more bytes than model '{}' accepts in one batch", self.spec.name);
            return Err((Error::too_large(text), Refusal::TooLarge));
        };
        let id = self.take_id();
        self.batches.push_back(Batch {
            id,
            buffer,
            shapes: admission.shapes.clone(),
            entries: Vec::with_capacity(if self.spec.is_batched() { 16 } else { 1 }),
            rows: 0,
            writing: 0,
            has_gaps: false,
            sealed: !self.spec.is_batched(),
            rerun: false,
            losses: 0,
            born: now,
            deadline: None,
        });
        Ok(self.batches.len() - 1)
    }

    fn take_id(&mut self) -> u64 {
        self.next_batch += 1;
        self.next_batch
    }

    /// Rows are written (`lens` bytes per input), or could not be.
    pub fn commit(
        &mut self,
        batch: u64,
        entry: usize,
        lens: Option<&[usize]>,
    ) -> Result<(), (Error, Refusal)> {
        let Some(batch) = self.batches.iter_mut().rev().find(|candidate| candidate.id == batch) else {
            return Ok(());
        };
        batch.writing -= 1;
        let Some(lens) = lens else { return Ok(()) };
        let slot = &mut batch.entries[entry];
        let mut has_gap = false;
        for (span, len) in slot.spans.iter_mut().zip(lens) {
            has_gap |= span.len != *len;
            span.len = *len;
        }
        batch.has_gaps |= has_gap;
        slot.ready = true;
        if !self.poison.is_empty() {
            let digest = batch.digest(&batch.entries[entry], &self.hasher);
            if self.poison.get(&digest).is_some_and(|since| since.elapsed() < POISON_TIME) {
                batch.entries[entry].ready = false;
                let text = format!("this request has ended an actor of model '{}' before", self.spec.name);
                let text = format!("{text} and is refused for ten minutes");
                return Err((Error::invalid(text), Refusal::Poison));
            }
        }
        Ok(())
    }

    /// Sends batches to free replicas as long as the rule says so.
    pub fn dispatch(&mut self, now: Instant) {
        while let Some((replica, slot)) = self.free_replica() {
            let Some((index, closed)) = self.choose(now) else { break };
            let Some(mut batch) = self.batches.remove(index) else { break };
            let dead = batch.remove_dead();
            self.forget(&dead);
            if batch.entries.is_empty() {
                continue;
            }
            let run = batch.run(self.spec.is_batched(), slot.index());
            let replica = &mut self.replicas[replica];
            if replica.link.send(&run.encode()).is_err() {
                replica.ready = false;
                replica.link.close();
            }
            replica.running = Some(Running { batch, slot, sent: now, closed });
        }
        self.stats.set_pending(u64::from(self.pending));
    }

    /// Whether a batch has never been dispatched.
    pub fn is_waiting(&self, id: u64) -> bool {
        self.batches.iter().any(|batch| batch.id == id && !batch.rerun)
    }

    /// Whether a replica waits for a batch.
    pub fn has_free_replica(&self) -> bool {
        self.replicas.iter().any(Replica::is_free)
    }

    fn free_replica(&mut self) -> Option<(usize, OutputSlot)> {
        if self.batches.is_empty() {
            return None;
        }
        let index = self.replicas.iter().position(Replica::is_free)?;
        let slot = self.replicas[index].output.take();
        self.starved |= slot.is_none();
        Some((index, slot?))
    }

    /// The oldest batch that may leave. A batch with ready rows that only waits for a writer takes no more requests.
    fn choose(&mut self, now: Instant) -> Option<(usize, Closed)> {
        for (index, batch) in self.batches.iter_mut().enumerate() {
            let Some(closed) = closes(&batch.candidate(), &self.knobs, now) else { continue };
            if batch.writing == 0 {
                return Some((index, if batch.rerun { Closed::Split } else { closed }));
            }
            batch.sealed |= batch.entries.iter().any(|entry| entry.ready);
        }
        None
    }

    /// When `dispatch` must be called again if nothing else happens. Without a free replica nothing can leave, and a
    /// batch that is being written tells when it is ready.
    pub fn next_check(&self) -> Option<Instant> {
        let is_stuck = self.starved || !self.has_free_replica();
        if self.knobs.work_conserving || is_stuck {
            return None;
        }
        let ready = self.batches.iter().filter(|batch| batch.writing == 0);
        ready.map(|batch| next_check(&batch.candidate(), &self.knobs)).min()
    }

    /// Requests whose clients have gone leave the books.
    fn forget(&mut self, dead: &[Entry]) {
        for entry in dead {
            self.pending -= 1;
            self.bytes -= entry.bytes;
            if entry.ready {
                self.stats.refused(Refusal::Cancelled, 0);
            }
        }
    }

    /// Makes room: drops what waits for clients that have gone.
    fn sweep(&mut self) {
        let mut dead = Vec::new();
        for batch in self.batches.iter_mut().filter(|batch| batch.writing == 0) {
            dead.extend(batch.remove_dead());
        }
        self.batches.retain(|batch| !batch.entries.is_empty());
        self.forget(&dead);
    }

    /// Takes a finished batch off the books.
    pub fn settle_running(&mut self, running: &Running) {
        self.pending -= running.batch.entries.len() as u32;
        self.bytes -= running.batch.entries.iter().map(|entry| entry.bytes).sum::<u64>();
    }

    /// Answers every request of a batch with an error.
    pub fn fail(&mut self, batch: Batch, error: &Error, why: Refusal) {
        for entry in batch.entries {
            self.pending -= 1;
            self.bytes -= entry.bytes;
            self.stats.refused(why, entry.enqueued.elapsed().as_nanos() as u64);
            let _ = entry.answer.send(Err(error.clone()));
        }
    }

    /// Runs the halves of a batch again, before everything else.
    pub fn split(&mut self, batch: Batch) {
        let id = self.take_id();
        let [first, second] = batch.split(id);
        self.batches.push_front(second);
        self.batches.push_front(first);
    }

    /// A replica is gone and so is the reason: runs its batch again, or refuses its culprit, whose digest is returned.
    pub fn lost(&mut self, replica: u64, fault: &str) -> Option<u64> {
        let index = self.replicas.iter().position(|candidate| candidate.id == replica)?;
        let replica = self.replicas.remove(index);
        if self.replicas.is_empty() {
            self.orphaned = Instant::now();
        }
        let mut batch = replica.running?.batch;
        let name = &self.spec.name;
        if !self.spec.retry {
            let text = format!(
                "the actor of model '{name}' died while it ran this request, and it must not be run twice"
            );
            self.fail(batch, &Error::unavailable(text), Refusal::Lost);
            return None;
        }
        if fault.is_empty() {
            batch.losses += 1;
            if batch.losses > MAX_LOSSES {
                let text = format!(
                    "the actors of model '{name}' died {MAX_LOSSES} times while they ran this request"
                );
                self.fail(batch, &Error::unavailable(text), Refusal::Lost);
            } else {
                batch.mark_rerun();
                self.batches.push_front(batch);
            }
            return None;
        }
        if fault == "hang" && batch.entries.len() == 1 && !batch.rerun {
            // Slowness has many causes: a hang counts when it has happened twice.
            batch.mark_rerun();
            self.batches.push_front(batch);
            return None;
        }
        if batch.entries.len() > 1 {
            self.split(batch);
            return None;
        }
        let digest = batch.digest(batch.entries.first()?, &self.hasher);
        self.poison.retain(|_, since| since.elapsed() < POISON_TIME);
        self.poison.insert(digest, Instant::now());
        let text =
            format!("this request ended an actor of model '{name}' ({fault}) and is refused for ten minutes");
        self.fail(batch, &Error::invalid(text), Refusal::Poison);
        Some(digest)
    }

    /// Fails what has waited too long for a model without a replica. Called every second.
    pub fn fail_orphans(&mut self, now: Instant) {
        self.slab.trim(now, Duration::from_secs(2));
        for replica in &self.replicas {
            replica.output.trim(now, Duration::from_secs(2));
        }
        if !self.replicas.is_empty() || now.duration_since(self.orphaned) < ORPHAN_TIME {
            return;
        }
        let text = format!("model '{}' has no running actor", self.spec.name);
        while let Some(index) = self.batches.iter().position(|batch| batch.writing == 0) {
            let Some(batch) = self.batches.remove(index) else { break };
            self.fail(batch, &Error::unavailable(text.clone()), Refusal::NotReady);
        }
    }

    /// Whether a request would be run soon.
    pub fn is_serving(&self) -> bool {
        let is_restarting = self.orphaned.elapsed() < Duration::from_secs(5);
        !self.closing && (self.replicas.iter().any(|replica| replica.ready) || is_restarting)
    }
}
