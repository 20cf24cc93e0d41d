//! A served model version: its queue, its replicas' links, its life from publication to removal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::answer::{Finished, OutputFault, Ticket, divide};
use crate::check::{Checked, check};
use crate::error::{Error, Result};
use crate::events::{Event, Events};
use crate::fill::fill;
use crate::link::{Link, LinkReader};
use crate::queue::{Admission, Queue, Replica, Reservation, Running};
use crate::request::InferRequest;
use crate::rule::Knobs;
use crate::slab::{InputSlab, OutputSlab};
use crate::stats::{Refusal, Stats};
use crate::tensor::{DType, ModelSpec};
use crate::wire::{Attach, Place, Reply};

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
    queue: Mutex<Queue>,
    slab: Arc<InputSlab>,
    events: Arc<Events>,
    runtime: Handle,
    next_replica: Arc<AtomicU64>,
    starved: AtomicBool,
    removed: AtomicBool,
    successor: OnceLock<Arc<Self>>,
    timer: Notify,
}

/// A control-plane view of a model, as plain numbers.
#[derive(Clone, Debug)]
pub struct Window {
    /// Which model.
    pub key: u64,
    /// Requests that wait or run.
    pub pending: u32,
    /// Per busy replica: its id and for how many milliseconds it has run its batch.
    pub running: Vec<(u64, u64)>,
}

/// The input bytes that a slot of this model must hold.
fn slot_bytes(spec: &ModelSpec, max_body_bytes: usize) -> usize {
    let rows = spec.max_batch_size.max(1) as usize;
    let mut fixed = 0usize;
    for input in &spec.inputs {
        let dims = &input.shape[usize::from(spec.is_batched()).min(input.shape.len())..];
        let count =
            dims.iter().try_fold(1usize, |product, dim| product.checked_mul(usize::try_from(*dim).ok()?));
        match count.and_then(|count| count.checked_mul(rows * input.datatype.size())) {
            Some(bytes) if input.datatype != DType::Bytes => fixed = fixed.saturating_add(bytes + 64),
            _ => fixed = fixed.saturating_add(max_body_bytes),
        }
    }
    fixed
}

