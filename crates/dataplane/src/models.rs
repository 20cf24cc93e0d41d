//! A served model version: its queue, its replicas' links, its life from publication to removal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::answer::{Outputs, Spans, Ticket, divide};
use crate::check::{Checked, PerInput, check};
use crate::error::{Error, Result};
use crate::events::{Event, Events};
use crate::faces::guard;
use crate::fill::fill;
use crate::knobs::Knobs;
use crate::link::{Link, LinkReader};
use crate::queue::{Queue, Refused, Replica, Reservation, Running};
use crate::request::{InferRequest, tag};
use crate::slab::{Region, Slab};
use crate::stats::{Refusal, Stats};
use crate::tensor::{DType, ModelSpec, elements};
use crate::wire::{Place, Reply};

/// One batch runs, another's answers are being encoded, and a slow encoder still leaves two.
const OUTPUT_SLOTS: u32 = 4;
/// Batches that can be under way beyond one per queued request.
const SPARE_SLOTS: u32 = 64;

/// A model version.
pub struct Model {
    /// Identifies it towards the control plane.
    pub key: u64,
    /// What it is.
    pub spec: Arc<ModelSpec>,
    /// What it has done.
    pub stats: Arc<Stats>,
    /// Requests and replicas.
    pub(crate) queue: Mutex<Queue>,
    /// What the control plane hears.
    pub(crate) events: Arc<Events>,
    /// Where its tasks run.
    pub(crate) runtime: Handle,
    /// Who answers what comes after it was closed.
    pub(crate) successor: OnceLock<Arc<Self>>,
    /// It has been closed and has answered everything.
    pub(crate) removed: AtomicBool,
    /// Wakes what dispatches.
    pub(crate) timer: Notify,
    slab: Arc<Slab>,
}

/// The input bytes that a slot of this model must hold.
fn slot_bytes(spec: &ModelSpec, max_body_bytes: usize) -> usize {
    let (rows, first) = (spec.max_batch_size.max(1) as usize, usize::from(spec.is_batched()));
    let bytes = spec.inputs.iter().map(|input| {
        let fixed = elements(input.shape.get(first..).unwrap_or_default());
        let fixed = fixed.and_then(|count| count.checked_mul(rows * input.datatype.size())?.checked_add(64));
        fixed.filter(|_| input.datatype != DType::Bytes).unwrap_or(max_body_bytes)
    });
    bytes.fold(0, usize::saturating_add)
}

impl Model {
    /// A model without replicas; its queue is served by `runtime`.
    pub fn new(
        key: u64,
        spec: ModelSpec,
        max_body_bytes: usize,
        events: Arc<Events>,
        runtime: Handle,
    ) -> io::Result<Arc<Self>> {
        let num_slots = spec.max_queue_requests + SPARE_SLOTS;
        let slab = Slab::new(c"lrai-input", slot_bytes(&spec, max_body_bytes), num_slots, true)?;
        let (spec, stats) = (Arc::new(spec), Arc::new(Stats::default()));
        let model = Arc::new(Self {
            key,
            queue: Mutex::new(Queue::new(Arc::clone(&spec), Arc::clone(&stats), Arc::clone(&slab))),
            spec,
            stats,
            slab,
            events,
            runtime,
            removed: AtomicBool::new(false),
            successor: OnceLock::new(),
            timer: Notify::new(),
        });
        model.runtime.spawn(dispatch_task(Arc::clone(&model)));
        Ok(model)
    }

    /// Checks a request, writes its rows into the open batch and dispatches what may leave. May run on any thread.
    pub fn submit(self: &Arc<Self>, request: &InferRequest<'_>) -> Result<Ticket> {
        let now = Instant::now();
        self.try_submit(request, now).or_else(|(error, why)| match self.successor.get() {
            // The request found its way here before the routes changed.
            Some(successor) if why == Refusal::NotReady => successor.submit(request),
            _ => {
                self.stats.refused(why, now.elapsed().as_nanos() as u64);
                Err(tag(&request.id, error))
            }
        })
    }

