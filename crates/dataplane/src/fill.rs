//! Writes an input's elements to their final place, once.

use bytes::Bytes;

use crate::check::too_few;
use crate::error::{Error, Result, refuse};
use crate::json::{Number, Scanner};
use crate::request::{Data, Input, Typed, with_typed};
use crate::tensor::{DType, elements, with_number};

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
    with_number!(input.datatype, T => fill_numbers(input, text, out, |scan| T::read(scan, name).map(T::to_le_bytes)),
        datatype => match datatype {
            DType::Bool => fill_numbers(input, text, out, |scan| scan.boolean().map(|value| [u8::from(value)])),
            DType::Bytes => fill_texts(input, text, out),
            _ => refuse!(
                "receiving {name} data via JSON is not supported. Please use the binary data format for input {}",
                input.name
            ),
        },
    )
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
    mut element: impl FnMut(&mut Scanner<'a>) -> Result<()>,
) -> Result<()> {
    let mut scan = Scanner::new(text);
    let parsed = scan.flatten(&mut element).and_then(|()| scan.end());
    parsed
        .map_err(|error| Error::invalid(format!("Unable to parse 'data': {error} of input '{}'", input.name)))
}

#[cold]
fn too_many(scan: &Scanner<'_>) -> Error {
    scan.fault("Shape does not match true shape of 'data' field: one element too many")
}

fn fill_typed(input: &Input<'_>, typed: Typed<'_>, out: &mut [u8]) -> Result<usize> {
    if let Typed::Bytes(texts) = typed {
        let put = |written, text: &Bytes| Ok(written + put_text(input, text, &mut out[written..])?);
        return texts.iter().try_fold(0, put);
    }
    with_typed!(typed, input.datatype, values, T => convert(input, values, out, T::to_le_bytes), _ => {
        Err(Error::internal(format!("typed contents of another datatype for input '{}'", input.name)))
    })
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