impl Model {
    /// A model without replicas; its queue is served by `runtime`.
    pub fn new(
        key: u64,
        spec: ModelSpec,
        max_body_bytes: usize,
        next_replica: Arc<AtomicU64>,
        (events, runtime): (Arc<Events>, Handle),
    ) -> io::Result<Arc<Self>> {
        let slab = InputSlab::new(slot_bytes(&spec, max_body_bytes), spec.max_queue_requests + SPARE_SLOTS)?;
        let (spec, stats) = (Arc::new(spec), Arc::new(Stats::default()));
        let queue = Mutex::new(Queue::new(Arc::clone(&spec), Arc::clone(&stats), Arc::clone(&slab)));
        let (starved, removed, timer) = (AtomicBool::new(false), AtomicBool::new(false), Notify::new());
        let successor = OnceLock::new();
        let model = Arc::new(Self {
            key,
            spec,
            stats,
            queue,
            slab,
            events,
            runtime,
            next_replica,
            starved,
            removed,
            successor,
            timer,
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
                Err(request.tag(error))
            }
        })
    }

    fn try_submit(
        self: &Arc<Self>,
        request: &InferRequest<'_>,
        now: Instant,
    ) -> Result<Ticket, (Error, Refusal)> {
        let checked = check(&self.spec, request).map_err(|error| (error, Refusal::Invalid))?;
        let admission = self.admission(&checked, now);
        let reservation = self.queue.lock().reserve(&admission, now)?;
        let Reservation { batch, entry, mut regions, answer } = reservation;
        let mut lens = SmallVec::<[usize; 2]>::new();
        let written = checked.placements.iter().zip(&mut regions).try_for_each(|(placement, region)| {
            let len =
                placement.source.map_or(Ok(0), |source| fill(&request.inputs[source], region.bytes()))?;
            lens.push(len);
            Ok(())
        });
        drop(regions);
        let mut queue = self.queue.lock();
        let outcome = match written {
            Ok(()) => queue.commit(batch, entry, Some(&lens)),
            Err(error) => {
                let _ = queue.commit(batch, entry, None);
                Err((error, Refusal::Invalid))
            }
        };
        if !queue.knobs.work_conserving {
            self.dispatch(&mut queue, now);
        } else if queue.has_free_replica() {
            // The turn's other requests come first, so that they leave together: one wake-up for all of them.
            self.timer.notify_one();
        }
        drop(queue);
        outcome?;
        Ok(Ticket::new(answer, Arc::clone(self), checked.wanted, (batch, now)))
    }

    fn admission(&self, checked: &Checked, now: Instant) -> Admission {
        let is_batched = self.spec.is_batched();
        let mut admission = Admission {
            rows: checked.rows,
            shapes: SmallVec::new(),
            row_bytes: SmallVec::new(),
            sizes: SmallVec::new(),
            deadline: match checked.wanted.timeout_us {
                0 => None,
                timeout => now.checked_add(Duration::from_micros(timeout)),
            },
        };
        for (placement, input) in checked.placements.iter().zip(&self.spec.inputs) {
            let is_string = input.datatype == DType::Bytes && placement.source.is_some();
            let rows = checked.rows.max(1) as usize;
            admission.row_bytes.push((!is_string).then(|| placement.max_bytes.div_ceil(rows)));
            admission.sizes.push(placement.max_bytes);
            admission.shapes.push(placement.source.map(|_| {
                let mut shape = placement.shape.clone();
                if is_batched && let Some(first) = shape.first_mut() {
                    *first = 0;
                }
                shape
            }));
        }
        admission
    }

    /// Whether a batch has never been dispatched.
    pub(crate) fn is_waiting(&self, batch: u64) -> bool {
        self.queue.lock().is_waiting(batch)
    }

    fn dispatch(&self, queue: &mut Queue, now: Instant) {
        queue.dispatch(now);
        self.starved.store(queue.starved, Relaxed);
        if !queue.knobs.work_conserving {
            self.timer.notify_one();
        }
    }

    /// An output slot is free again.
    pub(crate) fn slot_returned(&self) {
        if self.starved.load(Relaxed) {
            let mut queue = self.queue.lock();
            queue.starved = false;
            self.dispatch(&mut queue, Instant::now());
        }
    }

    /// Gives the model a replica: sends the slabs over its link and begins to read it. Returns the replica's id.
    pub fn attach(self: &Arc<Self>, link: OwnedFd) -> io::Result<u64> {
        let link = Arc::new(Link::new(link, true)?);
        let output = OutputSlab::new(self.spec.max_output_bytes as usize, OUTPUT_SLOTS)?;
        let reader = self.slab.reader()?;
        let message = Attach {
            output_slots: output.num_slots(),
            input_bytes: self.slab.total_bytes() as u64,
            output_slot_bytes: output.slot_bytes() as u64,
        };
        link.attach(message, [reader.as_fd(), output.fd()])?;
        let id = self.next_replica.fetch_add(1, Relaxed);
        let replica = Replica { id, link: Arc::clone(&link), output, ready: false, running: None };
        self.queue.lock().replicas.push(replica);
        self.runtime.spawn(link_task(Arc::clone(self), id, link));
        Ok(id)
    }

    /// Handles one message of a replica. An error says how the actor broke the protocol.
    fn receive(self: &Arc<Self>, id: u64, reply: Reply) -> Result<(), String> {
        let mut queue = self.queue.lock();
        let Some(replica) = queue.replicas.iter_mut().find(|replica| replica.id == id) else { return Ok(()) };
        match reply {
            Reply::Ready => {
                replica.ready = true;
                self.events.push(Event::ReplicaReady { key: self.key, replica: id });
                self.dispatch(&mut queue, Instant::now());
                Ok(())
            }
            Reply::Done { batch, compute_ns, outputs } => {
                let mut running = take_running(replica, batch)?;
                let rows: SmallVec<[u32; 16]> =
                    running.batch.entries.iter().map(|entry| entry.rows).collect();
                let end = outputs.iter().map(|place| place.offset.saturating_add(place.byte_len)).max();
                running.slot.touch(end.unwrap_or(0) as usize);
                match divide(&self.spec, &running.slot, &outputs, &rows) {
                    Ok(spans) => {
                        queue.settle_running(&running);
                        let now = Instant::now();
                        self.dispatch(&mut queue, now);
                        drop(queue);
                        self.deliver(running, (outputs, spans), compute_ns, now);
                        Ok(())
                    }
                    Err(OutputFault::Indivisible) => {
                        queue.split(running.batch);
                        self.dispatch(&mut queue, Instant::now());
                        Ok(())
                    }
                    Err(OutputFault::Violation(text)) => {
                        replica.running = Some(running);
                        Err(text)
                    }
                }
            }
            Reply::Failed { batch, code, message } => {
                let running = take_running(replica, batch)?;
                if running.batch.entries.len() > 1 && self.spec.retry {
                    queue.split(running.batch);
                } else {
                    let error = match code {
                        1 => Error::invalid(message),
                        2 => Error::unsupported(message),
                        _ => Error::internal(message),
                    };
                    queue.fail(running.batch, &error, Refusal::Failed);
                }
                self.dispatch(&mut queue, Instant::now());
                Ok(())
            }
        }
    }

    fn deliver(
        self: &Arc<Self>,
        running: Running,
        (places, spans): (SmallVec<[Place; 2]>, Vec<Vec<crate::slab::Span>>),
        infer_ns: u64,
        now: Instant,
    ) {
        let Running { batch, slot, sent, closed } = running;
        let compute_ns = now.duration_since(sent).as_nanos() as u64;
        self.stats.batch(batch.rows, closed, infer_ns.min(compute_ns), compute_ns);
        let finished = Finished::new(Arc::clone(self), slot, places, spans, (sent, compute_ns));
        for (index, entry) in batch.entries.into_iter().enumerate() {
            let part = finished.part(index, entry.rows, entry.enqueued);
            // The client may have gone; its rows were computed for nothing.
            let _ = entry.answer.send(Ok(part));
        }
    }

    /// The replica answers no more: its batch waits for `settle`, because only its parent knows how it ended.
    fn link_closed(&self, id: u64, detail: String) {
        let mut queue = self.queue.lock();
        if let Some(replica) = queue.replicas.iter_mut().find(|replica| replica.id == id) {
            replica.ready = false;
            replica.link.close();
            self.events.push(Event::ReplicaLost { key: self.key, replica: id, detail });
        }
    }

    /// Forgets a replica. `fault` names the evidence against the batch that it ran; empty = there is none.
    /// Returns whether the replica was one of this model's.
    pub fn settle(&self, replica: u64, fault: &str) -> bool {
        let mut queue = self.queue.lock();
        let Some(found) = queue.replicas.iter().find(|candidate| candidate.id == replica) else {
            return false;
        };
        found.link.close();
        let digest = queue.lost(replica, fault);
        if !queue.closing {
            self.stats.restarted();
        }
        self.dispatch(&mut queue, Instant::now());
        if let Some(digest) = digest {
            let (digest, reason) = (format!("{digest:016x}"), fault.to_owned());
            self.events.push(Event::Poison { key: self.key, digest, reason });
        }
        true
    }

    /// Sets the knobs of the dispatch rule.
    pub fn set_knobs(&self, knobs: Knobs) {
        let mut queue = self.queue.lock();
        queue.knobs = knobs;
        self.dispatch(&mut queue, Instant::now());
    }

    /// Answers what it has; what still comes goes to its successor, if there is one.
    pub fn close(self: &Arc<Self>, successor: Option<Arc<Self>>) {
        if let Some(successor) = successor {
            // Nobody else replaces a model that has left the routes.
            let _ = self.successor.set(successor);
        }
        self.queue.lock().closing = true;
        self.runtime.spawn(closing_task(Arc::clone(self)));
    }

    /// Whether requests are answered now, or will be within a restart.
    pub fn is_ready(&self) -> bool {
        self.queue.lock().is_serving()
    }

    /// Whether it has been closed and has answered everything.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    /// Housekeeping, every second.
    pub fn tick(&self, now: Instant) {
        self.queue.lock().fail_orphans(now);
    }

    /// What the control plane looks at ten times a second.
    pub fn window(&self, now: Instant) -> Window {
        let queue = self.queue.lock();
        let age = |running: &Running| now.saturating_duration_since(running.sent).as_millis() as u64;
        let running =
            queue.replicas.iter().filter_map(|replica| Some((replica.id, age(replica.running.as_ref()?))));
        Window { key: self.key, pending: queue.pending, running: running.collect() }
    }
}

