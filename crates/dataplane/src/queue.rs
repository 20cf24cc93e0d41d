//! One model's waiting line: admission, rows into the open batch, dispatch to free replicas. Everything here runs under
//! the model's lock and never waits. What happens when a replica fails or dies is in `recovery`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::answer::Part;
use crate::batch::{Batch, Entry};
use crate::check::{Checked, PerInput};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::ragged::Buckets;
use crate::recovery::Poison;
use crate::rule::{Knobs, closes, next_check};
use crate::slab::{Buffer, Region, Slab, Slot};
use crate::stats::{Closed, Refusal, Stats};
use crate::tensor::{DType, ModelSpec, TensorSpec};

/// An error and why the request gets it.
pub type Refused = (Error, Refusal);

/// Rows set aside for one request.
pub struct Reservation {
    /// The batch.
    pub batch: u64,
    /// The request's place in it.
    pub entry: usize,
    /// Where its rows are to be written.
    pub regions: PerInput<Region>,
    /// Where the answer will arrive.
    pub answer: oneshot::Receiver<Result<Part>>,
}

/// A batch at a replica.
pub struct Running {
    /// The batch.
    pub batch: Batch,
    /// Where its outputs go.
    pub slot: Slot,
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
    pub output: Arc<Slab>,
    /// It has said READY and its link is open.
    pub ready: bool,
    /// The batch that it runs.
    pub running: Option<Running>,
}

impl Replica {
    fn is_free(&self) -> bool {
        self.ready && self.running.is_none()
    }

    /// Sends nothing more to it; what it runs waits until its end is known.
    pub fn close(&mut self) {
        self.ready = false;
        self.link.close();
    }

    /// Takes the batch that it says it has run.
    pub fn take_running(&mut self, batch: u64) -> Result<Running, String> {
        let running = self.running.take_if(|running| running.batch.id == batch);
        running.ok_or_else(|| format!("it answered batch {batch}, which it does not run"))
    }
}

/// One model's queue and replicas.
pub struct Queue {
    pub(crate) stats: Arc<Stats>,
    pub(crate) spec: Arc<ModelSpec>,
    pub(crate) slab: Arc<Slab>,
    pub(crate) batches: VecDeque<Batch>,
    pub(crate) poison: Poison,
    pub(crate) buckets: Buckets,
    /// Since when no replica is left, if none is.
    pub(crate) orphaned: Instant,
    bytes: u64,
    last_batch: u64,
    /// The actors.
    pub replicas: Vec<Replica>,
    /// The current knobs.
    pub knobs: Knobs,
    /// Requests that wait or run.
    pub pending: u32,
    /// A replica could not run for want of an output slot.
    pub starved: bool,
    /// No new requests.
    pub closing: bool,
}

impl Queue {
    /// An empty queue over a slab.
    pub fn new(spec: Arc<ModelSpec>, stats: Arc<Stats>, slab: Arc<Slab>) -> Self {
        Self {
            stats,
            spec,
            slab,
            batches: VecDeque::new(),
            poison: Poison::default(),
            buckets: Buckets::default(),
            orphaned: Instant::now(),
            bytes: 0,
            last_batch: 0,
            replicas: Vec::new(),
            knobs: Knobs::default(),
            pending: 0,
            starved: false,
            closing: false,
        }
    }

