//! Answers: JSON, binary blobs, or both.

use std::borrow::Cow;
use std::cmp::Reverse;

use smallvec::SmallVec;

use crate::check::{Wanted, WantedOutput, count_texts, elements};
use crate::error::{Error, Result, refuse};
use crate::json::write_string;
use crate::tensor::{DType, ModelSpec, Shape, TensorSpec};

/// One output as a replica left it; `data` may be changing under us and is never trusted.
#[derive(Clone, Copy, Debug)]
pub struct OutputView<'a> {
    /// Its name, datatype and labels.
    pub spec: &'a TensorSpec,
    /// This request's part of the shape.
    pub shape: &'a [i64],
    /// Little-endian elements, row-major.
    pub data: &'a [u8],
}

/// An answer's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// JSON, followed by the blobs.
    pub body: Vec<u8>,
    /// Bytes of the JSON head, if any output is binary.
    pub head_len: Option<usize>,
}

/// An output in the form in which it is answered.
struct Answered<'a> {
    name: &'a str,
    datatype: DType,
    shape: Shape,
    data: Cow<'a, [u8]>,
    is_binary: bool,
}

/// Most elements of a row that are ranked for a classification.
const MAX_CLASSES: usize = 1_000_000;

/// Writes the answer to one request; `outputs` holds all outputs of the model in the order of its specification.
pub fn encode(spec: &ModelSpec, wanted: &Wanted, outputs: &[OutputView<'_>]) -> Result<Encoded> {
    let view = |index| outputs.get(index).ok_or_else(|| Error::internal("a replica left out an output"));
    let answers = wanted.outputs.iter().map(|wanted| answer(spec, wanted, view(wanted.index)?));
    let answers: SmallVec<[Answered<'_>; 2]> = answers.collect::<Result<_>>()?;
    let room = |answer: &Answered<'_>| 128 + answer.data.len() * if answer.is_binary { 1 } else { 3 };
    let mut body = Vec::with_capacity(128 + answers.iter().map(room).sum::<usize>());
    body.push(b'{');
    if !wanted.id.is_empty() {
        write_field(&mut body, "id", &wanted.id);
    }
    write_field(&mut body, "model_name", &spec.name);
    write_field(&mut body, "model_version", &spec.version);
    body.extend_from_slice(b"\"outputs\":[");
    for answer in &answers {
        write_output(&mut body, answer)?;
    }
    end_list(&mut body);
    body.push(b'}');
    let head_len = answers.iter().any(|answer| answer.is_binary).then_some(body.len());
    for answer in answers.iter().filter(|answer| answer.is_binary) {
        body.extend_from_slice(&answer.data);
    }
    Ok(Encoded { body, head_len })
}

/// Holds an output's size against its shape, and classifies it if that is wanted.
fn answer<'a>(spec: &ModelSpec, wanted: &WantedOutput, view: &OutputView<'a>) -> Result<Answered<'a>> {
    let OutputView { spec: TensorSpec { name, datatype, .. }, shape, data } = *view;
    let mut data = Cow::Borrowed(data);
    if !wanted.binary || wanted.classification > 0 || *datatype == DType::Bytes {
        // What is looked at more than once must not change in between.
        data.to_mut();
    }
    let fits = |count: usize| match datatype {
        DType::Bytes => count_texts(&data) == Some(count),
        _ => count.checked_mul(datatype.size()) == Some(data.len()),
    };
    if !elements(shape).is_some_and(fits) {
        let length = data.len();
        let why = format!("output '{name}' has {length} bytes, which do not match its shape {shape:?}");
        return Err(Error::internal(why));
    }
    let (mut datatype, mut shape, is_binary) = (*datatype, Shape::from_slice(shape), wanted.binary);
    if wanted.classification > 0 {
        let (classes, text) = classify(spec, &OutputView { data: &data, ..*view }, wanted.classification)?;
        (datatype, shape, data) = (DType::Bytes, classes, text.into());
    }
    Ok(Answered { name, datatype, shape, data, is_binary })
}

fn write_field(out: &mut Vec<u8>, key: &str, text: &str) {
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
    write_string(out, text);
    out.push(b',');
}

/// Ends a list; the comma behind its last element, if there is one, goes.
fn end_list(out: &mut Vec<u8>) {
    out.pop_if(|last| *last == b',');
    out.push(b']');
}

fn write_output(out: &mut Vec<u8>, answer: &Answered<'_>) -> Result<()> {
    let mut number = itoa::Buffer::new();
    out.push(b'{');
    write_field(out, "name", answer.name);
    write_field(out, "datatype", answer.datatype.name());
    out.extend_from_slice(b"\"shape\":[");
    for size in &answer.shape {
        out.extend_from_slice(number.format(*size).as_bytes());
        out.push(b',');
    }
    end_list(out);
    if answer.is_binary {
        out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
        out.extend_from_slice(number.format(answer.data.len()).as_bytes());
        out.push(b'}');
    } else {
        out.extend_from_slice(b",\"data\":[");
        write_data(out, answer)?;
        end_list(out);
    }
    out.extend_from_slice(b"},");
    Ok(())
}

/// Runs the body for each little-endian `$type` in `$data`.
macro_rules! each {
    ($type:ty, $data:expr, |$value:ident| $body:expr) => {
        for bytes in $data.as_chunks::<{ size_of::<$type>() }>().0 {
            let $value = <$type>::from_le_bytes(*bytes);
            $body
        }
    };
}