fn take_running(replica: &mut Replica, batch: u64) -> Result<Running, String> {
    match replica.running.take() {
        Some(running) if running.batch.id == batch => Ok(running),
        other => {
            replica.running = other;
            Err(format!("it answered batch {batch}, which it does not run"))
        }
    }
}

/// Reads one replica's link until it closes.
async fn link_task(model: Arc<Model>, id: u64, link: Arc<Link>) {
    let detail = match LinkReader::new(link) {
        Err(error) => error.to_string(),
        Ok(mut reader) => loop {
            match reader.next().await {
                Ok(Some(reply)) => {
                    if let Err(violation) = model.receive(id, reply) {
                        break format!("protocol violation: {violation}");
                    }
                }
                Ok(None) => break String::new(),
                Err(error) => break format!("protocol violation: {error}"),
            }
        },
    };
    model.link_closed(id, detail);
}

/// Dispatches at the end of a turn in which requests came, and when the rule says that a batch has become old enough.
async fn dispatch_task(model: Arc<Model>) {
    while !model.is_removed() {
        let next = model.queue.lock().next_check();
        match next {
            None => model.timer.notified().await,
            // Whichever comes first, the rule is asked.
            Some(next) => drop(tokio::time::timeout_at(next.into(), model.timer.notified()).await),
        }
        let mut queue = model.queue.lock();
        queue.dispatch(Instant::now());
        model.starved.store(queue.starved, Relaxed);
    }
}

/// Waits until a closed model has answered everything, then closes its links.
async fn closing_task(model: Arc<Model>) {
    while model.queue.lock().pending > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        model.queue.lock().dispatch(Instant::now());
    }
    let mut queue = model.queue.lock();
    for replica in &mut queue.replicas {
        replica.ready = false;
        replica.link.close();
    }
    model.removed.store(true, Relaxed);
    model.timer.notify_one();
    model.events.push(Event::Removed { key: model.key });
}
