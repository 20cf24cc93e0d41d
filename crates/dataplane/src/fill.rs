//! Writes an input's elements to their final place, once.

use crate::check::{elements, too_few};
use crate::error::{Error, Result, refuse};
use crate::json::Scanner;
use crate::request::{Data, Input, Typed};
use crate::tensor::DType;

/// Decodes `input`, which has passed `check`, into `destination` and returns the bytes written; verifies what `check`
/// leaves to it: the text of JSON data, its element count, and the range of every number.
pub fn fill(input: &Input<'_>, destination: &mut [u8]) -> Result<usize> {
    match input.data {
        Data::Json(text) => fill_json(input, text, destination),
        Data::Typed(typed) => fill_typed(input, typed, destination),
        Data::Raw(data) => {
            room(input, destination, data.len())?.copy_from_slice(data);
            Ok(data.len())
        }
        Data::Element(text) => put_text(input, text, destination),
        Data::Missing => Ok(0),
    }
}

fn room<'d>(input: &Input<'_>, destination: &'d mut [u8], bytes: usize) -> Result<&'d mut [u8]> {
    let too_small = || Error::internal(format!("the room for input '{}' is too small", input.name));
    destination.get_mut(..bytes).ok_or_else(too_small)
}

/// Writes one `BYTES` element at the front of `out`.
fn put_text(input: &Input<'_>, text: &[u8], out: &mut [u8]) -> Result<usize> {
    let Ok(length) = u32::try_from(text.len()) else { refuse!("a string of more than 4 GiB") };
    let (head, tail) = room(input, out, 4 + text.len())?.split_at_mut(4);
    head.copy_from_slice(&length.to_le_bytes());
    tail.copy_from_slice(text);
    Ok(4 + text.len())
}

fn fill_json(input: &Input<'_>, text: &[u8], out: &mut [u8]) -> Result<usize> {
    let name = input.datatype.name();
    match input.datatype {
        DType::Bool => fill_numbers(input, text, out, |scan| scan.boolean().map(|value| [u8::from(value)])),
        DType::Uint8 => fill_numbers(input, text, out, |scan| scan.integer(name).map(u8::to_le_bytes)),
        DType::Uint16 => fill_numbers(input, text, out, |scan| scan.integer(name).map(u16::to_le_bytes)),
        DType::Uint32 => fill_numbers(input, text, out, |scan| scan.integer(name).map(u32::to_le_bytes)),
        DType::Uint64 => fill_numbers(input, text, out, |scan| scan.integer(name).map(u64::to_le_bytes)),
        DType::Int8 => fill_numbers(input, text, out, |scan| scan.integer(name).map(i8::to_le_bytes)),
        DType::Int16 => fill_numbers(input, text, out, |scan| scan.integer(name).map(i16::to_le_bytes)),
        DType::Int32 => fill_numbers(input, text, out, |scan| scan.integer(name).map(i32::to_le_bytes)),
        DType::Int64 => fill_numbers(input, text, out, |scan| scan.integer(name).map(i64::to_le_bytes)),
        DType::Fp32 => fill_numbers(input, text, out, |scan| scan.float(name, true).map(f32::to_le_bytes)),
        DType::Fp64 => fill_numbers(input, text, out, |scan| scan.float(name, true).map(f64::to_le_bytes)),
        DType::Bytes => fill_texts(input, text, out),
        DType::Fp16 | DType::Bf16 => refuse!(
            "receiving {name} data via JSON is not supported. Please use the binary data format for input {}",
            input.name
        ),
    }
}

/// Decodes elements of `N` bytes each.
#[inline]
fn fill_numbers<'a, const N: usize>(
    input: &Input<'_>,
    text: &'a [u8],
    out: &mut [u8],
    read: impl Fn(&mut Scanner<'a>) -> Result<[u8; N]>,
) -> Result<usize> {
    let count = elements(&input.shape).unwrap_or(0);
    let mut slots = room(input, out, count * N)?.as_chunks_mut::<N>().0.iter_mut();
    flatten(input, text, |scan| {
        *slots.next().ok_or_else(|| too_many(scan))? = read(scan)?;
        Ok(())
    })?;
    if slots.len() == 0 { Ok(count * N) } else { Err(too_few(input, count)) }
}

fn fill_texts(input: &Input<'_>, text: &[u8], out: &mut [u8]) -> Result<usize> {
    let (count, mut found, mut written) = (elements(&input.shape).unwrap_or(0), 0, 0);
    flatten(input, text, |scan| {
        found += 1;
        if found > count {
            return Err(too_many(scan));
        }
        written += put_text(input, scan.string()?.as_bytes(), &mut out[written..])?;
        Ok(())
    })?;
    if found == count { Ok(written) } else { Err(too_few(input, count)) }
}

#[inline]
fn flatten<'a>(
    input: &Input<'_>,
    text: &'a [u8],
    element: impl FnMut(&mut Scanner<'a>) -> Result<()>,
) -> Result<()> {
    let mut scan = Scanner::new(text);
    let parsed = scan.flatten(element).and_then(|()| scan.end());
    parsed
        .map_err(|error| Error::invalid(format!("Unable to parse 'data': {error} of input '{}'", input.name)))
}

#[cold]
fn too_many(scan: &Scanner<'_>) -> Error {
    scan.fault("Shape does not match true shape of 'data' field: one element too many")
}

fn fill_typed(input: &Input<'_>, typed: Typed<'_>, out: &mut [u8]) -> Result<usize> {
    match (typed, input.datatype) {
        (Typed::Bool(values), _) => convert(input, values, out, |value: bool| [u8::from(value)]),
        (Typed::Int(values), DType::Int8) => convert(input, values, out, i8::to_le_bytes),
        (Typed::Int(values), DType::Int16) => convert(input, values, out, i16::to_le_bytes),
        (Typed::Int(values), _) => convert(input, values, out, i32::to_le_bytes),
        (Typed::Int64(values), _) => convert(input, values, out, i64::to_le_bytes),
        (Typed::Uint(values), DType::Uint8) => convert(input, values, out, u8::to_le_bytes),
        (Typed::Uint(values), DType::Uint16) => convert(input, values, out, u16::to_le_bytes),
        (Typed::Uint(values), _) => convert(input, values, out, u32::to_le_bytes),
        (Typed::Uint64(values), _) => convert(input, values, out, u64::to_le_bytes),
        (Typed::Fp32(values), _) => convert(input, values, out, f32::to_le_bytes),
        (Typed::Fp64(values), _) => convert(input, values, out, f64::to_le_bytes),
        (Typed::Bytes(texts), _) => texts
            .iter()
            .try_fold(0, |written, text| Ok(written + put_text(input, text, &mut out[written..])?)),
    }
}

/// Writes numbers that may be wider in the message than in the tensor.
#[inline]
fn convert<T: Copy + TryInto<U> + std::fmt::Display, U, const N: usize>(
    input: &Input<'_>,
    values: &[T],
    out: &mut [u8],
    to_bytes: impl Fn(U) -> [u8; N],
) -> Result<usize> {
    let slots = room(input, out, values.len() * N)?.as_chunks_mut::<N>().0;
    for (slot, value) in slots.iter_mut().zip(values) {
        let Ok(narrow) = (*value).try_into() else {
            refuse!("{value} is out of range for {} in input '{}'", input.datatype.name(), input.name);
        };
        *slot = to_bytes(narrow);
    }
    Ok(values.len() * N)
}