    /// The replica of that id.
    pub fn replica(&mut self, id: u64) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.id == id)
    }

    /// Sets rows aside, or refuses at once.
    pub fn reserve(&mut self, checked: &mut Checked, now: Instant) -> Result<Reservation, Refused> {
        if let Some(ragged) = &self.spec.ragged {
            checked.bucket = self.buckets.pad(ragged, checked, self.slab.slot_bytes);
        }
        let bytes = checked.max_bytes.iter().map(|bytes| *bytes as u64).sum();
        if self.closing {
            let text = format!("model '{}' is being unloaded", self.spec.name);
            return Err((Error::unavailable(text), Refusal::NotReady));
        }
        if self.check_room(bytes).is_err() {
            self.sweep();
            self.check_room(bytes)?;
        }
        let index = match self.joinable(checked) {
            Some(index) => index,
            None => self.open(checked, now)?,
        };
        let batch = &mut self.batches[index];
        let (regions, spans) = batch.buffer.append(&checked.max_bytes);
        let (sender, answer) = oneshot::channel();
        batch.rows += checked.rows;
        batch.writing += 1;
        if checked.wanted.timeout_us > 0 {
            let deadline = now.checked_add(Duration::from_micros(checked.wanted.timeout_us));
            batch.deadline = batch.deadline.into_iter().chain(deadline).min();
        }
        let (entry, rows) = (batch.entries.len(), checked.rows);
        batch.entries.push(Entry { rows, spans, ready: false, answer: sender, enqueued: now, bytes });
        self.pending += 1;
        self.bytes += bytes;
        self.stats.set_pending(u64::from(self.pending));
        Ok(Reservation { batch: batch.id, entry, regions, answer })
    }

    fn check_room(&self, bytes: u64) -> Result<(), Refused> {
        let most = self.spec.max_queue_bytes;
        if self.pending >= self.spec.max_queue_requests {
            return Err((Error::unavailable("Exceeds maximum queue size"), Refusal::QueueFull));
        }
        if self.bytes + bytes > most {
            let text = format!("Exceeds maximum queue size of {most} bytes");
            return Err((Error::unavailable(text), Refusal::BytesFull));
        }
        Ok(())
    }

    /// The youngest batch that the request can join. When one of its kind is too full, it is sealed: order is kept.
    fn joinable(&mut self, checked: &Checked) -> Option<usize> {
        let is_alike = |batch: &Batch| !batch.sealed && batch.shapes == checked.shapes;
        let index = self.batches.iter().rposition(is_alike)?;
        let batch = &mut self.batches[index];
        let has_room = batch.rows + checked.rows <= batch.buffer.max_rows;
        batch.sealed = !has_room || !batch.buffer.fits(&checked.max_bytes);
        (!batch.sealed).then_some(index)
    }

    fn open(&mut self, checked: &Checked, now: Instant) -> Result<usize, Refused> {
        let Some(slot) = self.slab.take() else {
            return Err((Error::unavailable("Exceeds maximum queue size"), Refusal::QueueFull));
        };
        let Checked { rows, shapes, max_bytes, bucket, .. } = checked;
        let row_bytes = |((input, shape), bytes): ((&TensorSpec, &Option<_>), &usize)| {
            let is_string = input.datatype == DType::Bytes && shape.is_some();
            (!is_string).then(|| bytes.div_ceil((*rows).max(1) as usize))
        };
        let row_bytes: PerInput<_> =
            self.spec.inputs.iter().zip(shapes).zip(max_bytes).map(row_bytes).collect();
        let most = self.buckets.max_rows(*bucket, self.spec.max_batch_size);
        let buffer = Buffer::new(slot, &row_bytes, *rows, most.max(*rows));
        let Some(buffer) = buffer.filter(|buffer| buffer.fits(max_bytes)) else {
            let name = &self.spec.name;
            let text = format!("the inputs take more bytes than model '{name}' accepts in one batch");
            return Err((Error::too_large(text), Refusal::TooLarge));
        };
        let mut batch = Batch::new(self.take_id(), buffer, shapes.clone(), now);
        batch.sealed = !self.spec.is_batched();
        self.batches.push_back(batch);
        Ok(self.batches.len() - 1)
    }

    pub(crate) fn take_id(&mut self) -> u64 {
        self.last_batch += 1;
        self.last_batch
    }

    /// Rows are written, so many bytes per input, or could not be.
    pub fn commit(
        &mut self,
        (batch, entry): (u64, usize),
        written: Result<PerInput<usize>>,
    ) -> Result<(), Refused> {
        let Some(batch) = self.batches.iter_mut().rfind(|candidate| candidate.id == batch) else {
            return Ok(());
        };
        batch.writing -= 1;
        let lens = written.map_err(|error| (error, Refusal::Invalid))?;
        for (span, len) in batch.entries[entry].spans.iter_mut().zip(lens) {
            span.len = len;
        }
        self.poison.check(batch, entry, &self.spec.name)?;
        batch.entries[entry].ready = true;
        Ok(())
    }

    /// Sends batches to free replicas as long as the rule says so.
    pub fn dispatch(&mut self, now: Instant) {
        while let Some((replica, slot)) = self.free_replica() {
            let Some((index, closed)) = self.choose(now) else { break };
            let Some(mut batch) = self.batches.remove(index) else { break };
            let dead = batch.remove_dead();
            self.cancel(&dead);
            if batch.entries.is_empty() {
                continue;
            }
            let run = batch.run(self.spec.is_batched(), slot.index);
            let replica = &mut self.replicas[replica];
            if replica.link.send(&run).is_err() {
                replica.close();
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

    fn free_replica(&mut self) -> Option<(usize, Slot)> {
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

    /// Takes requests that are answered off the books.
    pub fn forget(&mut self, entries: &[Entry]) {
        self.pending -= entries.len() as u32;
        self.bytes -= entries.iter().map(|entry| entry.bytes).sum::<u64>();
    }

    /// Takes requests off the books whose clients have gone; those that could not be written have been counted.
    fn cancel(&mut self, dead: &[Entry]) {
        self.forget(dead);
        dead.iter().filter(|entry| entry.ready).for_each(|_| self.stats.refused(Refusal::Cancelled, 0));
    }

    /// Makes room: drops what waits for clients that have gone.
    fn sweep(&mut self) {
        let idle = self.batches.iter_mut().filter(|batch| batch.writing == 0);
        let dead: Vec<_> = idle.flat_map(Batch::remove_dead).collect();
        self.batches.retain(|batch| !batch.entries.is_empty());
        self.cancel(&dead);
    }

    /// Whether a request would be run soon.
    pub fn is_serving(&self) -> bool {
        let is_restarting = self.orphaned.elapsed() < Duration::from_secs(5);
        !self.closing && (self.replicas.iter().any(|replica| replica.ready) || is_restarting)
    }
}
