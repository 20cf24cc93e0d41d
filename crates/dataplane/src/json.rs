//! A JSON scanner for requests: it borrows from the text, builds no tree and nests no deeper than its limit.
//!
//! Errors end in "at byte N"; the caller says of which text.

use std::borrow::Cow;
use std::fmt::Display;

use fast_float2::FastFloat;
use memchr::{memchr2, memchr3};
use serde::Serialize;

use crate::error::{Error, Result};

/// Deepest nesting of arrays and objects.
pub const MAX_DEPTH: u32 = 100;

/// Most entries that `object` and `array` visit in a text: what is made of them stays in proportion.
const MAX_ENTRIES: u32 = 65_536;

/// A place in a JSON text.
pub struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    /// Arrays and objects around this place.
    depth: u32,
    /// Entries visited so far.
    entries: u32,
}

impl<'a> Scanner<'a> {
    /// Starts at the beginning of `text`.
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, depth: 0, entries: 0 }
    }

    /// An error about the current place.
    #[cold]
    pub fn fault(&self, what: impl Display) -> Error {
        Error::invalid(format!("{what} at byte {}", self.at))
    }

    #[cold]
    fn expected(&self, what: impl Display) -> Error {
        match self.text.get(self.at) {
            None => self.fault(format_args!("expected {what}, but the text ends")),
            Some(byte) => self.fault(format_args!("expected {what}, got '{}'", byte.escape_ascii())),
        }
    }

    /// The next byte that is not white space, still to be read.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn need(&mut self, byte: u8) -> Result<()> {
        if self.take(byte) { Ok(()) } else { Err(self.expected(format_args!("'{}'", byte as char))) }
    }

    #[inline]
    fn take_word(&mut self, word: &str) -> bool {
        self.peek();
        let found = self.text[self.at..].starts_with(word.as_bytes());
        self.at += if found { word.len() } else { 0 };
        found
    }

    #[inline]
    fn null(&mut self) -> bool {
        self.take_word("null")
    }

    /// Refuses anything but white space up to the end.
    pub fn end(&mut self) -> Result<()> {
        if self.peek().is_none() { Ok(()) } else { Err(self.expected("the end of the text")) }
    }

    /// Visits the entries of an object; `entry` must read the value of its key. Null is as good as left out.
    pub fn object(&mut self, mut entry: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>) -> Result<()> {
        self.list(b'{', b'}', |scan| {
            scan.count()?;
            let key = scan.key()?;
            if scan.null() { Ok(()) } else { entry(scan, key) }
        })
    }

    /// Visits the elements of an array; `element` must read one value.
    pub fn array(&mut self, mut element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.list(b'[', b']', |scan| {
            scan.count()?;
            element(scan)
        })
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(self.fault(format_args!("more than {MAX_ENTRIES} entries")));
        }
        Ok(())
    }

    #[inline]
    fn list(&mut self, open: u8, close: u8, mut entry: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.need(open)?;
        self.depth += 1;
        self.check_depth(0)?;
        if self.peek() != Some(close) {
            entry(self)?;
            while self.take(b',') {
                entry(self)?;
            }
        }
        self.depth -= 1;
        self.need(close)
    }

    #[inline]
    fn check_depth(&self, more: u32) -> Result<()> {
        if self.depth + more > MAX_DEPTH {
            return Err(
                self.fault(format_args!("JSON nesting depth exceeds maximum allowed limit ({MAX_DEPTH})"))
            );
        }
        Ok(())
    }

    fn key(&mut self) -> Result<Cow<'a, str>> {
        let key = self.string()?;
        self.need(b':').map(|()| key)
    }

    /// Reads a string.
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.need(b'"')?;
        let start = self.at;
        loop {
            match self.text.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(0x20..) => self.at += 1,
                _ => return Err(self.expected("the closing quote of a string")),
            }
        }
        self.at += 1;
        let plain = &self.text[start..self.at - 1];
        if plain.contains(&b'\\') {
            let decoded = serde_json::from_slice(&self.text[start - 1..self.at]);
            return decoded.map(Cow::Owned).map_err(|_| self.fault("a string with a wrong escape"));
        }
        let plain = std::str::from_utf8(plain).map_err(|_| self.fault("a string that is not UTF-8"))?;
        Ok(Cow::Borrowed(plain))
    }

    /// Reads a boolean; also 0 and 1, as some clients write them.
    #[inline]
    pub fn boolean(&mut self) -> Result<bool> {
        for (word, value) in [("true", true), ("false", false), ("1", true), ("0", false)] {
            if self.take_word(word) {
                return Ok(value);
            }
        }
        Err(self.expected("a boolean"))
    }

    /// Reads an integer of the type that errors call `name`; `1.0` and `1e3` are none.
    #[inline]
    pub fn integer<T: TryFrom<i128>>(&mut self, name: &str) -> Result<T> {
        let is_negative = self.take(b'-');
        let rest = &self.text[self.at..];
        let digits = &rest[..rest.iter().take_while(|byte| byte.is_ascii_digit()).count()];
        self.at += digits.len();
        let is_whole = matches!(digits, [b'0'] | [b'1'..=b'9', ..]);
        if !is_whole || matches!(self.text.get(self.at), Some(b'.' | b'e' | b'E')) {
            return Err(self.expected(format_args!("an integer ({name})")));
        }
        let add = |value: u64, digit: &u8| value.checked_mul(10)?.checked_add((digit - b'0').into());
        let magnitude = digits.iter().try_fold(0, add).map(i128::from);
        let value = magnitude.map(|value| if is_negative { -value } else { value });
        let value = value.and_then(|value| T::try_from(value).ok());
        value.ok_or_else(|| self.fault(format_args!("a number is out of range for {name}")))
    }

    /// Reads a finite number of the type that errors call `name`; with `words` also what JSON lacks and Python writes:
    /// NaN, Infinity, -Infinity.
    #[inline]
    pub fn float<F: FastFloat + From<f32> + Into<f64>>(&mut self, name: &str, words: bool) -> Result<F> {
        self.peek();
        let rest = &self.text[self.at..];
        // JSON is stricter than the parser of floats: no leading zero, and a digit on each side of the point.
        let unsigned = rest.strip_prefix(b"-").unwrap_or(rest);
        let count = unsigned.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let has_leading_zero = count > 1 && unsigned[0] == b'0';
        let is_bare_point =
            unsigned.get(count) == Some(&b'.') && !unsigned.get(count + 1).is_some_and(u8::is_ascii_digit);
        if count == 0 || has_leading_zero || is_bare_point {
            let known = [("NaN", f32::NAN), ("Infinity", f32::INFINITY), ("-Infinity", f32::NEG_INFINITY)];
            let word = known.into_iter().find(|(word, _)| words && self.take_word(word));
            return word.map(|(_, value)| value.into()).ok_or_else(|| self.expected("a number"));
        }
        match fast_float2::parse_partial::<F, _>(rest) {
            Ok((value, length)) if value.into().is_finite() => {
                self.at += length;
                Ok(value)
            }
            _ => Err(self.fault(format_args!("a number is out of range for {name}"))),
        }
    }

    /// Reads any value and checks it.
    pub fn skip(&mut self) -> Result<()> {
        match self.peek() {
            Some(b'{') => self.list(b'{', b'}', |scan| scan.key().and_then(|_| scan.skip())),
            Some(b'[') => self.list(b'[', b']', Self::skip),
            Some(b'"') => self.string().map(drop),
            Some(b't' | b'f') => self.boolean().map(drop),
            Some(b'-' | b'0'..=b'9') => self.float::<f64>("FP64", false).map(drop),
            _ if self.null() => Ok(()),
            _ => Err(self.expected("a value")),
        }
    }

    /// Calls `element` for every element of an array of any nesting, in order, or for a value that is no array.
    #[inline]
    pub fn flatten(&mut self, mut element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let mut depth = 0;
        loop {
            if self.peek() == Some(b'[') {
                self.at += 1;
                depth += 1;
                self.check_depth(depth)?;
                if self.peek() != Some(b']') {
                    continue;
                }
            } else {
                element(self)?;
            }
            while depth > 0 && !self.take(b',') {
                self.need(b']')?;
                depth -= 1;
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// The text of the next value. Of an array only brackets and quotes are looked at: its reader must check the rest.
    pub fn span(&mut self) -> Result<&'a [u8]> {
        let (is_array, start, mut depth) = (self.peek() == Some(b'['), self.at, 0);
        if !is_array {
            self.skip()?;
        }
        while is_array && (self.at == start || depth > 0) {
            match self.find(|rest| memchr3(b'[', b']', b'"', rest))? {
                b'[' => depth += 1,
                b']' => depth -= 1,
                _ => {
                    while self.find(|rest| memchr2(b'"', b'\\', rest))? == b'\\' {
                        self.at += 1;
                    }
                }
            }
            self.check_depth(depth)?;
        }
        Ok(&self.text[start..self.at])
    }

    /// Goes behind the next byte that `search` finds, and returns it.
    #[inline]
    fn find(&mut self, search: impl Fn(&[u8]) -> Option<usize>) -> Result<u8> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let found = search(rest).ok_or_else(|| self.fault("an array or a string without its end"))?;
        self.at += found + 1;
        Ok(rest[found])
    }
}

/// Appends a value as JSON.
pub fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("JSON can be written to memory");
}

/// Appends a number; the words for what is none are those of Python.
#[inline]
pub fn write_float<F: ryu::Float + Into<f64>>(out: &mut Vec<u8>, value: F) {
    let wide: f64 = value.into();
    match wide {
        _ if wide.is_finite() => out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes()),
        _ if wide.is_nan() => out.extend_from_slice(b"NaN"),
        _ => out.extend_from_slice(if wide > 0.0 { &b"Infinity"[..] } else { b"-Infinity" }),
    }
}
