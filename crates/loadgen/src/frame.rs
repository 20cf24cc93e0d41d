//! HTTP/2 frames (RFC 9113): their head, the constants in it, and the header block of our calls.

use crate::hpack::Decoder;
use crate::wire::Fault;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const FRAME_HEAD: usize = 9;
/// The longest frame that either side may send unasked.
pub const DEFAULT_FRAME_BYTES: usize = 16_384;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITY: u8 = 0x20;

pub const CANCEL: u32 = 8;

/// What all connections of a run share: the encoded header blocks and the decoder.
pub struct Headers {
    /// Enters its fields into the peer's table.
    pub first: Vec<u8>,
    /// Refers to them.
    pub later: Vec<u8>,
    /// For a peer that keeps no table.
    pub plain: Vec<u8>,
    pub decoder: Decoder,
}

impl Headers {
    pub fn new(authority: &str, path: &str) -> Self {
        // 0x83 and 0x86: `:method: POST` and `:scheme: http` in the static table; 1, 4, 31, 58: names there.
        let fields: [(usize, &str, &str); 5] = [
            (4, "", path),
            (1, "", authority),
            (31, "", "application/grpc"),
            (58, "", "lrai-bench"),
            (0, "te", "trailers"),
        ];
        let encode = |start: &[u8], literal: u8| {
            let mut block = start.to_vec();
            for (index, name, value) in fields {
                add_integer(&mut block, literal, if literal == 0 { 4 } else { 6 }, index);
                for text in [name, value].into_iter().filter(|text| !text.is_empty()) {
                    add_integer(&mut block, 0, 7, text.len());
                    block.extend_from_slice(text.as_bytes());
                }
            }
            block
        };
        // 62 is the newest of the five entries.
        let later = [0x83, 0x86].into_iter().chain((62..67).rev().map(|index| 0x80 | index)).collect();
        Self {
            first: encode(&[0x83, 0x86], 0x40),
            later,
            plain: encode(&[0x20, 0x83, 0x86], 0),
            decoder: Decoder::new(),
        }
    }
}

/// Adds an integer whose first byte carries the pattern above that many bits.
fn add_integer(block: &mut Vec<u8>, pattern: u8, prefix_bits: u32, value: usize) {
    let mask = (1_usize << prefix_bits) - 1;
    if value < mask {
        block.push(pattern | value as u8);
        return;
    }
    block.push(pattern | mask as u8);
    let mut left = value - mask;
    while left >= 0x80 {
        block.push(left as u8 | 0x80);
        left >>= 7;
    }
    block.push(left as u8);
}

pub fn add_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, length: usize) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

pub fn add_word(out: &mut Vec<u8>, kind: u8, stream: u32, value: u32) {
    add_frame(out, kind, 0, stream, 4);
    out.extend_from_slice(&value.to_be_bytes());
}

pub fn word(payload: &[u8], at: usize) -> Result<u32, Fault> {
    let bytes = payload.get(at..).and_then(|rest| rest.first_chunk::<4>());
    bytes
        .map(|bytes| u32::from_be_bytes(*bytes))
        .ok_or_else(|| Fault::new("malformed", "HTTP/2 frame cut short"))
}
