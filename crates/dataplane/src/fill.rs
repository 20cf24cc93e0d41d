//! Writes an input's elements to their final place, once.

use crate::check::too_few;
use crate::error::{Error, Result, refuse};
use crate::json::Scanner;
use crate::request::{Data, Input};
use crate::tensor::{DType, elements, with_number};

/// Decodes `input`, which has passed `check`, into `out` and returns the bytes written; verifies what `check` leaves to
/// it: the text of JSON data, its element count, and the range of every number.
pub fn fill(input: &Input<'_>, out: &mut [u8]) -> Result<usize> {
    let (text, name) = match &input.data {
        Data::Json(text) => (*text, input.datatype.name()),
        Data::Raw(data) => {
            out.get_mut(..data.len()).ok_or_else(|| too_small(input))?.copy_from_slice(data);
            return Ok(data.len());
        }
        Data::Missing => return Ok(0),
    };
    with_number!(input.datatype,
        I => fill_numbers(input, text, out, |scan| scan.integer(name).map(I::to_le_bytes)),
        F => fill_numbers(input, text, out, |scan| scan.float(name, true).map(F::to_le_bytes)),
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

#[cold]
fn too_small(input: &Input<'_>) -> Error {
    Error::internal(format!("the room for input '{}' is too small", input.name))
}

/// Decodes elements of `N` bytes each.
#[inline]
fn fill_numbers<'a, const N: usize>(
    input: &Input<'_>,
    text: &'a [u8],
    out: &mut [u8],
    read: impl Fn(&mut Scanner<'a>) -> Result<[u8; N]>,
) -> Result<usize> {
    let len = elements(&input.shape).unwrap_or(0) * N;
    let mut slots = out.get_mut(..len).ok_or_else(|| too_small(input))?.as_chunks_mut::<N>().0.iter_mut();
    visit(input, text, |scan| {
        let element = read(scan)?;
        *slots.next().ok_or_else(|| too_many(scan))? = element;
        Ok(())
    })?;
    if slots.len() == 0 { Ok(len) } else { Err(too_few(input)) }
}

fn fill_texts(input: &Input<'_>, text: &[u8], out: &mut [u8]) -> Result<usize> {
    let (mut missing, mut written) = (elements(&input.shape).unwrap_or(0), 0);
    visit(input, text, |scan| {
        let text = scan.string()?;
        missing = missing.checked_sub(1).ok_or_else(|| too_many(scan))?;
        let Ok(length) = u32::try_from(text.len()) else { refuse!("a string of more than 4 GiB") };
        let place = out.get_mut(written..written + 4 + text.len()).ok_or_else(|| too_small(input))?;
        place[..4].copy_from_slice(&length.to_le_bytes());
        place[4..].copy_from_slice(text.as_bytes());
        written += place.len();
        Ok(())
    })?;
    if missing == 0 { Ok(written) } else { Err(too_few(input)) }
}

/// Calls `element` for every element of JSON data; it must read one.
#[inline]
fn visit<'a>(
    input: &Input<'_>,
    text: &'a [u8],
    element: impl FnMut(&mut Scanner<'a>) -> Result<()>,
) -> Result<()> {
    let mut scan = Scanner::new(text);
    let named = |error| Error::invalid(format!("Unable to parse 'data': {error} of input '{}'", input.name));
    scan.flatten(element).and_then(|()| scan.end()).map_err(named)
}

#[cold]
fn too_many(scan: &Scanner<'_>) -> Error {
    scan.fault("Shape does not match true shape of 'data' field: one element too many")
}
