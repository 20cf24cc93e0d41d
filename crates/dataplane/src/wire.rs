//! The messages between gateway and actor: one per packet, little-endian, read with every bound checked.

use smallvec::SmallVec;

use crate::tensor::Shape;

/// Longest message in either direction.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Longest error text that an actor can send.
pub const MAX_TEXT: usize = 4096;

const ATTACH: u8 = 1;
const RUN: u8 = 2;
const READY: u8 = 16;
const DONE: u8 = 17;
const FAILED: u8 = 18;

/// The bytes of a message under construction.
pub type Packet = SmallVec<[u8; 256]>;

/// A tensor's place in a slab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte: from the input slab's start, or from the output slot's start.
    pub offset: u64,
    /// Number of bytes.
    pub byte_len: u64,
    /// Full shape.
    pub shape: Shape,
}

/// Sizes of the slabs whose descriptors travel with this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Slots in the output slab.
    pub output_slots: u32,
    /// Length of the input slab.
    pub input_bytes: u64,
    /// Length of one output slot.
    pub output_slot_bytes: u64,
}

/// "Run this batch."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Identifies the batch in the answer.
    pub batch: u64,
    /// Rows in it (1 for models without a batch dimension).
    pub rows: u32,
    /// Where the outputs go.
    pub output_slot: u16,
    /// The inputs in the model's order; `None` for an optional one left out.
    pub inputs: SmallVec<[Option<Place>; 2]>,
}

/// What an actor says.
#[derive(Clone, Debug, PartialEq, Eq)]
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

fn put_place(packet: &mut Packet, place: &Place, present: u8) {
    packet.extend_from_slice(&place.offset.to_le_bytes());
    packet.extend_from_slice(&place.byte_len.to_le_bytes());
    packet.extend_from_slice(&[place.shape.len() as u8, present, 0, 0, 0, 0, 0, 0]);
    for dim in &place.shape {
        packet.extend_from_slice(&dim.to_le_bytes());
    }
}

impl Attach {
    /// As bytes.
    pub fn encode(&self) -> Packet {
        let mut packet = Packet::from_slice(&[ATTACH, 0, 0, 0]);
        packet.extend_from_slice(&self.output_slots.to_le_bytes());
        packet.extend_from_slice(&self.input_bytes.to_le_bytes());
        packet.extend_from_slice(&self.output_slot_bytes.to_le_bytes());
        packet
    }

    /// From bytes; `None` if they are no such message.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let [kind, ..] = reader.array::<4>()?;
        let message = Self {
            output_slots: reader.u32()?,
            input_bytes: reader.u64()?,
            output_slot_bytes: reader.u64()?,
        };
        (kind == ATTACH && reader.0.is_empty()).then_some(message)
    }
}

impl Run {
    /// As bytes.
    pub fn encode(&self) -> Packet {
        let [low, high] = self.output_slot.to_le_bytes();
        let mut packet = Packet::from_slice(&[RUN, self.inputs.len() as u8, low, high]);
        packet.extend_from_slice(&self.rows.to_le_bytes());
        packet.extend_from_slice(&self.batch.to_le_bytes());
        let absent = Place { offset: 0, byte_len: 0, shape: Shape::new() };
        for input in &self.inputs {
            put_place(&mut packet, input.as_ref().unwrap_or(&absent), u8::from(input.is_some()));
        }
        packet
    }

    /// From bytes; `None` if they are no such message.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let [kind, num_inputs, low, high] = reader.array()?;
        let (rows, batch) = (reader.u32()?, reader.u64()?);
        let mut inputs = SmallVec::new();
        for _ in 0..num_inputs {
            let (place, present) = reader.place()?;
            inputs.push((present != 0).then_some(place));
        }
        let message = Self { batch, rows, output_slot: u16::from_le_bytes([low, high]), inputs };
        (kind == RUN && reader.0.is_empty()).then_some(message)
    }
}

impl Reply {
    /// As bytes.
    pub fn encode(&self) -> Packet {
        match self {
            Self::Ready => Packet::from_slice(&[READY, 0, 0, 0, 0, 0, 0, 0]),
            Self::Done { batch, compute_ns, outputs } => {
                let mut packet = Packet::from_slice(&[DONE, outputs.len() as u8, 0, 0, 0, 0, 0, 0]);
                packet.extend_from_slice(&batch.to_le_bytes());
                packet.extend_from_slice(&compute_ns.to_le_bytes());
                for place in outputs {
                    put_place(&mut packet, place, 1);
                }
                packet
            }
            Self::Failed { batch, code, message } => {
                let mut packet = Packet::from_slice(&[FAILED, *code, 0, 0, 0, 0, 0, 0]);
                packet.extend_from_slice(&batch.to_le_bytes());
                packet.extend_from_slice(&message.as_bytes()[..message.len().min(MAX_TEXT)]);
                packet
            }
        }
    }

    /// From bytes; `None` if they are no such message.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let [kind, second, ..] = reader.array::<8>()?;
        let message = match kind {
            READY => Self::Ready,
            DONE => {
                let (batch, compute_ns) = (reader.u64()?, reader.u64()?);
                let mut outputs = SmallVec::new();
                for _ in 0..second {
                    outputs.push(reader.place()?.0);
                }
                Self::Done { batch, compute_ns, outputs }
            }
            FAILED => {
                let batch = reader.u64()?;
                let text = std::mem::take(&mut reader.0);
                let text = &text[..text.len().min(MAX_TEXT)];
                Self::Failed { batch, code: second, message: String::from_utf8_lossy(text).into_owned() }
            }
            _ => return None,
        };
        reader.0.is_empty().then_some(message)
    }
}

/// Takes values off the front of a packet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn place(&mut self) -> Option<(Place, u8)> {
        let (offset, byte_len) = (self.u64()?, self.u64()?);
        let [ndim, present, ..] = self.array::<8>()?;
        let mut shape = Shape::new();
        for _ in 0..ndim {
            shape.push(self.array().map(i64::from_le_bytes)?);
        }
        Some((Place { offset, byte_len, shape }, present))
    }
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
        fn a_run_survives_the_wire(batch: u64, rows: u32, output_slot: u16,
                                   inputs in proptest::collection::vec(proptest::option::of(place()), 0..9)) {
            let run = Run { batch, rows, output_slot, inputs: inputs.into() };
            prop_assert_eq!(Run::decode(&run.encode()), Some(run));
        }

        #[test]
        fn a_done_survives_the_wire_and_no_truncation_does(
            batch: u64, compute_ns: u64, outputs in proptest::collection::vec(place(), 0..5), cut in 0usize..400) {
            let done = Reply::Done { batch, compute_ns, outputs: outputs.into() };
            let bytes = done.encode();
            prop_assert_eq!(Reply::decode(&bytes), Some(done));
            if cut < bytes.len() {
                prop_assert_eq!(Reply::decode(&bytes[..cut]), None);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Reply::decode(&bytes), Run::decode(&bytes), Attach::decode(&bytes));
        }
    }

    #[test]
    fn a_failure_carries_its_text() {
        let failed = Reply::Failed { batch: 7, code: 1, message: "index out of range".into() };
        assert_eq!(Reply::decode(&failed.encode()), Some(failed));
    }
}
