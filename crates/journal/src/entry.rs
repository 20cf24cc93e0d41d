//! What is kept: an entry is first a request, then its answer.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

use bytes::Bytes;

/// What an entry takes beside its bytes, about.
const OVERHEAD: u64 = 512;

/// An entry's place in the order of commits, and a secret: who knows both may read and remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    /// Grows from commit to commit.
    pub seq: u64,
    /// Random.
    pub token: u128,
}

impl Display for Id {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:x}-{:032x}", self.seq, self.token)
    }
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (seq, token) = text.split_once('-').ok_or(())?;
        let seq = u64::from_str_radix(seq, 16).map_err(drop)?;
        let token = u128::from_str_radix(token, 16).map_err(drop)?;
        let id = Self { seq, token };
        // One entry has one name.
        (id.to_string() == text).then_some(id).ok_or(())
    }
}

/// A request or an answer: a small head and a body, opaque both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What the owner wants to know about the body.
    pub head: Vec<u8>,
    /// The bulk.
    pub body: Bytes,
}

impl Record {
    /// Bytes that it counts for.
    pub fn size(&self) -> u64 {
        OVERHEAD + (self.head.len() + self.body.len()) as u64
    }
}

/// An idempotency key: two requests with the same name are one if their digests agree, else the second is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The client's name for the request.
    pub name: String,
    /// Of everything that the request says.
    pub digest: [u8; 32],
}

/// A request to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The line in which it is answered.
    pub lane: String,
    /// Not to be taken twice.
    pub key: Option<Key>,
    /// The request.
    pub request: Record,
}

/// What an entry has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is a request and waits for its answer.
    Waiting,
    /// It is an answer with which something is still to be done.
    Open,
    /// It is an answer.
    Done,
}

/// An entry as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The request while it waits, then the answer.
    pub record: Record,
    /// Which of them it is.
    pub progress: Progress,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_text() {
        let id = Id { seq: 0x2a, token: 7 };
        assert_eq!(id.to_string(), "2a-00000000000000000000000000000007");
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in
            ["", "2a", "2a-7", "02a-00000000000000000000000000000007", "2A-00000000000000000000000000000007"]
        {
            assert_eq!(text.parse::<Id>(), Err(()), "{text}");
        }
    }
}
