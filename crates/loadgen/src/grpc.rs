//! The client's side of one gRPC connection: HTTP/2 framing for unary calls, one after the other.
//!
//! Lean on purpose: requests differ only in their message, so their header block is encoded once; the peer is allowed no
//! header table, so answers are read without state; answers' messages are counted, not kept.

use std::sync::Arc;

use crate::frame::{
    ACK, CANCEL, CONTINUATION, DATA, DEFAULT_FRAME_BYTES, END_HEADERS, END_STREAM, FRAME_HEAD, GOAWAY,
    HEADERS, Headers, PADDED, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, add_frame,
    add_word, word,
};
use crate::wire::{Answer, Fault, MAX_HEAD_BYTES, MAX_TEXT_BYTES};

const DEFAULT_WINDOW: i64 = 65_535;
const DEFAULT_TABLE_BYTES: u32 = 4_096;
/// What the peer may send without asking; renewed for the connection at half of it.
const RECEIVE_WINDOW: u32 = (1 << 31) - 1;
/// How far ahead of the socket DATA frames are built.
const BUFFER_BYTES: usize = 64 * 1024;
/// Stream numbers end at 2^31; a fresh connection long before.
const LAST_STREAM: u32 = 1 << 30;

/// The header table that the peer keeps of our fields.
enum Table {
    Empty,
    Filled,
    /// It wants none.
    None,
}

/// How the parts of an answer end, and what they said.
#[derive(Default)]
struct Heard {
    /// Beginning of a frame whose end has not come yet.
    held: Vec<u8>,
    /// Bytes of DATA still to come, and whether they end the call.
    data_left: usize,
    data_ends: bool,
    block: Vec<u8>,
    block_ends: bool,
    http_status: String,
    grpc_status: String,
    grpc_message: String,
    bytes: u64,
}

/// The state of one connection and of the call on it.
pub struct Stream {
    headers: Arc<Headers>,
    table: Table,
    out: Vec<u8>,
    written: usize,
    message: Arc<[u8]>,
    framed: usize,
    number: u32,
    window: i64,
    call_window: i64,
    initial_window: i64,
    frame_bytes: usize,
    consumed: u32,
    heard: Heard,
    /// The call has not been answered.
    open: bool,
    going: bool,
}

