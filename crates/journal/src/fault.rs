//! Why the journal could not do what it was asked for.

use crate::journal::Place;

/// A refusal or a failure; one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It holds its most bytes.
    #[error(
        "the journal holds {used} of {limit} bytes, hint: fetch or delete answers, or raise --journal-max-bytes"
    )]
    Full {
        /// Bytes that it holds.
        used: u64,
        /// Bytes that it may hold.
        limit: u64,
    },
    /// The disk or the memory behind it is full.
    #[error("there is no room left for the journal: {0}")]
    NoSpace(String),
    /// The idempotency key belongs to another request.
    #[error("the idempotency key '{0}' was used for another request, hint: use a new key")]
    Conflict(String),
    /// The store failed or cannot be reached.
    #[error("the journal failed: {0}")]
    Failed(String),
}

impl Fault {
    /// The same, with the place where it happened and what may help, if it does not tell that itself.
    #[must_use]
    pub(crate) fn at(self, place: &Place) -> Self {
        match self {
            Self::Failed(why) if !why.contains("hint: ") => {
                let hint = "start a server there, or write redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]";
                Self::Failed(format!("{place} cannot be used: {why}, hint: {hint}"))
            }
            other => other,
        }
    }
}
