//! The messages between gateway and actor, one per packet, as postcard writes them.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::tensor::Shape;

/// Longest message in either direction.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Longest error text that an actor can send, in characters.
pub const MAX_TEXT: usize = 2048;

/// The bytes of a message.
pub type Packet = SmallVec<[u8; 256]>;

/// A tensor's place in a slab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// First byte: from the input slab's start, or from the output slot's start.
    pub offset: u64,
    /// Number of bytes.
    pub byte_len: u64,
    /// Full shape.
    pub shape: Shape,
}

/// "Run this batch."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Identifies the batch in the answer.
    pub batch: u64,
    /// Rows in it (1 for models without a batch dimension).
    pub rows: u32,
    /// Where the outputs go.
    pub output_slot: u32,
    /// The inputs in the model's order; `None` for an optional one left out.
    pub inputs: SmallVec<[Option<Place>; 2]>,
}

/// What an actor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Loaded, mapped, warmed up.
    Ready,
    /// The batch's outputs are written.
    Done {
        /// Which batch.
        batch: u64,
        /// Time that the model took.
        compute_ns: u64,
        /// The outputs in the model's order.
        outputs: SmallVec<[Place; 2]>,
    },
    /// The batch failed, the actor lives.
    Failed {
        /// Which batch.
        batch: u64,
        /// 0 the model failed, 1 the input was wrong, 2 unsupported.
        code: u8,
        /// One sentence.
        message: String,
    },
}

/// A message as bytes.
pub fn encode(message: &impl Serialize) -> Packet {
    postcard::to_extend(message, Packet::new()).expect("memory takes every message")
}

/// A message from bytes; `None` if they are anything else, or more than it.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    let (message, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> impl Strategy<Value = Place> {
        (any::<u64>(), any::<u64>(), proptest::collection::vec(any::<i64>(), 0..9))
            .prop_map(|(offset, byte_len, dims)| Place { offset, byte_len, shape: Shape::from_vec(dims) })
    }

    proptest! {
        #[test]
        fn a_run_survives_the_wire(batch: u64, rows: u32, output_slot: u32,
                                   inputs in proptest::collection::vec(proptest::option::of(place()), 0..9)) {
            let run = Run { batch, rows, output_slot, inputs: inputs.into() };
            prop_assert_eq!(decode(&encode(&run)), Some(run));
        }

        #[test]
        fn a_done_survives_the_wire_and_no_truncation_does(
            batch: u64, compute_ns: u64, outputs in proptest::collection::vec(place(), 0..5), cut in 0usize..400) {
            let done = Reply::Done { batch, compute_ns, outputs: outputs.into() };
            let bytes = encode(&done);
            prop_assert_eq!(decode(&bytes), Some(done));
            if cut < bytes.len() {
                prop_assert_eq!(decode::<Reply>(&bytes[..cut]), None);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (decode::<Reply>(&bytes), decode::<Run>(&bytes));
        }
    }

    #[test]
    fn a_failure_carries_its_text() {
        let failed = Reply::Failed { batch: 7, code: 1, message: "index out of range".into() };
        assert_eq!(decode(&encode(&failed)), Some(failed));
    }

    #[test]
    fn a_length_that_no_packet_holds_reserves_no_memory() {
        let mut bytes = vec![1, 0, 0];
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(decode::<Reply>(&bytes), None);
    }
}
