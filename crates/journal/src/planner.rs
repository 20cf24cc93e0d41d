//! What a group of writes changes, decided before anything is changed: for a store whose transactions cannot read.

use std::collections::HashMap;

use crate::entry::{Entry, Id, Progress, Record};
use crate::store::{Outcome, Write};

/// What is known of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its secret.
    pub token: u128,
    /// Bytes that it counts for.
    pub size: u64,
    /// Whether it is a request.
    pub is_waiting: bool,
    /// Its idempotency key.
    pub name: Option<String>,
}

/// One step of a transaction.
pub enum Change<'a> {
    /// A new entry.
    Insert { id: Id, lane: &'a str, name: Option<(&'a str, String)>, request: &'a Record },
    /// An answer in the place of what was there before.
    Answer { seq: u64, before: Row, answer: &'a Record, progress: Progress, expires_ms: u64 },
    /// An open answer is done.
    Close { seq: u64 },
    /// An entry goes.
    Remove { seq: u64, before: Row },
}

/// What the store holds of what the writes are about, as it becomes by them.
pub struct Planner {
    /// Entries by their numbers.
    pub rows: HashMap<u64, Row>,
    /// The owners of idempotency keys, and the digests of their requests.
    pub names: HashMap<String, (Id, String)>,
}

impl Planner {
    /// The outcome of each write, the changes that they take, and the last number given, `last` before.
    pub fn plan(mut self, writes: &[Write], mut last: u64) -> (Vec<Outcome>, Vec<Change<'_>>, u64) {
        let mut changes = Vec::with_capacity(writes.len());
        let mut outcomes = Vec::with_capacity(writes.len());
        for write in writes {
            let (outcome, change) = match write {
                Write::Accept { entry, token } => self.accept(entry, Id { seq: last + 1, token: *token }),
                Write::Answer { id, answer, progress, expires_ms } => {
                    self.answer(*id, answer, (*progress, *expires_ms))
                }
                Write::Close(id) => self.close(*id),
                Write::Remove(id) => self.remove(*id),
            };
            last += u64::from(matches!(outcome, Outcome::Accepted(_)));
            outcomes.push(outcome);
            changes.extend(change);
        }
        (outcomes, changes, last)
    }

    /// The entry, if its secret is known.
    fn row(&mut self, id: Id) -> Option<&mut Row> {
        self.rows.get_mut(&id.seq).filter(|row| row.token == id.token)
    }

    fn answer<'a>(
        &mut self,
        id: Id,
        answer: &'a Record,
        (progress, expires_ms): (Progress, u64),
    ) -> (Outcome, Option<Change<'a>>) {
        let Some(row) = self.row(id).filter(|row| row.is_waiting) else { return (Outcome::Missing, None) };
        let before = row.clone();
        (row.size, row.is_waiting) = (answer.size(), false);
        (changed(&before), Some(Change::Answer { seq: id.seq, before, answer, progress, expires_ms }))
    }

    fn close(&mut self, id: Id) -> (Outcome, Option<Change<'static>>) {
        match self.row(id) {
            Some(row) if !row.is_waiting => (changed(row), Some(Change::Close { seq: id.seq })),
            _ => (Outcome::Missing, None),
        }
    }

    fn remove(&mut self, id: Id) -> (Outcome, Option<Change<'static>>) {
        let Some(before) = self.row(id).cloned() else { return (Outcome::Missing, None) };
        self.rows.remove(&id.seq);
        if let Some(name) = &before.name {
            self.names.remove(name);
        }
        (changed(&before), Some(Change::Remove { seq: id.seq, before }))
    }

    fn accept<'a>(&mut self, entry: &'a Entry, id: Id) -> (Outcome, Option<Change<'a>>) {
        let name = entry.key.as_ref().map(|key| (key.name.as_str(), hex(&key.digest)));
        if let Some((name, digest)) = &name {
            if let Some((owner, of_owner)) = self.names.get(*name) {
                let outcome = if of_owner == digest { Outcome::Known(*owner) } else { Outcome::Conflict };
                return (outcome, None);
            }
            self.names.insert((*name).to_owned(), (id, digest.clone()));
        }
        let (size, name_text) = (entry.request.size(), name.as_ref().map(|(name, _)| (*name).to_owned()));
        self.rows.insert(id.seq, Row { token: id.token, size, is_waiting: true, name: name_text });
        (Outcome::Accepted(id), Some(Change::Insert { id, lane: &entry.lane, name, request: &entry.request }))
    }
}

fn changed(before: &Row) -> Outcome {
    Outcome::Changed { size: before.size, was_waiting: before.is_waiting }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}
