//! The client's side of one HTTP/1.1 connection: one request out, one answer in, no body kept.

use crate::wire::{Answer, Fault, MAX_HEAD_BYTES, MAX_TEXT_BYTES};

/// Where the reader stands within an answer.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// Status line and header fields.
    Head,
    /// That many body bytes are to come.
    Body(u64),
    /// The line with a chunk's size.
    ChunkSize,
    /// That many bytes of a chunk, and its line end, are to come.
    Chunk(u64),
    /// Fields after the last chunk.
    Trailer,
    /// A body that ends with the connection.
    UntilClose,
}

/// Reads answers from the bytes of one connection, whatever their cuts.
pub struct Reader {
    part: Part,
    /// Beginning of a head or line whose end has not come yet.
    held: Vec<u8>,
    status: u16,
    reusable: bool,
    bytes: u64,
    /// First bytes of the body of an answer that is an error.
    text: Vec<u8>,
}

impl Reader {
    pub fn new() -> Self {
        Self { part: Part::Head, held: Vec::new(), status: 0, reusable: true, bytes: 0, text: Vec::new() }
    }

    /// Takes what has arrived; an answer when one is complete.
    pub fn read(&mut self, input: &[u8]) -> Result<Option<Answer>, Fault> {
        self.bytes += input.len() as u64;
        let joined;
        let mut input = input;
        if !self.held.is_empty() {
            self.held.extend_from_slice(input);
            joined = std::mem::take(&mut self.held);
            input = &joined;
        }
        loop {
            let mark: &[u8] = match self.part {
                Part::UntilClose => {
                    self.keep_text(input);
                    return Ok(None);
                }
                Part::Body(0) => return self.finish(input),
                Part::Body(_) | Part::Chunk(1..) if input.is_empty() => return Ok(None),
                Part::Body(left) => {
                    let (left, rest) = self.skip(left, input);
                    (self.part, input) = (Part::Body(left), rest);
                    continue;
                }
                Part::Chunk(0) => {
                    self.part = Part::ChunkSize;
                    continue;
                }
                Part::Chunk(left) => {
                    let (left, rest) = self.skip(left, input);
                    (self.part, input) = (Part::Chunk(left), rest);
                    continue;
                }
                Part::Head => b"\r\n\r\n",
                Part::ChunkSize | Part::Trailer => b"\r\n",
            };
            let Some(end) = find(input, mark) else {
                self.held = input.to_vec();
                let endless = self.held.len() > MAX_HEAD_BYTES;
                return if endless { Err(Fault::new("malformed", "endless head")) } else { Ok(None) };
            };
            let line = &input[..end];
            input = &input[end + mark.len()..];
            match self.part {
                Part::Head => self.head(line)?,
                Part::ChunkSize => {
                    let size = chunk_size(line)?;
                    self.part = if size == 0 { Part::Trailer } else { Part::Chunk(size + 2) };
                }
                _ if line.is_empty() => return self.finish(input),
                _ => {}
            }
        }
    }

