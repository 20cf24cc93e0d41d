//! The binary tensor extension: a JSON head with blobs behind it, or a body that is nothing but one tensor; over HTTP a
//! header tells where the head ends.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};
use smallvec::smallvec;

use super::parameters::unsigned;
use crate::error::{Error, Result, refuse};
use crate::request::{Data, InferRequest, Input, Parameters, parse_head, parse_json, tag};
use crate::tensor::{DType, ModelSpec, Shape, push_text};

/// Bytes of the JSON head in front of binary tensors.
pub const HEAD_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// What an answer with binary tensors is to a client.
pub const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Reads a request's body; without the header it is JSON.
pub fn parse<'a>(body: &'a [u8], head: Option<&[u8]>, spec: &'a ModelSpec) -> Result<InferRequest<'a>> {
    match head.map(|value| head_length(value, body.len())).transpose()? {
        None => parse_json(body),
        Some(0) => parse_raw(body, spec),
        Some(len) => parse_binary(body, len),
    }
}

fn head_length(value: &[u8], body_len: usize) -> Result<usize> {
    let text = String::from_utf8_lossy(value);
    let Ok(len) = text.trim().parse::<i64>() else {
        return Err(Error::invalid(format!("Unable to parse Inference-Header-Content-Length, got: {text}")));
    };
    usize::try_from(len).ok().filter(|len| *len <= body_len).ok_or_else(|| {
        Error::invalid(format!("inference header size should be in range (0, {body_len}), got: {len}"))
    })
}

/// Reads a JSON head of `head_len` bytes, followed by the blobs of its inputs.
pub fn parse_binary(body: &[u8], head_len: usize) -> Result<InferRequest<'_>> {
    let Some((head, blobs)) = body.split_at_checked(head_len) else {
        refuse!("inference header size should be in range (0, {}), got: {head_len}", body.len());
    };
    place_blobs(parse_head(head)?, Some(blobs))
}

/// Reads a body that is the data of the model's only input, and nothing else (head length 0); its outputs are binary.
pub fn parse_raw<'a>(body: &'a [u8], spec: &'a ModelSpec) -> Result<InferRequest<'a>> {
    let [input] = spec.inputs.as_slice() else {
        let (model, count) = (&spec.name, spec.inputs.len());
        refuse!("Raw request must only have 1 input to be deduced but got {count} inputs in '{model}'");
    };
    let (name, datatype) = (input.name.as_str(), input.datatype);
    let mut shape = Shape::from_slice(&input.shape);
    if spec.is_batched() {
        shape[..1].fill(1);
    }
    let fixed = shape.iter().copied().filter(|size| *size >= 0).fold(1, i64::saturating_mul);
    let mut variable = shape.iter_mut().filter(|size| **size < 0);
    let (first, second) = (variable.next(), variable.next());
    if second.is_some() {
        let why = "there are more than one variable-sized dimension";
        refuse!("The shape of the raw input '{name}' can not be deduced because {why}");
    }
    if datatype == DType::Bytes && (first.is_some() || fixed != 1) {
        refuse!("For BYTE datatype raw input '{name}', the model must have input shape [1]");
    }
    if let Some(size) = first {
        *size = body.len() as i64 / fixed.saturating_mul(datatype.size() as i64).max(1);
    }
    let mut raw = Cow::Borrowed(body);
    if datatype == DType::Bytes {
        let mut element = Vec::with_capacity(4 + body.len());
        push_text(&mut element, body);
        raw = element.into();
    }
    let data = Data::Raw(raw);
    let input = Input { name: name.into(), datatype, shape, parameters: Parameters::new(), data };
    let parameters = smallvec![("binary_data_output".into(), true.into())];
    Ok(InferRequest { parameters, inputs: smallvec![input], ..InferRequest::default() })
}

/// Hands the blobs behind the head to the inputs that declare a `binary_data_size`; `None` = there is no head length.
pub(crate) fn place_blobs<'a>(
    mut request: InferRequest<'a>,
    blobs: Option<&'a [u8]>,
) -> Result<InferRequest<'a>> {
    let placed = place(&mut request.inputs, blobs);
    placed.map_err(|error| tag(&request.id, error)).map(|()| request)
}

fn place<'a>(inputs: &mut [Input<'a>], blobs: Option<&'a [u8]>) -> Result<()> {
    let mut rest = blobs.unwrap_or_default();
    for input in inputs {
        let size = unsigned(&input.parameters, "binary_data_size")?;
        let (name, Some(size)) = (&input.name, size) else { continue };
        if input.data != Data::Missing {
            let fields = "'data', 'binary_data_size' in 'parameters'";
            refuse!(
                "Input must set only one of the following fields: {fields}. But input '{name}' sets both"
            );
        }
        if blobs.is_none() && size > 0 {
            // Triton errs in the header's name, and its tests match the text.
            refuse!(
                "must specify valid 'Infer-Header-Content-Length' in request header and 'binary_data_size' \
                 when passing inputs in binary data format"
            );
        }
        let parts = usize::try_from(size).ok().and_then(|size| rest.split_at_checked(size));
        let Some((blob, others)) = parts else {
            let missing = size - rest.len() as u64;
            refuse!("unexpected size for input '{name}', expecting {missing} additional bytes");
        };
        input.data = Data::Raw(blob.into());
        rest = others;
    }
    if !rest.is_empty() {
        refuse!("unexpected additional input data: {} bytes behind the last tensor", rest.len());
    }
    Ok(())
}
