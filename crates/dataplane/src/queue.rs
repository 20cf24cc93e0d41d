//! One model's queue: admission, rows into the open batch, dispatch to free replicas. Everything here runs under the
//! model's lock and never waits. Which batch leaves is decided in `line`; what happens when a replica fails or dies is in
//! `recovery`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::answer::Part;
use crate::batch::{Batch, Entry, Requests};
use crate::check::{Checked, PerInput};
use crate::error::{Error, Result};
use crate::knobs::Knobs;
use crate::line::{Admission, Arrival, Leaving, Line, Replicas};
use crate::link::Link;
use crate::ragged::Lengths;
use crate::recovery::Poison;
use crate::slab::{Buffer, Region, Slab, Slot};
use crate::stats::{Arrivals, Closed, Refusal, Stats};
use crate::tensor::{DType, ModelSpec, TensorSpec};

/// An error and why the request gets it.
pub type Refused = (Error, Refusal);

/// Rows set aside for one request.
pub struct Reservation {
    /// The batch.
    pub batch: u64,
    /// The request's place in it.
    pub entry: usize,
    /// When the answer must be there.
    pub deadline: Option<Instant>,
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
        let running = self.running.take_if(|running| running.batch.payload.id == batch);
        running.ok_or_else(|| format!("it answered batch {batch}, which it does not run"))
    }
}

