//! From a finished batch back to its requests: tickets that wait, answers that read the output slab.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::check::Wanted;
use crate::encode::OutputView;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::request::tag;
use crate::slab::{OutputSlot, Span};
use crate::stats::Refusal;
use crate::tensor::{DType, ModelSpec, Shape, TensorSpec};
use crate::wire::Place;

/// An output slot on loan; the queue hears of its return, because a replica without a free slot cannot run.
pub struct Lease {
    slot: Option<OutputSlot>,
    model: Arc<Model>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.slot = None;
        self.model.slot_returned();
    }
}

/// The outputs of one batch.
pub struct Outputs {
    lease: Lease,
    places: SmallVec<[Place; 2]>,
}

/// One request's share of a batch's outputs.
pub struct Part {
    outputs: Arc<Outputs>,
    shapes: SmallVec<[Shape; 2]>,
    spans: SmallVec<[Span; 2]>,
    rows: u32,
    queue_ns: u64,
    compute_ns: u64,
}

/// What is wrong with the outputs that an actor announced.
#[derive(Debug, PartialEq, Eq)]
pub enum OutputFault {
    /// The actor lies or is confused: it must go.
    Violation(String),
    /// The outputs cannot be divided among the requests; each must run alone.
    Indivisible,
}

fn num_elements(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, dim| product.checked_mul(usize::try_from(*dim).ok()?))
}

