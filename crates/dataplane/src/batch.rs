//! A batch: requests whose rows lie side by side in one slot.

use std::hash::{BuildHasher, Hash, Hasher};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::answer::Part;
use crate::check::PerInput;
use crate::error::Result;
use crate::line::Waiting;
use crate::ragged::Ragged;
use crate::slab::{Buffer, Span};
use crate::tensor::Shape;
use crate::wire::{Place, Run};

/// One request in a batch.
pub struct Entry {
    /// Its rows.
    pub rows: u32,
    /// Its length without padding; 0 = it is not padded.
    pub length: u32,
    /// Its bytes in each column.
    pub spans: PerInput<Span>,
    /// Whether its rows are written.
    pub ready: bool,
    /// Where the answer goes; closed when the client has gone.
    pub answer: oneshot::Sender<Result<Part>>,
    /// When it entered the queue.
    pub enqueued: Instant,
    /// When its answer must be there.
    pub deadline: Option<Instant>,
    /// Whose it is; 0 = there are no tenants.
    pub account: u64,
    /// Input bytes it was admitted with.
    pub bytes: u64,
}

/// Requests that run together.
pub struct Requests {
    /// Unique in the model.
    pub id: u64,
    /// The rows.
    pub buffer: Buffer,
    /// What all requests in it have in common.
    pub shapes: PerInput<Option<Shape>>,
    /// The requests, in the order of their rows.
    pub entries: Vec<Entry>,
    /// How often they were lost without a fault of their own.
    pub losses: u32,
}

/// Requests in the line, or at a replica.
pub type Batch = Waiting<Requests>;

impl Batch {
    /// Takes out the requests that `is_dead`, and closes the gaps that they leave, and those behind strings that were
    /// shorter than what was set aside for them. What has run before stays as it is.
    pub fn remove(&mut self, is_dead: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        if self.is_rerun() {
            return Vec::new();
        }
        let Requests { entries, buffer, .. } = &mut self.payload;
        let dead = entries.extract_if(.., |entry| is_dead(entry)).collect();
        buffer.keep(entries.iter_mut().map(|entry| &mut entry.spans));
        self.rows = entries.iter().map(|entry| entry.rows).sum();
        dead
    }

    /// Takes off the padding that all its requests have in common. What has run before stays as it is.
    pub fn shorten(&mut self, ragged: &Ragged) {
        let is_rerun = self.is_rerun();
        let Requests { entries, buffer, shapes, .. } = &mut self.payload;
        let Some(edge) = ragged.length(shapes).filter(|_| !is_rerun) else { return };
        let mut lengths = entries.iter().map(|entry| if entry.length == 0 { edge } else { entry.length });
        let most = lengths.clone().max().unwrap_or(edge);
        // Equal lengths need no padding at all.
        let longest = if lengths.all(|length| length == most) { most } else { Ragged::rounded(most, edge) };
        if longest == edge {
            return;
        }
        for (column, shape) in shapes.iter().enumerate() {
            let count = shape.as_ref().and_then(|shape| ragged.stretches(column, shape, self.rows));
            if let Some(count) = count {
                let spans = entries.iter_mut().map(|entry| &mut entry.spans[column]);
                buffer.shorten(column, count, (longest as usize, edge as usize), spans);
            }
        }
        ragged.set_length(shapes, longest);
    }

    /// Two halves over the same rows; the second takes `id`.
    pub fn split(mut self, id: u64) -> [Self; 2] {
        let Requests { entries, buffer, shapes, losses, .. } = &mut self.payload;
        let entries = entries.split_off(entries.len() / 2);
        let rows = entries.iter().map(|entry| entry.rows).sum();
        let payload =
            Requests { id, buffer: buffer.clone(), shapes: shapes.clone(), entries, losses: *losses };
        self.rows -= rows;
        let second = Self { payload, rows, ..self };
        [self, second]
    }
}

impl Requests {
    /// The message that has it run.
    pub fn run(&self, rows: u32, is_batched: bool, output_slot: u32) -> Run {
        let place = |(column, shape): (usize, &Option<Shape>)| {
            let mut shape = shape.clone()?;
            if is_batched && let Some(first) = shape.first_mut() {
                *first = i64::from(rows);
            }
            let start = self.entries.first().map_or(0, |entry| entry.spans[column].start);
            let byte_len = self.entries.iter().map(|entry| entry.spans[column].len as u64).sum();
            Some(Place { offset: self.buffer.offset(start), byte_len, shape })
        };
        let inputs = self.shapes.iter().enumerate().map(place).collect();
        Run { batch: self.id, rows, output_slot, inputs }
    }

    /// A digest of one request's inputs without padding, to know it again.
    pub fn digest(&self, entry: &Entry, ragged: Option<&Ragged>, hasher: &impl BuildHasher) -> u64 {
        let mut state = hasher.build_hasher();
        let padded = ragged.filter(|_| entry.length > 0);
        let lengths = padded.and_then(|ragged| Some((ragged, ragged.length(&self.shapes)? as usize)));
        let mut shapes = self.shapes.clone();
        if let Some(ragged) = padded {
            ragged.set_length(&mut shapes, entry.length);
        }
        shapes.hash(&mut state);
        entry.rows.hash(&mut state);
        for (column, (span, shape)) in entry.spans.iter().zip(&shapes).enumerate() {
            let bytes = self.buffer.bytes(*span);
            let stretches = |(ragged, length): (&Ragged, usize)| {
                let count = ragged.stretches(column, shape.as_ref()?, entry.rows)?;
                let whole = bytes.len().checked_div(count).filter(|whole| *whole > 0)?;
                Some((whole, whole / length * entry.length as usize))
            };
            match lengths.and_then(stretches) {
                None => bytes.hash(&mut state),
                Some((whole, own)) => {
                    bytes.chunks_exact(whole).for_each(|chunk| chunk[..own].hash(&mut state));
                }
            }
        }
        state.finish()
    }
}
