//! What a store can do; both stores do the same, and tests hold them to it.

use crate::entry::{Entry, Found, Id, Progress, Record};
use crate::fault::Fault;

/// A change.
#[derive(Clone, Debug)]
pub enum Write {
    /// Take a request, unless its idempotency key is known.
    Accept {
        /// The request.
        entry: Entry,
        /// The secret of its id.
        token: u128,
    },
    /// Put the answer in the place of a request that waits: the first one stays, and an entry that has gone stays away.
    Answer {
        /// The entry.
        id: Id,
        /// The answer.
        answer: Record,
        /// `Open` or `Done`.
        progress: Progress,
        /// When it is to be forgotten, in milliseconds since 1970.
        expires_ms: u64,
    },
    /// An open answer is done.
    Close(Id),
    /// Forget an entry.
    Remove(Id),
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request is kept under this id.
    Accepted(Id),
    /// The idempotency key was known, and its request is this one.
    Known(Id),
    /// The idempotency key was known for another request.
    Conflict,
    /// An entry of that size was changed or forgotten.
    Changed {
        /// Bytes that it counted for.
        size: u64,
        /// Whether it was a request that waited.
        was_waiting: bool,
    },
    /// There is no such entry, or none in that state.
    Missing,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of all entries.
    pub bytes: u64,
    /// Requests that wait.
    pub waiting: u64,
}

/// Most answers that are forgotten at once, so that no request waits behind many of them.
pub const MAX_EXPIRED: usize = 1024;

/// What was forgotten because its time has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Bytes that it counted for.
    pub bytes: u64,
    /// There may be more of it.
    pub has_more: bool,
}

/// Where entries lie. Everything waits for the disk or the network.
pub trait Store: Send {
    /// Makes all changes durable, or none; one outcome each.
    fn commit(&mut self, writes: &[Write]) -> Result<Vec<Outcome>, Fault>;

    /// Forgets at most [`MAX_EXPIRED`] answers whose time has passed, the oldest first.
    fn expire(&mut self, now_ms: u64) -> Result<Expired, Fault>;

    /// The entry with this id, unless its time has passed.
    fn find(&mut self, id: Id, now_ms: u64) -> Result<Option<Found>, Fault>;

    /// Ids and lanes of at most `limit` entries that wait or are open, behind `after`, in the order of their commits.
    fn unfinished(&mut self, after: u64, limit: usize) -> Result<Vec<(Id, String)>, Fault>;

    /// What it holds.
    fn totals(&mut self) -> Result<Totals, Fault>;
}
