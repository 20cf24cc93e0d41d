//! Answers: JSON, binary blobs, or both.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::check::{Wanted, WantedOutput};
use crate::error::{Error, Result, refuse};
use crate::faces::classification::classify;
use crate::faces::guard::PARAMETER;
use crate::json::{write_float, write_json};
use crate::tensor::{DType, ModelSpec, Shape, TensorSpec, elements, split_text, with_number};

/// One output as a replica left it; `data` may be changing under us and is never trusted.
#[derive(Clone, Debug)]
pub struct OutputView<'a> {
    /// Its name, datatype and labels.
    pub spec: &'a TensorSpec,
    /// This request's part of the shape.
    pub shape: Shape,
    /// Little-endian elements, row-major.
    pub data: Cow<'a, [u8]>,
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
pub struct Answered<'a> {
    /// Its name.
    pub name: &'a str,
    /// `BYTES` for classes, else the output's own.
    pub datatype: DType,
    /// Its shape.
    pub shape: Shape,
    /// Its elements; those that are looked at again cannot change any more.
    pub data: Cow<'a, [u8]>,
    is_binary: bool,
}

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
    if let Some(covered) = wanted.covered {
        body.extend_from_slice(format!("\"parameters\":{{\"{PARAMETER}\":{covered}}},").as_bytes());
    }
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
pub fn answer<'a>(spec: &ModelSpec, wanted: &WantedOutput, view: &'a OutputView<'_>) -> Result<Answered<'a>> {
    let OutputView { spec: TensorSpec { name, datatype, labels, .. }, shape, data } = view;
    let mut data = Cow::Borrowed(&**data);
    if !wanted.binary || wanted.classification > 0 || *datatype == DType::Bytes {
        // What is looked at more than once must not change in between.
        data.to_mut();
    }
    if elements(shape).and_then(|count| datatype.behind(&data, count)) != Some(&[]) {
        let length = data.len();
        let why = format!("output '{name}' has {length} bytes, which do not match its shape {shape:?}");
        return Err(Error::internal(why));
    }
    let (shape, is_binary) = (shape.clone(), wanted.binary);
    let mut answered = Answered { name, datatype: *datatype, shape, data, is_binary };
    if wanted.classification > 0 {
        classify(spec, labels, wanted.classification, &mut answered)?;
    }
    Ok(answered)
}

fn write_field(out: &mut Vec<u8>, key: &str, text: &str) {
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
    write_json(out, text);
    out.push(b',');
}

/// Ends a list; the comma behind its last element, if there is one, goes.
fn end_list(out: &mut Vec<u8>) {
    out.pop_if(|last| *last == b',');
    out.push(b']');
}

fn write_output(out: &mut Vec<u8>, answer: &Answered<'_>) -> Result<()> {
    out.push(b'{');
    write_field(out, "name", answer.name);
    write_field(out, "datatype", answer.datatype.name());
    out.extend_from_slice(b"\"shape\":[");
    for size in &answer.shape {
        out.extend_from_slice(itoa::Buffer::new().format(*size).as_bytes());
        out.push(b',');
    }
    end_list(out);
    if answer.is_binary {
        out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
        write_json(out, &answer.data.len());
        out.push(b'}');
    } else {
        out.extend_from_slice(b",\"data\":[");
        write_data(out, answer)?;
        end_list(out);
    }
    out.extend_from_slice(b"},");
    Ok(())
}

/// Writes the elements, each with a comma behind it.
fn write_data(out: &mut Vec<u8>, answer: &Answered<'_>) -> Result<()> {
    with_number!(answer.datatype,
        I => each(out, &answer.data, |out, bytes| {
            out.extend_from_slice(itoa::Buffer::new().format(I::from_le_bytes(bytes)).as_bytes());
        }),
        F => each(out, &answer.data, |out, bytes| write_float(out, F::from_le_bytes(bytes))),
        datatype => match datatype {
            DType::Bool => each(out, &answer.data, |out, [value]| {
                out.extend_from_slice(if value == 0 { b"false" } else { &b"true"[..] });
            }),
            DType::Bytes => write_texts(out, answer)?,
            _ => refuse!(
                "sending {} data via JSON is not supported. Please use the binary data format for output",
                datatype.name()
            ),
        },
    );
    Ok(())
}

/// Has each element of `N` bytes written, with a comma behind it.
#[inline]
fn each<const N: usize>(out: &mut Vec<u8>, data: &[u8], write: impl Fn(&mut Vec<u8>, [u8; N])) {
    for bytes in data.as_chunks::<N>().0 {
        write(out, *bytes);
        out.push(b',');
    }
}

fn write_texts(out: &mut Vec<u8>, answer: &Answered<'_>) -> Result<()> {
    let mut rest = &*answer.data;
    while let Some((text, others)) = split_text(rest) {
        let Ok(text) = std::str::from_utf8(text) else {
            let hint = "hint: ask for it with \"binary_data\": true";
            refuse!("output '{}' holds bytes that are not UTF-8 text. {hint}", answer.name);
        };
        write_json(out, text);
        out.push(b',');
        rest = others;
    }
    Ok(())
}