/// Where `counts` strings end, one after the other; `None` unless they fill the bytes exactly.
fn string_ends(bytes: &[u8], counts: impl Iterator<Item = usize>) -> Option<Vec<usize>> {
    let mut at = 0usize;
    let mut ends = Vec::new();
    for count in counts {
        for _ in 0..count {
            let (len, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
            at = at.checked_add(4)?.checked_add(u32::from_le_bytes(*len) as usize)?;
        }
        ends.push(at);
    }
    (at == bytes.len()).then_some(ends)
}

/// Checks what an actor announced and divides it: `spans[output][request]`, from the output slot's start.
pub fn divide(
    spec: &ModelSpec,
    slot: &OutputSlot,
    places: &[Place],
    rows: &[u32],
) -> Result<Vec<Vec<Span>>, OutputFault> {
    let violation = |text: String| Err(OutputFault::Violation(text));
    if places.len() != spec.outputs.len() {
        return violation(format!("it announced {} outputs of {}", places.len(), spec.outputs.len()));
    }
    let total: u32 = rows.iter().sum();
    places
        .iter()
        .zip(&spec.outputs)
        .map(|(place, output)| divide_one(slot, place, output, rows, total))
        .collect()
}

fn divide_one(
    slot: &OutputSlot,
    place: &Place,
    output: &TensorSpec,
    rows: &[u32],
    total: u32,
) -> Result<Vec<Span>, OutputFault> {
    let name = &output.name;
    let start = place.offset as usize;
    let Some(bytes) = slot.bytes(start, place.byte_len as usize) else {
        return Err(OutputFault::Violation(format!("output '{name}' lies outside of its slot")));
    };
    let Some(count) = num_elements(&place.shape) else {
        return Err(OutputFault::Violation(format!("output '{name}' has the shape {:?}", place.shape)));
    };
    let is_shared = rows.len() > 1;
    if is_shared && place.shape.first() != Some(&i64::from(total)) {
        return Err(OutputFault::Indivisible);
    }
    let per_row = if is_shared { count / total.max(1) as usize } else { count };
    let elements = |rows: &u32| if is_shared { per_row * *rows as usize } else { per_row };
    let ends = if output.datatype == DType::Bytes {
        string_ends(bytes, rows.iter().map(elements))
    } else {
        let size = output.datatype.size();
        let end_of = |end: &mut usize, rows: &u32| {
            *end += elements(rows) * size;
            Some(*end)
        };
        (count.checked_mul(size) == Some(bytes.len())).then(|| rows.iter().scan(0, end_of).collect())
    };
    let Some(ends) = ends else {
        let len = place.byte_len;
        return Err(OutputFault::Violation(format!(
            "output '{name}' of shape {:?} has {len} bytes",
            place.shape
        )));
    };
    let mut from = 0;
    Ok(ends
        .into_iter()
        .map(|end| {
            let span = Span { start: start + from, len: end - from };
            from = end;
            span
        })
        .collect())
}

/// The outputs of a finished batch, ready to be handed out.
pub struct Finished {
    outputs: Arc<Outputs>,
    spans: Vec<Vec<Span>>,
    sent: Instant,
    compute_ns: u64,
}

impl Finished {
    /// `spans` come from [`divide`].
    pub fn new(
        model: Arc<Model>,
        slot: OutputSlot,
        places: SmallVec<[Place; 2]>,
        spans: Vec<Vec<Span>>,
        times: (Instant, u64),
    ) -> Self {
        let outputs = Arc::new(Outputs { lease: Lease { slot: Some(slot), model }, places });
        Self { outputs, spans, sent: times.0, compute_ns: times.1 }
    }

    /// The share of the `index`th request.
    pub fn part(&self, index: usize, rows: u32, enqueued: Instant) -> Part {
        let is_shared = self.spans.first().is_some_and(|output| output.len() > 1);
        let shape = |place: &Place| {
            let mut shape = place.shape.clone();
            if is_shared {
                shape[0] = i64::from(rows);
            }
            shape
        };
        Part {
            outputs: Arc::clone(&self.outputs),
            shapes: self.outputs.places.iter().map(shape).collect(),
            spans: self.spans.iter().map(|output| output[index]).collect(),
            rows,
            queue_ns: self.sent.saturating_duration_since(enqueued).as_nanos() as u64,
            compute_ns: self.compute_ns,
        }
    }
}

/// A request in the queue. Dropping it cancels the request, if it has not been dispatched.
pub struct Ticket {
    receiver: oneshot::Receiver<Result<Part>>,
    model: Arc<Model>,
    wanted: Option<Wanted>,
    batch: u64,
    enqueued: Instant,
    expiry: Option<Pin<Box<Sleep>>>,
}

impl Ticket {
    pub(crate) fn new(
        receiver: oneshot::Receiver<Result<Part>>,
        model: Arc<Model>,
        wanted: Wanted,
        (batch, enqueued): (u64, Instant),
    ) -> Self {
        Self { receiver, model, wanted: Some(wanted), batch, enqueued, expiry: None }
    }

    fn refuse(&self, error: Error, why: Refusal) -> Error {
        self.model.stats.refused(why, self.enqueued.elapsed().as_nanos() as u64);
        tag(self.wanted.as_ref().map_or("", |wanted| &wanted.id), error)
    }
}

impl Future for Ticket {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match Pin::new(&mut this.receiver).poll(context) {
            Poll::Ready(Ok(Ok(part))) => {
                let wanted = this.wanted.take().expect("a ticket is not polled after it is ready");
                let (model, enqueued) = (Arc::clone(&this.model), this.enqueued);
                return Poll::Ready(Ok(Answer { wanted, model, part, enqueued }));
            }
            // Errors of the queue were counted where they arose; only the request's id is added here.
            Poll::Ready(Ok(Err(error))) => {
                return Poll::Ready(Err(tag(this.wanted.as_ref().map_or("", |wanted| &wanted.id), error)));
            }
            Poll::Ready(Err(_)) => {
                let error = Error::unavailable("the server is shutting down");
                return Poll::Ready(Err(this.refuse(error, Refusal::NotReady)));
            }
            Poll::Pending => {}
        }
        let timeout_us = this.wanted.as_ref().map_or(0, |wanted| wanted.timeout_us);
        if timeout_us > 0 {
            let deadline = this.enqueued + Duration::from_micros(timeout_us);
            let expiry =
                this.expiry.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
            // What is being computed is not waiting any more; its answer wakes this task.
            if expiry.as_mut().poll(context).is_ready() && this.model.is_waiting(this.batch) {
                let error = Error::unavailable("Request timeout expired");
                return Poll::Ready(Err(this.refuse(error, Refusal::Deadline)));
            }
        }
        Poll::Pending
    }
}

/// The outputs of one request, still in the replica's slab: encode them at once, then drop this.
pub struct Answer {
    /// What the request asked for.
    pub wanted: Wanted,
    model: Arc<Model>,
    part: Part,
    enqueued: Instant,
}

impl Answer {
    /// The model that answered.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// All outputs in the model's order, with this request's shapes.
    pub fn views(&self) -> SmallVec<[OutputView<'_>; 4]> {
        let slot = self.part.outputs.lease.slot.as_ref().expect("the lease is alive");
        let outputs = self.model.spec.outputs.iter().zip(&self.part.shapes).zip(&self.part.spans);
        outputs
            .map(|((spec, shape), span)| {
                let data =
                    slot.bytes(span.start, span.len).expect("spans were checked when the batch came back");
                OutputView { spec, shape, data }
            })
            .collect()
    }

    /// Bytes of all outputs.
    pub fn byte_len(&self) -> usize {
        self.part.spans.iter().map(|span| span.len).sum()
    }

    /// To be called when the answer has been encoded: counts it.
    pub fn encoded(&self) {
        let total_ns = self.enqueued.elapsed().as_nanos() as u64;
        self.model.stats.answered(self.part.queue_ns, self.part.compute_ns, total_ns, self.part.rows);
    }
}