/// One model's queue and replicas.
pub struct Queue {
    pub(crate) stats: Arc<Stats>,
    pub(crate) spec: Arc<ModelSpec>,
    pub(crate) slab: Arc<Slab>,
    pub(crate) line: Line<Requests>,
    pub(crate) poison: Poison,
    pub(crate) lengths: Lengths,
    /// Since when no replica is left, if none is.
    pub(crate) orphaned: Instant,
    bytes: u64,
    last_batch: u64,
    /// What has come so far.
    pub(crate) arrivals: Arrivals,
    /// All that had happened when it was last looked at.
    pub(crate) observed: u64,
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
            line: Line::default(),
            poison: Poison::default(),
            lengths: Lengths::default(),
            orphaned: Instant::now(),
            bytes: 0,
            last_batch: 0,
            arrivals: Arrivals::default(),
            observed: 0,
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
            let (edges, room) = (&self.knobs.edges, self.slab.slot_bytes);
            checked.bucket = self.lengths.pad(ragged, checked, edges, room);
        }
        let Checked { rows, bucket, wanted, max_bytes, .. } = &*checked;
        let bytes = max_bytes.iter().map(|bytes| *bytes as u64).sum();
        if self.closing {
            let text = format!("model '{}' is being unloaded", self.spec.name);
            return Err((Error::unavailable(text), Refusal::NotReady));
        }
        let account = self.line.tenants.account(wanted.sender.tenant);
        if self.check_room(bytes, account).is_err() {
            self.sweep();
            self.check_room(bytes, account)?;
        }
        let allowed = Duration::from_micros(wanted.timeout_us);
        let deadline = self.knobs.deadline(now, allowed, wanted.sender.deadline);
        let rank = self.spec.rank(wanted.priority);
        let edge = bucket.map_or(0, |bucket| bucket.edge);
        let arrival = Arrival { rows: *rows, edge, rank, account, now, deadline };
        let is_alike = |other: &Requests| other.shapes == checked.shapes;
        let fits = |other: &Requests| other.buffer.fits(max_bytes);
        let replicas = if self.knobs.service.is_known() { self.load(now) } else { Replicas::default() };
        let index = match self.line.admit(&arrival, &self.knobs, replicas, is_alike, fits) {
            Admission::Joins(index) => index,
            Admission::Opens => self.open(checked, &arrival)?,
            Admission::Late(late) => return Err((too_late(late), Refusal::Late)),
        };
        self.arrivals.count(*rows, now);
        let batch = self.line.add(index, &arrival, &self.knobs);
        batch.writing += 1;
        let (regions, spans) = batch.payload.buffer.append(max_bytes);
        let (sender, answer) = oneshot::channel();
        let (id, entry) = (batch.payload.id, batch.payload.entries.len());
        let entered = Entry {
            rows: *rows,
            length: bucket.map_or(0, |bucket| bucket.length),
            spans,
            ready: false,
            answer: sender,
            enqueued: now,
            deadline,
            account,
            bytes,
        };
        batch.payload.entries.push(entered);
        self.pending += 1;
        self.bytes += bytes;
        Ok(Reservation { batch: id, entry, deadline, regions, answer })
    }

    fn check_room(&self, bytes: u64, account: u64) -> Result<(), Refused> {
        let Self { pending, spec, .. } = self;
        let (most, most_bytes) = (spec.max_queue_requests, spec.max_queue_bytes);
        if *pending >= most {
            return Err((Error::unavailable("Exceeds maximum queue size"), Refusal::QueueFull));
        }
        if self.bytes + bytes > most_bytes {
            let text = format!("Exceeds maximum queue size of {most_bytes} bytes");
            return Err((Error::unavailable(text), Refusal::BytesFull));
        }
        let held = self.line.tenants.pending(account);
        if account != 0 && held >= most - pending {
            let text = format!("Exceeds maximum queue size: this tenant holds {held} of {most} places");
            return Err((Error::unavailable(text), Refusal::QueueFull));
        }
        Ok(())
    }

    /// What the replicas do.
    pub(crate) fn load(&self, now: Instant) -> Replicas {
        let mut load = Replicas::default();
        for replica in self.replicas.iter().filter(|replica| replica.ready) {
            load.ready += 1;
            load.free += u32::from(replica.is_free());
            let rest = |running: &Running| (running.sent + running.batch.service).duration_since(now);
            load.rest += replica.running.as_ref().map_or(Duration::ZERO, rest);
        }
        load
    }

    fn open(&mut self, checked: &Checked, arrival: &Arrival) -> Result<usize, Refused> {
        let Some(slot) = self.slab.take() else {
            return Err((Error::unavailable("Exceeds maximum queue size"), Refusal::QueueFull));
        };
        let Checked { rows, shapes, max_bytes, .. } = checked;
        let row_bytes = |((input, shape), bytes): ((&TensorSpec, &Option<_>), &usize)| {
            let is_string = input.datatype == DType::Bytes && shape.is_some();
            (!is_string).then(|| bytes.div_ceil((*rows).max(1) as usize))
        };
        let row_bytes: PerInput<_> =
            self.spec.inputs.iter().zip(shapes).zip(max_bytes).map(row_bytes).collect();
        let buffer = Buffer::new(slot, &row_bytes, *rows, self.spec.max_batch_size.max(*rows));
        let Some(buffer) = buffer.filter(|buffer| buffer.fits(max_bytes)) else {
            let name = &self.spec.name;
            let text = format!("the inputs take more bytes than model '{name}' accepts in one batch");
            return Err((Error::too_large(text), Refusal::TooLarge));
        };
        // A batch of a model without a batch dimension is full with its first request.
        let max_rows = if self.spec.is_batched() { buffer.max_rows } else { *rows };
        let (id, shapes) = (self.take_id(), shapes.clone());
        let requests = Requests { id, buffer, shapes, entries: Vec::new(), losses: 0 };
        Ok(self.line.open(arrival, max_rows, requests))
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
        let Some(batch) = self.line.iter_mut().rfind(|other| other.payload.id == batch) else {
            return Ok(());
        };
        batch.writing -= 1;
        let lens = written.map_err(|error| (error, Refusal::Invalid))?;
        let requests = &mut batch.payload;
        for (span, len) in requests.entries[entry].spans.iter_mut().zip(lens) {
            span.len = len;
        }
        self.poison.check(requests, entry, &self.spec)?;
        requests.entries[entry].ready = true;
        Ok(())
    }

    /// Sends batches to free replicas as long as the line gives some away.
    pub fn dispatch(&mut self, now: Instant) {
        while let Some((replica, slot)) = self.free_replica() {
            let Some(Leaving { mut batch, closed, hopeless }) = self.line.choose(now, &self.knobs) else {
                break;
            };
            let is_late = |entry: &Entry| entry.deadline.is_some_and(|end| Some(end) < hopeless);
            let dead = batch.remove(|entry| is_dead(entry) || is_late(entry));
            self.cancel(dead, hopeless);
            if batch.payload.entries.is_empty() {
                continue;
            }
            batch.service = self.knobs.service.predict(batch.edge, batch.rows).unwrap_or_default();
            if let Some(ragged) = &self.spec.ragged {
                batch.shorten(ragged);
            }
            let run = batch.payload.run(batch.rows, self.spec.is_batched(), slot.index);
            let replica = &mut self.replicas[replica];
            if replica.link.send(&run).is_err() {
                replica.close();
            }
            replica.running = Some(Running { batch, slot, sent: now, closed });
        }
    }

    /// Whether a batch has never been dispatched.
    pub fn is_waiting(&self, id: u64) -> bool {
        self.line.iter().any(|batch| batch.payload.id == id && !batch.is_rerun())
    }

    /// Whether a replica waits for a batch.
    pub fn has_free_replica(&self) -> bool {
        self.replicas.iter().any(Replica::is_free)
    }

    fn free_replica(&mut self) -> Option<(usize, Slot)> {
        if self.line.is_empty() {
            return None;
        }
        let index = self.replicas.iter().position(Replica::is_free)?;
        let slot = self.replicas[index].output.take();
        self.starved |= slot.is_none();
        Some((index, slot?))
    }

    /// When `dispatch` must be called again if nothing else happens. Without a free replica nothing can leave.
    pub fn next_check(&self) -> Option<Instant> {
        let is_stuck = self.starved || !self.has_free_replica();
        (!is_stuck).then(|| self.line.next_check(&self.knobs)).flatten()
    }

    /// Sets the knobs.
    pub fn set_knobs(&mut self, knobs: Knobs) {
        self.knobs = knobs;
        self.line.predict(&self.knobs);
    }

    /// Takes requests that are answered off the books.
    pub fn forget(&mut self, entries: &[Entry]) {
        self.pending -= entries.len() as u32;
        self.bytes -= entries.iter().map(|entry| entry.bytes).sum::<u64>();
        for entry in entries {
            self.line.tenants.leave(entry.account);
        }
    }

    /// Takes requests off the books whose clients have gone, and tells those that wait how late they would be if their
    /// batch came back at `end`. Those that could not be written have been told and counted.
    fn cancel(&mut self, dead: Vec<Entry>, end: Option<Instant>) {
        self.forget(&dead);
        for entry in dead.into_iter().filter(|entry| entry.ready) {
            let late = end.zip(entry.deadline).map_or(Duration::ZERO, |(end, deadline)| end - deadline);
            if entry.answer.is_closed() {
                self.stats.refused(Refusal::Cancelled, 0);
            } else {
                self.stats.refused(Refusal::Late, entry.enqueued.elapsed().as_nanos() as u64);
                let _ = entry.answer.send(Err(too_late(late)));
            }
        }
    }

    /// Makes room: drops what waits for clients that have gone.
    fn sweep(&mut self) {
        let idle = self.line.iter_mut().filter(|batch| batch.writing == 0);
        let dead: Vec<_> = idle.flat_map(|batch| batch.remove(is_dead)).collect();
        self.line.retain(|batch| !batch.payload.entries.is_empty());
        self.cancel(dead, None);
    }

    /// Whether a request would be run soon.
    pub fn is_serving(&self) -> bool {
        let is_restarting = self.orphaned.elapsed() < Duration::from_secs(5);
        !self.closing && (self.replicas.iter().any(|replica| replica.ready) || is_restarting)
    }
}

/// Whether the client has gone or the rows could not be written.
fn is_dead(entry: &Entry) -> bool {
    !entry.ready || entry.answer.is_closed()
}

/// The refusal of a request whose deadline cannot be met.
#[cold]
fn too_late(late: Duration) -> Error {
    let text =
        format!("the answer would come {late:.1?} after its deadline, hint: send less, or allow more time");
    Error::unavailable(text).retry_after(late)
}