    /// Passes over body bytes: how many are still to come, and what follows.
    fn skip<'a>(&mut self, left: u64, input: &'a [u8]) -> (u64, &'a [u8]) {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        self.keep_text(&input[..taken]);
        (left - taken as u64, &input[taken..])
    }

    /// The connection has ended: an answer if that is how its body ends.
    pub fn end(&mut self) -> Option<Answer> {
        self.reusable = false;
        (self.part == Part::UntilClose).then(|| self.answer())
    }

    fn head(&mut self, head: &[u8]) -> Result<(), Fault> {
        let mut lines = head.split(|&byte| byte == b'\n');
        let first = lines.next().unwrap_or_default();
        self.status = (first.len() >= 12 && first.starts_with(b"HTTP/1."))
            .then(|| number(&first[9..12]))
            .flatten()
            .ok_or_else(|| Fault::new("malformed", format!("not HTTP/1: {}", clip(first))))?
            as u16;
        if (100..200).contains(&self.status) {
            return Ok(());
        }
        self.reusable = first.starts_with(b"HTTP/1.1");
        self.part = Part::UntilClose;
        for line in lines {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            // By length first: three comparisons of a number decide about nearly every field.
            match name.len() {
                14 if name.eq_ignore_ascii_case(b"content-length") && self.part != Part::ChunkSize => {
                    let length = number(value)
                        .ok_or_else(|| Fault::new("malformed", format!("content-length {}", clip(value))))?;
                    self.part = Part::Body(length);
                }
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.part = Part::ChunkSize,
                10 if name.eq_ignore_ascii_case(b"connection") && value.eq_ignore_ascii_case(b"close") => {
                    self.reusable = false;
                }
                _ => {}
            }
        }
        if matches!(self.status, 204 | 304) {
            self.part = Part::Body(0);
        }
        Ok(())
    }

    fn keep_text(&mut self, body: &[u8]) {
        if !(200..300).contains(&self.status) && self.text.len() < MAX_TEXT_BYTES {
            self.text.extend_from_slice(&body[..body.len().min(MAX_TEXT_BYTES - self.text.len())]);
        }
    }

    fn finish(&mut self, rest: &[u8]) -> Result<Option<Answer>, Fault> {
        if rest.is_empty() {
            Ok(Some(self.answer()))
        } else {
            Err(Fault::new("malformed", "more bytes than one answer"))
        }
    }

    fn answer(&mut self) -> Answer {
        let ok = (200..300).contains(&self.status);
        let fault = (!ok).then(|| Fault::new(format!("http {}", self.status), clip(&self.text)));
        let answer = Answer { fault, bytes: self.bytes, reusable: self.reusable };
        self.text.clear();
        (self.part, self.bytes) = (Part::Head, 0);
        answer
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn chunk_size(line: &[u8]) -> Result<u64, Fault> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .filter(|&size| size < u64::MAX - 2)
        .ok_or_else(|| Fault::new("malformed", format!("chunk size {}", clip(line))))
}

fn clip(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT_BYTES)]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the text in pieces of that many bytes; every complete answer as (fault kind, text, reusable).
    fn answers(text: &[u8], piece: usize) -> Vec<(String, String, bool)> {
        let mut reader = Reader::new();
        let mut found = Vec::new();
        for part in text.chunks(piece) {
            match reader.read(part) {
                Ok(Some(answer)) => {
                    let fault = answer.fault.unwrap_or_else(|| Fault::new("ok", ""));
                    found.push((fault.kind, fault.text, answer.reusable));
                }
                Ok(None) => {}
                Err(fault) => found.push((fault.kind, fault.text, false)),
            }
        }
        found
    }

    fn row(kind: &str, text: &str, reusable: bool) -> (String, String, bool) {
        (kind.into(), text.into(), reusable)
    }

    #[test]
    fn every_cut_of_an_answer_reads_the_same() {
        let cases: &[(&[u8], _)] = &[
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello", row("ok", "", true)),
            (b"HTTP/1.1 200 OK\r\ncontent-length:0\r\nConnection: Close\r\n\r\n", row("ok", "", false)),
            (b"HTTP/1.1 204 No Content\r\n\r\n", row("ok", "", true)),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", row("ok", "", true)),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=1\r\nab\r\n\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\n", row("ok", "", true)),
            (b"HTTP/1.1 503 No\r\nContent-Length: 16\r\n\r\n{\"error\":\"full\"}", row("http 503", "{\"error\":\"full\"}", true)),
            (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", row("http 500", "no", true)),
        ];
        for (text, expected) in cases {
            for piece in 1..=text.len() {
                assert_eq!(answers(text, piece), vec![expected.clone()], "{}", String::from_utf8_lossy(text));
            }
        }
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let mut reader = Reader::new();
        assert!(reader.read(b"HTTP/1.0 404 Gone\r\n\r\nnot he").is_ok_and(|answer| answer.is_none()));
        assert!(reader.read(b"re").is_ok_and(|answer| answer.is_none()));
        let answer = reader.end().expect("an answer");
        assert_eq!(
            answer.fault.map(|fault| (fault.kind, fault.text)),
            Some(("http 404".into(), "not here".into()))
        );
        assert!(!answer.reusable);
        assert!(Reader::new().end().is_none());
    }

    #[test]
    fn what_is_not_http_is_malformed() {
        let long = vec![b'x'; MAX_HEAD_BYTES + 1];
        let cases: &[&[u8]] = &[
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 2xx OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            &long,
        ];
        for text in cases {
            assert_eq!(answers(text, text.len())[0].0, "malformed", "{}", clip(text));
        }
    }
}