    fn try_submit(self: &Arc<Self>, request: &InferRequest<'_>, now: Instant) -> Result<Ticket, Refused> {
        let mut checked = check(&self.spec, request).map_err(|error| (error, Refusal::Invalid))?;
        let reservation = self.queue.lock().reserve(&mut checked, now)?;
        let Checked { rows, sources, bucket, mut wanted, .. } = checked;
        let Reservation { batch, entry, deadline, mut regions, answer: receiver } = reservation;
        let axes = bucket.zip(self.spec.ragged.as_ref());
        let write = |(index, (source, region)): (usize, (Option<usize>, &mut Region))| match (source, axes) {
            (None, _) => Ok(0),
            (Some(source), None) => fill(&request.inputs[source], region.bytes()),
            (Some(source), Some((bucket, ragged))) => {
                ragged.fill(index, &request.inputs[source], bucket, region.bytes())
            }
        };
        let written =
            sources.into_iter().zip(&mut regions).enumerate().map(write).collect::<Result<PerInput<usize>>>();
        if let Ok(lens) = &written {
            let bytes = regions.iter_mut().zip(lens).map(|(region, len)| &region.bytes()[..*len]);
            wanted.covered = guard::covers(&self.spec, rows, &bytes.collect());
        }
        drop(regions);
        let mut queue = self.queue.lock();
        let outcome = queue.commit((batch, entry), written);
        if !queue.knobs.work_conserving {
            self.dispatch(&mut queue, now);
        } else if queue.has_free_replica() {
            // The turn's other requests come first, so that they leave together: one wake-up for all of them.
            self.timer.notify_one();
        }
        drop(queue);
        outcome?;
        Ok(Ticket { receiver, model: Arc::clone(self), wanted, rows, bucket, batch, enqueued: now, deadline })
    }

    /// Whether a batch has never been dispatched.
    pub(crate) fn is_waiting(&self, batch: u64) -> bool {
        self.queue.lock().is_waiting(batch)
    }

    fn dispatch(&self, queue: &mut Queue, now: Instant) {
        queue.dispatch(now);
        if !queue.knobs.work_conserving {
            self.timer.notify_one();
        }
    }

    /// An output slot is free again.
    pub(crate) fn slot_returned(&self) {
        let mut queue = self.queue.lock();
        if std::mem::take(&mut queue.starved) {
            self.dispatch(&mut queue, Instant::now());
        }
    }

    /// Gives the model a replica: sends the slabs over its link and begins to read it.
    pub fn attach(self: &Arc<Self>, link: OwnedFd, id: u64) -> io::Result<()> {
        let link = Arc::new(Link::new(link, true)?);
        let output = Slab::new(c"lrai-output", self.spec.max_output_bytes as usize, OUTPUT_SLOTS, false)?;
        link.attach(output.slot_bytes as u64, [self.slab.reader()?.as_fd(), output.writer()])?;
        let replica = Replica { id, link: Arc::clone(&link), output, ready: false, running: None };
        self.queue.lock().replicas.push(replica);
        self.runtime.spawn(link_task(Arc::clone(self), id, link));
        Ok(())
    }

    /// Handles one message of a replica. An error says how the actor broke the protocol.
    fn receive(self: &Arc<Self>, id: u64, reply: Reply) -> Result<(), String> {
        let now = Instant::now();
        let mut queue = self.queue.lock();
        let Some(replica) = queue.replica(id) else { return Ok(()) };
        match reply {
            Reply::Ready => {
                replica.ready = true;
                self.events.push(Event::ReplicaReady { key: self.key, replica: id });
            }
            Reply::Done { batch, compute_ns, outputs } => {
                let mut running = replica.take_running(batch)?;
                let end = outputs.iter().map(|place| place.offset.saturating_add(place.byte_len)).max();
                running.slot.touch(end.unwrap_or(0) as usize);
                let entries = &running.batch.payload.entries;
                let rows: SmallVec<[_; 16]> = entries.iter().map(|entry| entry.rows).collect();
                match divide(&self.spec, &running.slot, &outputs, &rows) {
                    Ok(Some(spans)) => {
                        queue.forget(&running.batch.payload.entries);
                        self.dispatch(&mut queue, now);
                        drop(queue);
                        self.deliver(running, outputs, spans, (compute_ns, now));
                        return Ok(());
                    }
                    Ok(None) => queue.split(running.batch),
                    Err(violation) => {
                        replica.running = Some(running);
                        return Err(violation);
                    }
                }
            }
            Reply::Failed { batch, code, message } => {
                let batch = replica.take_running(batch)?.batch;
                if batch.payload.entries.len() > 1 && self.spec.retry {
                    queue.split(batch);
                } else {
                    let errors = [Error::internal, Error::invalid, Error::unsupported];
                    let error = errors.get(usize::from(code)).unwrap_or(&errors[0])(message);
                    queue.fail(batch, &error, Refusal::Failed);
                }
            }
        }
        self.dispatch(&mut queue, now);
        Ok(())
    }

