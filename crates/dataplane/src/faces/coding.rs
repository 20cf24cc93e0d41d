//! Content codings, gzip and deflate, of bodies and of gRPC's messages, in both directions.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http::{HeaderMap, HeaderValue};

use crate::body::check_size;
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::pool::LARGE;

/// Shorter answers are not worth compressing.
pub const MIN_COMPRESSED: usize = 1024;

/// The names that `grpc-accept-encoding` carries.
pub const ACCEPTED: &str = "identity,gzip,deflate";

/// What has come in, and what it is compressed with.
#[derive(Clone)]
pub struct Message {
    /// The bytes.
    pub data: Bytes,
    /// `None` = they are plain.
    pub coding: Option<Coding>,
}

impl Message {
    /// Whether understanding it would hold up a runtime thread; what a compressed one expands to is not known before.
    pub fn is_large(&self) -> bool {
        self.coding.is_some() || self.data.len() > LARGE
    }

    /// The bytes as they were before they were compressed.
    pub fn plain(self, Dataplane { config, memory, .. }: &Dataplane) -> Result<Bytes> {
        match self.coding {
            None => Ok(self.data),
            Some(coding) => coding.unpack(&self.data, config.max_body_bytes, memory),
        }
    }
}

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As by the `gzip` program.
    Gzip,
    /// The zlib format.
    Deflate,
}

impl Coding {
    /// The coding of a request's body over HTTP; `None` = as it is.
    pub fn of_request(headers: &HeaderMap) -> Result<Option<Self>> {
        let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
        let name = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "deflate" => Ok(Some(Self::Deflate)),
            _ => Err(Error::unsupported("Unsupported compression type")),
        }
    }

    /// What the messages of a gRPC call are compressed with (if flagged so), and what its answers shall be: the same, if
    /// the client says that it accepts that.
    pub fn of_call(headers: &HeaderMap) -> Result<(Option<Self>, Option<Self>)> {
        let coding = match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            None | Some(b"identity") => return Ok((None, None)),
            Some(b"gzip") => Self::Gzip,
            Some(b"deflate") => Self::Deflate,
            Some(other) => {
                let name = String::from_utf8_lossy(other);
                return Err(Error::unsupported(format!(
                    "grpc-encoding '{name}' is not supported, hint: use one of {ACCEPTED}"
                )));
            }
        };
        let accepted = headers.get("grpc-accept-encoding").and_then(|names| names.to_str().ok());
        let is_accepted = accepted.unwrap_or_default().split(',').any(|name| coding.header() == name.trim());
        Ok((Some(coding), is_accepted.then_some(coding)))
    }

    /// The coding that an HTTP client likes best; `None` = as it is.
    pub fn wanted(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(ACCEPT_ENCODING)?.to_str().ok()?;
        let (gzip, deflate) = (quality(text, "gzip"), quality(text, "deflate"));
        let (best, coding) = if deflate > gzip { (deflate, Self::Deflate) } else { (gzip, Self::Gzip) };
        let plain = text.contains("identity").then(|| quality(text, "identity"));
        (best > 0 && plain.is_none_or(|plain| best >= plain)).then_some(coding)
    }

    /// The coding's name in headers.
    pub const fn header(self) -> HeaderValue {
        match self {
            Self::Gzip => HeaderValue::from_static("gzip"),
            Self::Deflate => HeaderValue::from_static("deflate"),
        }
    }

    /// Unpacks a body within the size limit and the memory budget.
    fn unpack(self, packed: &[u8], limit: usize, memory: &Memory) -> Result<Bytes> {
        match self {
            Self::Gzip => unpack(MultiGzDecoder::new(packed), limit, memory),
            Self::Deflate => unpack(ZlibDecoder::new(packed), limit, memory),
        }
    }

    /// Packs what an answer has from the byte `start` on; false if that is too short to gain.
    pub fn pack(self, answer: &mut Vec<u8>, start: usize) -> bool {
        let plain = &answer[start..];
        if plain.len() < MIN_COMPRESSED {
            return false;
        }
        let mut packed = Vec::with_capacity(start + plain.len() / 2);
        packed.extend_from_slice(&answer[..start]);
        let packed = match self {
            Self::Gzip => pack(GzEncoder::new(packed, Compression::fast()), plain, GzEncoder::finish),
            Self::Deflate => pack(ZlibEncoder::new(packed, Compression::fast()), plain, ZlibEncoder::finish),
        };
        // Writing into a vector cannot fail; if it did, the plain answer would be sent.
        packed.map(|packed| *answer = packed).is_ok()
    }
}

