//! Request bodies: read with limits and a deadline; content codings in both directions.

use std::io::{Read, Write};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::memory::{Held, Memory};

/// A body that makes progress earns this much more time per byte: 64 KiB a second.
const EARNED_PER_BYTE: Duration = Duration::from_nanos(1_000_000_000 / (64 << 10));

/// How long and how far the body of a refused request is read on.
const DISCARD: Duration = Duration::from_secs(2);
const DISCARD_BYTES: usize = 256 << 20;

/// Shorter answers are not worth compressing.
pub const MIN_COMPRESSED: usize = 1024;

/// A complete body; its bytes count as held until it is dropped.
pub struct Received {
    /// The bytes, in one piece.
    pub data: Bytes,
    pub(crate) held: Held,
}

/// Reads a body to its end; refuses what is too large, too slow, or finds no memory left.
pub async fn read(body: &mut Incoming, config: &Config, memory: &Memory) -> Result<Received, Fault> {
    let limit = config.max_body_bytes;
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    check_size(declared, limit)?;
    let mut received = Received { data: Bytes::new(), held: memory.hold() };
    let mut deadline = Instant::now() + Duration::from_millis(config.body_timeout_ms);
    let mut timer = pin!(sleep_until(deadline));
    let mut whole = Vec::new();
    loop {
        if body.is_end_stream() {
            break;
        }
        // The timer is registered only if the bytes are not here yet.
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut timer => return Err(Fault::body_timeout(config.body_timeout_ms)),
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Error::invalid(format!("the body broke off: {error}")))?;
        let Ok(chunk) = frame.into_data() else { continue };
        let total = received.data.len() + whole.len() + chunk.len();
        check_size(total, limit)?;
        received.held.grow(total)?;
        if total == chunk.len() {
            received.data = chunk;
            continue;
        }
        if whole.is_empty() {
            whole.reserve_exact(declared.max(total));
            whole.extend_from_slice(&received.data);
            received.data = Bytes::new();
        }
        whole.extend_from_slice(&chunk);
        deadline += EARNED_PER_BYTE * chunk.len() as u32;
        timer.as_mut().reset(deadline);
    }
    if !whole.is_empty() {
        received.data = whole.into();
    }
    Ok(received)
}

/// Reads the rest of a refused request's body for a moment, so that a client that sends first and reads then gets its
/// answer instead of a reset connection.
pub async fn discard(mut body: Incoming) {
    let read_on = async {
        let mut total = 0;
        while total <= DISCARD_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            total += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // When the time is over, the connection is closed by dropping the body.
    drop(timeout(DISCARD, read_on).await);
}

fn check_size(bytes: usize, limit: usize) -> Result<()> {
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::too_large(format!(
        "request body of {bytes} bytes or more exceeds the maximum allowed value of {limit} bytes, hint: raise --max-body-bytes"
    )))
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
    /// The coding of a request's body; `None` = as it is.
    pub fn of_request(headers: &HeaderMap) -> Result<Option<Self>, Fault> {
        let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
        let name = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "deflate" => Ok(Some(Self::Deflate)),
            _ => Err(Fault::unknown_coding()),
        }
    }

    /// The coding that the client likes best; `None` = as it is.
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
    pub fn unpack(self, packed: &Received, limit: usize, memory: &Memory) -> Result<Received> {
        match self {
            Self::Gzip => unpack(MultiGzDecoder::new(&*packed.data), limit, memory),
            Self::Deflate => unpack(ZlibDecoder::new(&*packed.data), limit, memory),
        }
    }

    /// Packs an answer; `None` if it is too short to gain.
    pub fn pack(self, plain: &[u8]) -> Option<Vec<u8>> {
        if plain.len() < MIN_COMPRESSED {
            return None;
        }
        let packed = Vec::with_capacity(plain.len() / 2);
        match self {
            Self::Gzip => pack(GzEncoder::new(packed, Compression::fast()), plain, GzEncoder::finish),
            Self::Deflate => pack(ZlibEncoder::new(packed, Compression::fast()), plain, ZlibEncoder::finish),
        }
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

fn unpack(mut source: impl Read, limit: usize, memory: &Memory) -> Result<Received> {
    let mut held = memory.hold();
    let mut plain = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        let len = source
            .read(&mut part)
            .map_err(|error| Error::invalid(format!("the compressed body cannot be unpacked: {error}")))?;
        if len == 0 {
            return Ok(Received { data: plain.into(), held });
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
) -> Option<Vec<u8>> {
    // Writing into a vector cannot fail; if it did, the plain answer would be sent.
    encoder.write_all(plain).ok()?;
    finish(encoder).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let packed = coding.pack(&plain).expect("long enough");
            let packed = Received { data: packed.into(), held: memory.hold() };
            let unpacked = coding.unpack(&packed, plain.len(), &memory).expect("within the limit");
            assert_eq!(unpacked.data, plain);
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let memory = Memory::new(1 << 20);
        let bomb = Coding::Gzip.pack(&vec![0; 1 << 20]).expect("long enough");
        let bomb = Received { data: bomb.into(), held: memory.hold() };
        let refused = Coding::Gzip.unpack(&bomb, 100_000, &memory).err().expect("too large");
        assert_eq!(refused.code, crate::error::Code::TooLarge);
        assert_eq!(memory.used(), 0);
    }
}
