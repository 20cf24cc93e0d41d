//! A batch: requests whose rows lie side by side in one slot.

use std::hash::{BuildHasher, Hash, Hasher};
use std::time::Instant;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::answer::Part;
use crate::error::Error;
use crate::rule::Candidate;
use crate::slab::{Buffer, Span};
use crate::tensor::Shape;
use crate::wire::{Place, Run};

/// The shapes of a request's inputs in the model's order, the batch dimension set to 0; `None` = left out.
pub type Shapes = SmallVec<[Option<Shape>; 2]>;

/// One request in a batch.
pub struct Entry {
    /// Its rows.
    pub rows: u32,
    /// Its bytes in each column.
    pub spans: SmallVec<[Span; 2]>,
    /// Whether its rows are written.
    pub ready: bool,
    /// Where the answer goes; closed when the client has gone.
    pub answer: oneshot::Sender<Result<Part, Error>>,
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
    pub shapes: Shapes,
    /// The requests, in the order of their rows.
    pub entries: Vec<Entry>,
    /// Rows of all requests.
    pub rows: u32,
    /// Requests whose rows are being written.
    pub writing: u32,
    /// Strings were shorter than what was set aside for them.
    pub has_gaps: bool,
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
    /// What the dispatch rule looks at.
    pub fn candidate(&self) -> Candidate {
        let full = self.sealed || self.rows >= self.buffer.max_rows();
        Candidate { rows: self.rows, full, born: self.born, deadline: self.deadline }
    }

    /// Takes out the requests whose clients have gone or whose rows could not be written, and closes the gaps.
    pub fn remove_dead(&mut self) -> Vec<Entry> {
        let is_alive = |entry: &Entry| entry.ready && !entry.answer.is_closed();
        if self.rerun || (!self.has_gaps && self.entries.iter().all(is_alive)) {
            return Vec::new();
        }
        let is_dead = |entry: &mut Entry| !entry.ready || entry.answer.is_closed();
        let dead: Vec<Entry> = self.entries.extract_if(.., is_dead).collect();
        self.buffer.keep(self.entries.iter_mut().map(|entry| &mut entry.spans));
        self.rows = self.entries.iter().map(|entry| entry.rows).sum();
        self.has_gaps = false;
        dead
    }

    /// The message that has it run.
    pub fn run(&self, is_batched: bool, output_slot: u16) -> Run {
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
        let entries = self.entries.split_off(self.entries.len() / 2);
        let rows = entries.iter().map(|entry| entry.rows).sum();
        self.rows -= rows;
        self.mark_rerun();
        let second = Self {
            id,
            buffer: self.buffer.share(),
            shapes: self.shapes.clone(),
            entries,
            rows,
            writing: 0,
            has_gaps: false,
            sealed: true,
            rerun: true,
            losses: self.losses,
            born: self.born,
            deadline: self.deadline,
        };
        [self, second]
    }

    /// From now on its rows stay where they are.
    pub fn mark_rerun(&mut self) {
        self.sealed = true;
        self.rerun = true;
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