/// The q-value of a coding in `Accept-Encoding`, in thousandths; 0 = not wanted.
fn quality(accepted: &str, coding: &str) -> u32 {
    let mut any = 0;
    for item in accepted.split(',') {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts
            .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
            .map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0));
        let weight = (weight * 1000.0) as u32;
        if name.eq_ignore_ascii_case(coding) {
            return weight;
        }
        if name == "*" {
            any = weight;
        }
    }
    any
}

fn unpack(mut source: impl Read, limit: usize, memory: &Memory) -> Result<Bytes> {
    let (mut held, mut plain, mut part) = (memory.hold(), Vec::new(), vec![0; 64 << 10]);
    loop {
        let len = source
            .read(&mut part)
            .map_err(|error| Error::invalid(format!("the compressed body cannot be unpacked: {error}")))?;
        if len == 0 {
            return Ok(held.with(plain.into()));
        }
        check_size(plain.len() + len, limit)?;
        held.grow(plain.len() + len)?;
        plain.extend_from_slice(&part[..len]);
    }
}

fn pack<W: Write>(
    mut encoder: W,
    plain: &[u8],
    finish: impl FnOnce(W) -> std::io::Result<Vec<u8>>,
) -> std::io::Result<Vec<u8>> {
    encoder.write_all(plain)?;
    finish(encoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(coding: Coding, plain: &[u8]) -> Vec<u8> {
        let mut packed = plain.to_vec();
        assert!(coding.pack(&mut packed, 0), "long enough");
        packed
    }

    fn wanted(accept: &str) -> Option<Coding> {
        let value = HeaderValue::from_str(accept).expect("a header value");
        Coding::wanted(&HeaderMap::from_iter([(ACCEPT_ENCODING, value)]))
    }

    #[test]
    fn the_coding_with_the_highest_quality_is_chosen() {
        let cases = [
            ("gzip, deflate", Some(Coding::Gzip)),
            ("deflate;q=0.9, gzip;q=0.5", Some(Coding::Deflate)),
            ("*", Some(Coding::Gzip)),
            ("*;q=0.1, gzip;q=0", Some(Coding::Deflate)),
            ("br, zstd", None),
            ("gzip;q=0", None),
            ("gzip;q=0.5, identity", None),
            ("identity;q=0.1, DEFLATE", Some(Coding::Deflate)),
            ("gzip;q=nonsense", None),
            ("", None),
        ];
        for (accept, expected) in cases {
            assert_eq!(wanted(accept), expected, "{accept}");
        }
    }

    #[test]
    fn what_is_packed_unpacks_to_the_same_bytes() {
        let memory = Memory::new(1 << 20);
        let plain: Vec<u8> = (0..50_000u32).map(|value| (value % 251) as u8).collect();
        for coding in [Coding::Gzip, Coding::Deflate] {
            let packed = packed(coding, &plain);
            let unpacked = coding.unpack(&packed, plain.len(), &memory).expect("within the limit");
            assert_eq!(unpacked, plain);
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let memory = Memory::new(1 << 20);
        let bomb = packed(Coding::Gzip, &vec![0; 1 << 20]);
        let refused = Coding::Gzip.unpack(&bomb, 100_000, &memory).expect_err("too large");
        assert_eq!(refused.code, crate::error::Code::TooLarge);
        assert_eq!(memory.used(), 0);
    }
}
