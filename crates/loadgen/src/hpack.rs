//! Header compression (RFC 7541), as much as a client needs that allows its peer no dynamic table.

use crate::wire::Fault;

/// Index of `:status: 200` in the static table, and the values of it and its successors.
const STATUS_INDEX: usize = 8;
const STATUSES: [&str; 7] = ["200", "204", "206", "304", "400", "404", "500"];
const STATIC_ENTRIES: usize = 61;

/// Bits of each symbol's Huffman code (appendix B); the code is canonical, so the lengths define it.
#[rustfmt::skip]
const CODE_BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Decodes header blocks; built once, since the symbol order is sorted.
pub struct Decoder {
    /// Symbols by code length, then value: the order of canonical codes.
    symbols: Vec<u16>,
    /// Number of codes of each length.
    counts: [u32; 31],
}

impl Decoder {
    pub fn new() -> Self {
        let mut symbols: Vec<u16> = (0..257).collect();
        symbols.sort_by_key(|&symbol| CODE_BITS[symbol as usize]);
        let mut counts = [0; 31];
        for bits in CODE_BITS {
            counts[usize::from(bits)] += 1;
        }
        Self { symbols, counts }
    }

    /// Calls `field(name, value)` for each field whose name may matter: those of the static table other than `:status` are skipped.
    pub fn decode(&self, mut block: &[u8], mut field: impl FnMut(&str, &str)) -> Result<(), Fault> {
        while let Some(&first) = block.first() {
            let (prefix_bits, literal) = match first {
                0x80.. => (7, false),
                0x40..0x80 => (6, true),
                0x20..0x40 => (5, false),
                _ => (4, true),
            };
            let index = integer(&mut block, prefix_bits)?;
            if (0x20..0x40).contains(&first) {
                continue; // A new table size; there is no table.
            }
            if index > STATIC_ENTRIES || (index == 0 && !literal) {
                return Err(Fault::new(
                    "malformed",
                    format!("header index {index} where no dynamic table was allowed"),
                ));
            }
            let is_status = (STATUS_INDEX..STATUS_INDEX + STATUSES.len()).contains(&index);
            if !literal {
                if is_status {
                    field(":status", STATUSES[index - STATUS_INDEX]);
                }
                continue;
            }
            let name = if index == 0 { self.string(&mut block)? } else { String::new() };
            let value = self.string(&mut block)?;
            field(if is_status { ":status" } else { &name }, &value);
        }
        Ok(())
    }

    fn string(&self, block: &mut &[u8]) -> Result<String, Fault> {
        let huffman = block.first().is_some_and(|first| first & 0x80 != 0);
        let length = integer(block, 7)?;
        let (text, rest) = block.split_at_checked(length).ok_or_else(cut)?;
        *block = rest;
        let bytes = if huffman { self.huffman(text)? } else { text.to_vec() };
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn huffman(&self, text: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut plain = Vec::with_capacity(text.len() * 2);
        let (mut code, mut first, mut index, mut bits) = (0_u32, 0_u32, 0_u32, 0_usize);
        for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |shift| u32::from(byte >> shift & 1))) {
            // `first` is the first code of this length, `index` the place of its symbol.
            code = code << 1 | bit;
            bits += 1;
            let count = *self.counts.get(bits).ok_or_else(cut)?;
            first <<= 1;
            if code.wrapping_sub(first) < count {
                let symbol = self.symbols[(index + code - first) as usize];
                plain.push(u8::try_from(symbol).map_err(|_| cut())?);
                (code, first, index, bits) = (0, 0, 0, 0);
            } else {
                index += count;
                first += count;
            }
        }
        Ok(plain)
    }
}

fn integer(block: &mut &[u8], prefix_bits: u32) -> Result<usize, Fault> {
    let (&first, mut rest) = block.split_first().ok_or_else(cut)?;
    let mask = (1_usize << prefix_bits) - 1;
    let mut value = first as usize & mask;
    if value == mask {
        for shift in (0..28).step_by(7) {
            let (&next, tail) = rest.split_first().ok_or_else(cut)?;
            rest = tail;
            value += (next as usize & 0x7f) << shift;
            if next & 0x80 == 0 {
                *block = rest;
                return Ok(value);
            }
        }
        return Err(cut());
    }
    *block = rest;
    Ok(value)
}

fn cut() -> Fault {
    Fault::new("malformed", "header block that does not decode")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(block: &[u8]) -> Result<Vec<(String, String)>, Fault> {
        let mut found = Vec::new();
        Decoder::new().decode(block, |name, value| found.push((name.to_owned(), value.to_owned())))?;
        Ok(found)
    }

    #[test]
    fn literals_plain_and_huffman_coded_are_read() {
        // RFC 7541, C.2.2 and C.4.1's Huffman-coded "www.example.com".
        let mut block = vec![0x88, 0x04, 0x0c];
        block.extend(b"/sample/path");
        block.extend([0x40, 0x03]);
        block.extend(b"a-b");
        block.extend([0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]);
        let expected = [(":status", "200"), ("", "/sample/path"), ("a-b", "www.example.com")];
        assert_eq!(
            fields(&block).expect("decodes"),
            expected.map(|(name, value)| (name.into(), value.into()))
        );
    }

    #[test]
    fn a_status_outside_the_table_is_read() {
        // RFC 7541, C.6.1: literal with indexing, name 8, Huffman-coded "302".
        assert_eq!(
            fields(&[0x20, 0x48, 0x82, 0x64, 0x02]).expect("decodes"),
            [(":status".into(), "302".into())]
        );
    }

    #[test]
    fn cut_blocks_and_dynamic_references_are_refused() {
        for block in [
            &[0x40_u8, 0x05, b'a'][..],
            &[0xbe],
            &[0x80],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x00, 0x84, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(fields(block).is_err(), "{block:x?}");
        }
    }
}
