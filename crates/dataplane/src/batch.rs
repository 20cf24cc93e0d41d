//! A batch: requests whose rows lie side by side in one slot.

use std::hash::{BuildHasher, Hash, Hasher};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::answer::Part;
use crate::check::PerInput;
use crate::error::Result;
use crate::rule::Candidate;
use crate::slab::{Buffer, Span};
use crate::tensor::Shape;
use crate::wire::{Place, Run};

/// One request in a batch.
pub struct Entry {
    /// Its rows.
    pub rows: u32,
    /// Its bytes in each column.
    pub spans: PerInput<Span>,
    /// Whether its rows are written.
    pub ready: bool,
    /// Where the answer goes; closed when the client has gone.
    pub answer: oneshot::Sender<Result<Part>>,
    /// When it entered the queue.
    pub enqueued: Instant,
    /// Input bytes it was admitted with.
    pub bytes: u64,
}

/// Requests that run together.
pub struct Batch {
    /// Unique in the model.
    pub id: u64,
    /// The rows.
    pub buffer: Buffer,
    /// What all requests in it have in common.
    pub shapes: PerInput<Option<Shape>>,
    /// The requests, in the order of their rows.
    pub entries: Vec<Entry>,
    /// Rows of all requests.
    pub rows: u32,
    /// Requests whose rows are being written.
    pub writing: u32,
    /// Nothing more may join.
    pub sealed: bool,
    /// It has run before: its rows stay where they are.
    pub rerun: bool,
    /// How often it was lost without a fault of its own.
    pub losses: u32,
    /// When its first request came.
    pub born: Instant,
    /// The nearest deadline in it.
    pub deadline: Option<Instant>,
}

impl Batch {
    /// A batch without requests.
    pub fn new(id: u64, buffer: Buffer, shapes: PerInput<Option<Shape>>, born: Instant) -> Self {
        Self {
            id,
            buffer,
            shapes,
            entries: Vec::new(),
            rows: 0,
            writing: 0,
            sealed: false,
            rerun: false,
            losses: 0,
            born,
            deadline: None,
        }
    }

    /// What the dispatch rule looks at.
    pub fn candidate(&self) -> Candidate {
        let full = self.sealed || self.rows >= self.buffer.max_rows;
        Candidate { rows: self.rows, full, born: self.born, deadline: self.deadline }
    }

    /// Takes out the requests whose clients have gone or whose rows could not be written, and closes the gaps that they
    /// leave, and those behind strings that were shorter than what was set aside for them.
    pub fn remove_dead(&mut self) -> Vec<Entry> {
        if self.rerun {
            return Vec::new();
        }
        let is_dead = |entry: &mut Entry| !entry.ready || entry.answer.is_closed();
        let dead = self.entries.extract_if(.., is_dead).collect();
        self.buffer.keep(self.entries.iter_mut().map(|entry| &mut entry.spans));
        self.rows = self.entries.iter().map(|entry| entry.rows).sum();
        dead
    }

    /// The message that has it run.
    pub fn run(&self, is_batched: bool, output_slot: u32) -> Run {
        let place = |(column, shape): (usize, &Option<Shape>)| {
            let mut shape = shape.clone()?;
            if is_batched && let Some(first) = shape.first_mut() {
                *first = i64::from(self.rows);
            }
            let start = self.entries.first().map_or(0, |entry| entry.spans[column].start);
            let byte_len = self.entries.iter().map(|entry| entry.spans[column].len as u64).sum();
            Some(Place { offset: self.buffer.offset(start), byte_len, shape })
        };
        let inputs = self.shapes.iter().enumerate().map(place).collect();
        Run { batch: self.id, rows: self.rows, output_slot, inputs }
    }

    /// Two halves over the same rows; the second takes `id`.
    pub fn split(mut self, id: u64) -> [Self; 2] {
        let mut second = Self::new(id, self.buffer.clone(), self.shapes.clone(), self.born);
        second.entries = self.entries.split_off(self.entries.len() / 2);
        second.rows = second.entries.iter().map(|entry| entry.rows).sum();
        (second.losses, second.deadline) = (self.losses, self.deadline);
        self.rows -= second.rows;
        [self, second].map(Self::again)
    }

    /// From now on its rows stay where they are.
    #[must_use]
    pub fn again(mut self) -> Self {
        (self.sealed, self.rerun) = (true, true);
        self
    }

    /// A digest of one request's inputs, to know it again.
    pub fn digest(&self, entry: &Entry, hasher: &impl BuildHasher) -> u64 {
        let mut state = hasher.build_hasher();
        self.shapes.hash(&mut state);
        entry.rows.hash(&mut state);
        for span in &entry.spans {
            self.buffer.bytes(*span).hash(&mut state);
        }
        state.finish()
    }
}