/// Calls `visit` for each element of a tensor of integers.
#[inline]
fn each_integer(datatype: DType, data: &[u8], mut visit: impl FnMut(i128)) {
    match datatype {
        DType::Uint8 => each!(u8, data, |value| visit(value.into())),
        DType::Uint16 => each!(u16, data, |value| visit(value.into())),
        DType::Uint32 => each!(u32, data, |value| visit(value.into())),
        DType::Uint64 => each!(u64, data, |value| visit(value.into())),
        DType::Int8 => each!(i8, data, |value| visit(value.into())),
        DType::Int16 => each!(i16, data, |value| visit(value.into())),
        DType::Int32 => each!(i32, data, |value| visit(value.into())),
        DType::Int64 => each!(i64, data, |value| visit(value.into())),
        _ => unreachable!("floats, booleans and text have their own code"),
    }
}

/// Writes the elements, each with a comma behind it.
fn write_data(out: &mut Vec<u8>, answer: &Answered<'_>) -> Result<()> {
    let (data, mut integer, mut float) = (&*answer.data, itoa::Buffer::new(), ryu::Buffer::new());
    let mut put = |text: &str| {
        out.extend_from_slice(text.as_bytes());
        out.push(b',');
    };
    match answer.datatype {
        DType::Bool => each!(u8, data, |value| put(if value == 0 { "false" } else { "true" })),
        DType::Fp32 => {
            each!(f32, data, |value| put(word(value.into()).unwrap_or_else(|| float.format_finite(value))))
        }
        DType::Fp64 => {
            each!(f64, data, |value| put(word(value).unwrap_or_else(|| float.format_finite(value))))
        }
        DType::Bytes => write_texts(out, answer)?,
        DType::Fp16 | DType::Bf16 => refuse!(
            "sending {} data via JSON is not supported. Please use the binary data format for output",
            answer.datatype.name()
        ),
        datatype => each_integer(datatype, data, |value| match i64::try_from(value) {
            Ok(value) => put(integer.format(value)),
            Err(_) => put(integer.format(value as u64)),
        }),
    }
    Ok(())
}

/// The word for a number that JSON has no text for.
#[inline]
fn word(value: f64) -> Option<&'static str> {
    match value {
        _ if value.is_finite() => None,
        _ if value.is_nan() => Some("NaN"),
        _ if value > 0.0 => Some("Infinity"),
        _ => Some("-Infinity"),
    }
}

fn write_texts(out: &mut Vec<u8>, answer: &Answered<'_>) -> Result<()> {
    let mut rest = &*answer.data;
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let (text, others) = tail.split_at(u32::from_le_bytes(*length) as usize);
        let Ok(text) = std::str::from_utf8(text) else {
            let hint = "hint: ask for it with \"binary_data\": true";
            refuse!("output '{}' holds bytes that are not UTF-8 text. {hint}", answer.name);
        };
        write_string(out, text);
        out.push(b',');
        rest = others;
    }
    Ok(())
}

/// The best `count` elements of each row as a `BYTES` tensor, "value:index[:label]" each, with its shape.
pub fn classify(spec: &ModelSpec, view: &OutputView<'_>, count: u32) -> Result<(Shape, Vec<u8>)> {
    let (datatype, has_rows) = (view.spec.datatype, spec.is_batched() && !view.shape.is_empty());
    let width = elements(&view.shape[usize::from(has_rows)..]).unwrap_or(0);
    if matches!(datatype, DType::Bool | DType::Fp16 | DType::Bf16 | DType::Bytes) {
        refuse!("class result not available for output due to unsupported type '{}'", datatype.name());
    }
    if width > MAX_CLASSES {
        refuse!("classification output tensor too large");
    }
    let count = width.min(count as usize);
    let mut out = Vec::new();
    for row in view.data.chunks_exact((width * datatype.size()).max(1)) {
        for (Reverse(key), index) in rank(datatype, row, count) {
            let mut text = match datatype {
                DType::Fp32 | DType::Fp64 => {
                    format!("{:.6}:{index}", f64::from_bits(flip(key as i64) as u64))
                }
                _ => format!("{key}:{index}"),
            };
            if let Some(label) = view.spec.labels.get(index) {
                text.push(':');
                text.push_str(label);
            }
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }
    let rows = view.shape.iter().take(usize::from(has_rows));
    Ok((rows.copied().chain([count as i64]).collect(), out))
}

/// The largest `count` elements of a row with their indices, the largest first; NaN is the smallest.
fn rank(datatype: DType, row: &[u8], count: usize) -> Vec<(Reverse<i128>, usize)> {
    let mut ranks = Vec::with_capacity(row.len() / datatype.size());
    let mut put = |key: i128| ranks.push((Reverse(key), ranks.len()));
    let mut real =
        |value: f64| put(if value.is_nan() { i64::MIN } else { flip(value.to_bits() as i64) }.into());
    match datatype {
        DType::Fp32 => each!(f32, row, |value| real(value.into())),
        DType::Fp64 => each!(f64, row, |value| real(value)),
        _ => each_integer(datatype, row, put),
    }
    if count < ranks.len() {
        ranks.select_nth_unstable(count);
        ranks.truncate(count);
    }
    ranks.sort_unstable();
    ranks
}

/// Maps the bits of floats to integers of the same order, and back.
fn flip(bits: i64) -> i64 {
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}
