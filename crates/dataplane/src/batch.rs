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
        let Requests { entries, buffer, shapes, .. } = &mut self.payload;
        let dead = entries.extract_if(.., |entry| is_dead(entry)).collect();
        for column in 0..shapes.len() {
            buffer.pack(column, entries.iter_mut().map(|entry| &mut entry.spans[column]));
        }
        self.rows = entries.iter().map(|entry| entry.rows).sum();
        dead
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
        if let Some(ragged) = ragged.filter(|_| entry.length > 0) {
            return ragged.digest(self, entry, hasher);
        }
        let mut state = hasher.build_hasher();
        (&self.shapes, entry.rows).hash(&mut state);
        entry.spans.iter().for_each(|span| self.buffer.bytes(*span).hash(&mut state));
        state.finish()
    }
}