impl Stream {
    pub fn new(headers: Arc<Headers>) -> Self {
        let mut out = PREFACE.to_vec();
        let settings: [(u16, u32); 3] = [(1, 0), (2, 0), (4, RECEIVE_WINDOW)]; // No table, no push, wide streams.
        add_frame(&mut out, SETTINGS, 0, 0, settings.len() * 6);
        for (key, value) in settings {
            out.extend_from_slice(&key.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        add_word(&mut out, WINDOW_UPDATE, 0, RECEIVE_WINDOW - DEFAULT_WINDOW as u32);
        Self {
            headers,
            table: Table::Empty,
            out,
            written: 0,
            message: Arc::from([]),
            framed: 0,
            number: 0,
            window: DEFAULT_WINDOW,
            call_window: 0,
            initial_window: DEFAULT_WINDOW,
            frame_bytes: DEFAULT_FRAME_BYTES,
            consumed: 0,
            heard: Heard::default(),
            open: false,
            going: false,
        }
    }

    pub fn start(&mut self, message: &Arc<[u8]>) {
        self.number = if self.number == 0 { 1 } else { self.number + 2 };
        self.message = Arc::clone(message);
        (self.framed, self.call_window, self.heard.bytes, self.open) = (0, self.initial_window, 0, true);
        for text in [&mut self.heard.http_status, &mut self.heard.grpc_status, &mut self.heard.grpc_message] {
            text.clear();
        }
        let block = match self.table {
            Table::None => &self.headers.plain,
            Table::Filled => &self.headers.later,
            Table::Empty => {
                self.table = Table::Filled;
                &self.headers.first
            }
        };
        add_frame(&mut self.out, HEADERS, END_HEADERS, self.number, block.len());
        self.out.extend_from_slice(block);
    }

    pub fn pending(&mut self) -> &[u8] {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        while self.framed < self.message.len() && self.out.len() < BUFFER_BYTES {
            let allowed = self.window.min(self.call_window).clamp(0, self.frame_bytes as i64) as usize;
            let size = allowed.min(self.message.len() - self.framed);
            if size == 0 {
                break;
            }
            let part = &self.message[self.framed..self.framed + size];
            self.framed += size;
            let flags = if self.framed == self.message.len() { END_STREAM } else { 0 };
            add_frame(&mut self.out, DATA, flags, self.number, size);
            self.out.extend_from_slice(part);
            self.window -= size as i64;
            self.call_window -= size as i64;
        }
        &self.out[self.written..]
    }

    pub fn wrote(&mut self, count: usize) {
        self.written += count;
    }

    pub fn read(&mut self, input: &[u8]) -> Result<Option<Answer>, Fault> {
        self.heard.bytes += input.len() as u64;
        let joined;
        let mut input = input;
        if !self.heard.held.is_empty() {
            self.heard.held.extend_from_slice(input);
            joined = std::mem::take(&mut self.heard.held);
            input = &joined;
        }
        let mut answer = None;
        loop {
            if self.heard.data_left > 0 {
                let taken = self.heard.data_left.min(input.len());
                input = &input[taken..];
                self.heard.data_left -= taken;
                if self.heard.data_left > 0 {
                    break;
                }
                if std::mem::take(&mut self.heard.data_ends) {
                    answer = Some(self.answer());
                }
            }
            let Some(&[a, b, c, kind, flags, s0, s1, s2, s3]) = input.first_chunk::<FRAME_HEAD>() else {
                break;
            };
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
            if length > DEFAULT_FRAME_BYTES {
                return Err(Fault::new(
                    "malformed",
                    format!("HTTP/2 frame of {length} bytes, 16384 allowed"),
                ));
            }
            if kind == DATA {
                input = &input[FRAME_HEAD..];
                self.data(length, flags, stream);
                if length == 0 && std::mem::take(&mut self.heard.data_ends) {
                    answer = Some(self.answer());
                }
                continue;
            }
            let Some(payload) = input.get(FRAME_HEAD..FRAME_HEAD + length) else { break };
            input = &input[FRAME_HEAD + length..];
            if let Some(found) = self.control(kind, flags, stream, payload)? {
                answer = Some(found);
            }
        }
        self.heard.held.extend_from_slice(input);
        Ok(answer)
    }

    fn data(&mut self, length: usize, flags: u8, stream: u32) {
        self.heard.data_left = length;
        self.heard.data_ends = flags & END_STREAM != 0 && self.is_current(stream);
        self.consumed += length as u32;
        if self.consumed > RECEIVE_WINDOW / 2 {
            add_word(&mut self.out, WINDOW_UPDATE, 0, std::mem::take(&mut self.consumed));
        }
    }

    fn control(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<Option<Answer>, Fault> {
        match kind {
            HEADERS | CONTINUATION => return self.header_frame(kind, flags, stream, payload),
            RST_STREAM if self.is_current(stream) => {
                let fault = Fault::new("grpc reset", format!("RST_STREAM code {}", word(payload, 0)?));
                return Ok(Some(self.answered(Some(fault))));
            }
            SETTINGS if flags & ACK == 0 => {
                for entry in payload.chunks_exact(6) {
                    self.setting(u16::from_be_bytes([entry[0], entry[1]]), word(entry, 2)?);
                }
                add_frame(&mut self.out, SETTINGS, ACK, 0, 0);
            }
            PING if flags & ACK == 0 => {
                add_frame(&mut self.out, PING, ACK, 0, payload.len());
                self.out.extend_from_slice(payload);
            }
            GOAWAY => {
                self.going = true;
                let (last, code) = (word(payload, 0)? & RECEIVE_WINDOW, word(payload, 4)?);
                if self.open && (code != 0 || last < self.number) {
                    let text = String::from_utf8_lossy(payload.get(8..).unwrap_or_default());
                    return Err(Fault::new("grpc goaway", format!("code {code} {text}")));
                }
            }
            WINDOW_UPDATE => {
                let more = i64::from(word(payload, 0)? & RECEIVE_WINDOW);
                match stream {
                    0 => self.window += more,
                    number if number == self.number => self.call_window += more,
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(None)
    }

    /// Frames that trail an answer, such as a reset without an error, belong to no call.
    fn is_current(&self, stream: u32) -> bool {
        self.open && stream == self.number
    }

    /// The peer wants no further call on this connection.
    pub fn is_going(&self) -> bool {
        self.going
    }

    fn setting(&mut self, key: u16, value: u32) {
        match key {
            1 if value < DEFAULT_TABLE_BYTES => self.table = Table::None,
            4 => {
                self.call_window += i64::from(value) - self.initial_window;
                self.initial_window = i64::from(value);
            }
            5 => self.frame_bytes = (value as usize).min(BUFFER_BYTES),
            _ => {}
        }
    }

    fn header_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        mut payload: &[u8],
    ) -> Result<Option<Answer>, Fault> {
        if kind == HEADERS {
            self.heard.block.clear();
            self.heard.block_ends = flags & END_STREAM != 0;
            let padding =
                if flags & PADDED != 0 { payload.first().map_or(0, |&pad| usize::from(pad)) } else { 0 };
            let start = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
            let end = payload.len().saturating_sub(padding);
            payload =
                payload.get(start..end).ok_or_else(|| Fault::new("malformed", "padding beyond its frame"))?;
        }
        self.heard.block.extend_from_slice(payload);
        if self.heard.block.len() > MAX_HEAD_BYTES {
            return Err(Fault::new("malformed", "endless header block"));
        }
        if flags & END_HEADERS == 0 || !self.is_current(stream) {
            return Ok(None);
        }
        let Heard { block, http_status, grpc_status, grpc_message, .. } = &mut self.heard;
        self.headers.decoder.decode(block, |name, value| match name {
            ":status" => value.clone_into(http_status),
            "grpc-status" => value.clone_into(grpc_status),
            "grpc-message" => *grpc_message = value.chars().take(MAX_TEXT_BYTES).collect(),
            _ => {}
        })?;
        Ok(self.heard.block_ends.then(|| self.answer()))
    }

    /// The stream has ended: what its headers and trailers said.
    fn answer(&mut self) -> Answer {
        let fault = match (self.heard.http_status.as_str(), self.heard.grpc_status.as_str()) {
            ("200", "0") => None,
            ("200", "") => Some(Fault::new("malformed", "answer without a grpc-status")),
            ("200", status) => Some(Fault::new(format!("grpc {status}"), self.heard.grpc_message.as_str())),
            (status, _) => Some(Fault::new(format!("http {status}"), "in answer to a gRPC call")),
        };
        self.answered(fault)
    }

    fn answered(&mut self, fault: Option<Fault>) -> Answer {
        if self.framed < self.message.len() {
            // Answered before all was sent.
            self.framed = self.message.len();
            add_word(&mut self.out, RST_STREAM, self.number, CANCEL);
        }
        self.open = false;
        Answer { fault, bytes: self.heard.bytes, reusable: !self.going && self.number < LAST_STREAM }
    }
}