    fn deliver(
        self: &Arc<Self>,
        Running { batch, slot, sent, closed }: Running,
        places: SmallVec<[Place; 2]>,
        spans: Spans,
        (infer_ns, now): (u64, Instant),
    ) {
        let compute_ns = now.duration_since(sent).as_nanos() as u64;
        self.stats.batch((batch.edge, batch.rows), closed, infer_ns.min(compute_ns), compute_ns);
        let (slot, model) = (Some(slot), Arc::clone(self));
        let ragged = self.spec.ragged.as_ref();
        let length = ragged.and_then(|ragged| ragged.length(&batch.payload.shapes)).unwrap_or(0);
        let outputs = Arc::new(Outputs { slot, model, places, length, spans, sent, compute_ns });
        for (index, entry) in batch.payload.entries.into_iter().enumerate() {
            // The client may have gone; its rows were computed for nothing.
            let _ = entry.answer.send(Ok((Arc::clone(&outputs), index)));
        }
    }

    /// The replica answers no more: its batch waits for `settle`, because only its parent knows how it ended.
    fn link_closed(&self, id: u64, detail: String) {
        let mut queue = self.queue.lock();
        if let Some(replica) = queue.replica(id) {
            replica.close();
            self.events.push(Event::ReplicaLost { key: self.key, replica: id, detail });
        }
    }

    /// Forgets a replica. `fault` names the evidence against the batch that it ran; empty = there is none, `retired` =
    /// others have taken its place. Returns whether the replica was one of this model's.
    pub fn settle(&self, replica: u64, fault: &str) -> bool {
        let mut queue = self.queue.lock();
        let Some(found) = queue.replica(replica) else { return false };
        found.close();
        let is_retired = fault == "retired";
        let fault = if is_retired { "" } else { fault };
        if let Some(digest) = queue.lost(replica, fault) {
            let (digest, reason) = (format!("{digest:016x}"), fault.to_owned());
            self.events.push(Event::Poison { key: self.key, digest, reason });
        }
        if !queue.closing && !is_retired {
            self.stats.restarted();
        }
        self.dispatch(&mut queue, Instant::now());
        true
    }

    /// Sets the knobs.
    pub fn set_knobs(&self, knobs: Knobs) {
        let mut queue = self.queue.lock();
        queue.set_knobs(knobs);
        self.dispatch(&mut queue, Instant::now());
    }

    /// Whether requests are answered now, or will be within a restart.
    pub fn is_ready(&self) -> bool {
        self.queue.lock().is_serving()
    }
}

/// Reads one replica's link until it closes.
async fn link_task(model: Arc<Model>, id: u64, link: Arc<Link>) {
    let read = async {
        let mut reader = LinkReader::new(link).map_err(|error| error.to_string())?;
        while let Some(reply) = reader.next().await.map_err(|error| error.to_string())? {
            model.receive(id, reply)?;
        }
        Ok::<_, String>(())
    };
    let detail =
        read.await.map_or_else(|violation| format!("protocol violation: {violation}"), |()| String::new());
    model.link_closed(id, detail);
}

/// Dispatches at the end of a turn in which requests came, and when the rule says that a batch has become old enough.
async fn dispatch_task(model: Arc<Model>) {
    while !model.removed.load(Relaxed) {
        let next = model.queue.lock().next_check();
        match next {
            None => model.timer.notified().await,
            // Whichever comes first, the rule is asked.
            Some(next) => drop(tokio::time::timeout_at(next.into(), model.timer.notified()).await),
        }
        model.queue.lock().dispatch(Instant::now());
    }
}
