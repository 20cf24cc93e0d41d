//! From a finished batch back to its requests: tickets that wait, answers that read the output slab.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::check::Wanted;
use crate::encode::OutputView;
use crate::error::{Error, Result};
use crate::faces::parameters;
use crate::models::Model;
use crate::ragged::Bucket;
use crate::request::tag;
use crate::slab::{Slot, Span};
use crate::stats::Refusal;
use crate::tensor::{ModelSpec, elements};
use crate::wire::Place;

/// Where the outputs of a batch lie in their slot: for each output, the bytes of each request.
pub type Spans = Vec<Vec<Span>>;

/// The outputs of one batch, on loan from a replica.
pub struct Outputs {
    /// The slot; the queue hears of its return, because a replica without a free slot cannot run.
    pub slot: Option<Slot>,
    /// The model that answered.
    pub model: Arc<Model>,
    /// The outputs in the model's order.
    pub places: SmallVec<[Place; 2]>,
    /// What the requests were padded to; 0 = their lengths are their own.
    pub length: u32,
    /// From [`divide`].
    pub spans: Spans,
    /// When the batch was sent.
    pub sent: Instant,
    /// From then to its return.
    pub compute_ns: u64,
}

impl Drop for Outputs {
    fn drop(&mut self) {
        self.slot = None;
        self.model.slot_returned();
    }
}

/// One request's share: the outputs of its batch, and its place in it.
pub type Part = (Arc<Outputs>, usize);

/// Divides what an actor announced among requests of that many rows. `None` if that is not possible, so that each must
/// run alone; an error says how the actor lies or is confused.
pub fn divide(
    spec: &ModelSpec,
    slot: &Slot,
    places: &[Place],
    rows: &[u32],
) -> Result<Option<Spans>, String> {
    if places.len() != spec.outputs.len() {
        return Err(format!("it announced {} outputs of {}", places.len(), spec.outputs.len()));
    }
    let (is_shared, total) = (rows.len() > 1, rows.iter().sum::<u32>());
    if is_shared && places.iter().any(|place| place.shape.first() != Some(&total.into())) {
        return Ok(None);
    }
    let divided = places.iter().zip(&spec.outputs).map(|(place, output)| {
        let (name, shape, len) = (&output.name, &place.shape, place.byte_len as usize);
        let whole = Span { start: place.offset as usize, len };
        let mut rest =
            slot.bytes(whole).ok_or_else(|| format!("output '{name}' lies outside of its slot"))?;
        let count = elements(shape).ok_or_else(|| format!("output '{name}' has the shape {shape:?}"))?;
        let part = |rows: u32| if is_shared { count / total.max(1) as usize * rows as usize } else { count };
        let span = |rows: &u32| {
            let behind = output.datatype.behind(rest, part(*rows))?;
            let span = Span { start: whole.start + len - rest.len(), len: rest.len() - behind.len() };
            rest = behind;
            Some(span)
        };
        let spans = rows.iter().map(span).collect::<Option<Vec<_>>>().filter(|_| rest.is_empty());
        spans.ok_or_else(|| format!("output '{name}' of shape {shape:?} has {len} bytes"))
    });
    divided.collect::<Result<_, _>>().map(Some)
}

/// A request in the queue. Dropping it cancels the request, if it has not been dispatched.
pub struct Ticket {
    pub(crate) receiver: oneshot::Receiver<Result<Part>>,
    pub(crate) model: Arc<Model>,
    pub(crate) wanted: Wanted,
    pub(crate) rows: u32,
    pub(crate) bucket: Option<Bucket>,
    pub(crate) batch: u64,
    pub(crate) enqueued: Instant,
    pub(crate) deadline: Option<Instant>,
}

impl Ticket {
    /// Waits for the answer, in the queue not longer than the request allows.
    pub async fn answer(mut self) -> Result<Answer> {
        let outcome = match self.wanted.timeout_us {
            0 => (&mut self.receiver).await,
            timeout_us => Box::pin(parameters::within(timeout_us, &mut self)).await?,
        };
        match outcome {
            Ok(Ok((outputs, index))) => Ok(Answer { ticket: self, outputs, index }),
            // Errors of the queue were counted where they arose; only the request's id is added here.
            Ok(Err(error)) => Err(tag(&self.wanted.id, error)),
            Err(_) => Err(self.refuse("the server is shutting down", Refusal::NotReady)),
        }
    }

    #[cold]
    pub(crate) fn refuse(&self, text: &'static str, why: Refusal) -> Error {
        self.model.stats.refused(why, self.enqueued.elapsed().as_nanos() as u64);
        tag(&self.wanted.id, Error::unavailable(text))
    }
}

/// The outputs of one request, still in the replica's slab: encode them at once, then drop this.
pub struct Answer {
    ticket: Ticket,
    outputs: Arc<Outputs>,
    index: usize,
}

impl Answer {
    /// What the request asked for.
    pub fn wanted(&self) -> &Wanted {
        &self.ticket.wanted
    }

    /// The model that answered.
    pub fn model(&self) -> &Model {
        &self.outputs.model
    }

    /// All outputs in the model's order, with this request's shapes.
    pub fn views(&self) -> SmallVec<[OutputView<'_>; 4]> {
        let slot = self.outputs.slot.as_ref().expect("the outputs are on loan until they are dropped");
        let view = |((spec, place), spans): ((_, &Place), &Vec<Span>)| {
            let mut shape = place.shape.clone();
            if spans.len() > 1 {
                shape[0] = i64::from(self.ticket.rows);
            }
            let data = slot.bytes(spans[self.index]).expect("spans were checked when the batch came back");
            OutputView { spec, shape, data: data.into() }
        };
        let Outputs { model, places, length, spans, .. } = &*self.outputs;
        let mut views: SmallVec<_> = model.spec.outputs.iter().zip(places).zip(spans).map(view).collect();
        if let (Some(ragged), Some(bucket)) = (&model.spec.ragged, self.ticket.bucket) {
            ragged.cut(Bucket { edge: *length, ..bucket }, &mut views);
        }
        views
    }

    /// Bytes of all outputs.
    pub fn byte_len(&self) -> usize {
        self.outputs.spans.iter().map(|spans| spans[self.index].len).sum()
    }

    /// To be called when the answer has been encoded: counts it.
    pub fn encoded(&self) {
        let (Outputs { model, sent, compute_ns, .. }, ticket) = (&*self.outputs, &self.ticket);
        let now = Instant::now();
        let [queue_ns, total_ns] = [*sent, now].map(|end| (end - ticket.enqueued).as_nanos() as u64);
        let is_late = ticket.deadline.is_some_and(|deadline| now > deadline);
        model.stats.answered(queue_ns, *compute_ns, total_ns, ticket.rows, is_late);
    }
}
