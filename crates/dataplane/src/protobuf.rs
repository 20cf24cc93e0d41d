//! An inference request out of its protobuf message, an answer into one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, int64, skip_field,
};
use serde_json::Value;
use smallvec::SmallVec;

use crate::answer::Answer;
use crate::check::WantedOutput;
use crate::encode;
use crate::error::{Error, Result};
use crate::faces::guard;
use crate::proto::infer_parameter::ParameterChoice;
use crate::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::proto::{InferParameter, ModelInferRequest};
use crate::request::{Data, InferRequest, Input, Parameters, Requested};
use crate::tensor::{DType, Shape};
use crate::typed;

/// Room for an input, a parameter or a name.
const PART: usize = 512;
/// Room for a string of typed contents.
const ELEMENT: usize = 64;
/// Room for a number that took a byte.
const NUMBER: usize = 8;

/// The request in the words that all faces share; its tensors stay where they are.
pub fn parse(request: &ModelInferRequest) -> Result<InferRequest<'_>> {
    let (inputs, contents, model) = (request.inputs.len(), &request.raw_input_contents, &request.model_name);
    if contents.len() > inputs {
        let contents = contents.len();
        return Err(Error::invalid(format!(
            "expected {inputs} raw_input_contents, one for each input, but got {contents} for model '{model}'"
        )));
    }
    let input = |(index, input)| parse_input(input, contents.get(index), !contents.is_empty(), model);
    Ok(InferRequest {
        id: Cow::Borrowed(&request.id),
        parameters: parse_parameters(&request.parameters),
        inputs: request.inputs.iter().enumerate().map(input).collect::<Result<_>>()?,
        outputs: request.outputs.iter().map(parse_requested).collect(),
        ..InferRequest::default()
    })
}

/// About how many bytes a request takes once it is decoded, which can be a hundred times what it has on the wire: two
/// bytes are an input. `depth`: 0 = the request, 1 = an input, 2 = its contents.
pub fn decoded_bytes(mut message: &[u8], depth: u8) -> usize {
    let mut bytes = 0;
    while let Ok((tag, wire)) = decode_key(&mut message) {
        if wire != WireType::LengthDelimited {
            if skip_field(wire, tag, &mut message, DecodeContext::default()).is_err() {
                break;
            }
            bytes += NUMBER;
            continue;
        }
        let Ok(len) = decode_varint(&mut message) else { break };
        let Some((part, rest)) = message.split_at_checked(len as usize) else { break };
        message = rest;
        bytes += match (depth, tag) {
            (0 | 1, 5) => PART + decoded_bytes(part, depth + 1),
            (0, 7) => PART,
            (2, 8) => ELEMENT,
            (1, 3) | (2, _) => NUMBER * part.len(),
            _ => PART + part.len(),
        };
    }
    bytes
}

fn parse_input<'a>(
    input: &'a InferInputTensor,
    raw: Option<&'a Bytes>,
    is_raw: bool,
    model: &str,
) -> Result<Input<'a>> {
    let name = &input.name;
    let Some(datatype) = DType::parse(&input.datatype) else {
        let datatype = &input.datatype;
        return Err(Error::invalid(format!(
            "unknown datatype '{datatype}' of input '{name}' for model '{model}'"
        )));
    };
    let data = match (&input.contents, raw) {
        (Some(_), _) if is_raw => Err(Error::invalid(format!(
            "contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
        ))),
        (Some(contents), _) => typed::raw(input, datatype, contents, model).map(Data::Raw),
        (None, Some(raw)) => Ok(Data::Raw(Cow::Borrowed(raw))),
        // Not refused here: an input in shared memory has no contents either.
        (None, None) => Ok(Data::Missing),
    };
    Ok(Input {
        name: Cow::Borrowed(name),
        datatype,
        shape: Shape::from_slice(&input.shape),
        parameters: parse_parameters(&input.parameters),
        data: data?,
    })
}

fn parse_requested(output: &InferRequestedOutputTensor) -> Requested<'_> {
    Requested { name: Cow::Borrowed(&output.name), parameters: parse_parameters(&output.parameters) }
}

fn parse_parameters(map: &BTreeMap<String, InferParameter>) -> Parameters<'_> {
    map.iter()
        .filter_map(|(key, value)| Some((Cow::Borrowed(key.as_str()), parse_parameter(value)?)))
        .collect()
}

fn parse_parameter(parameter: &InferParameter) -> Option<Value> {
    Some(match parameter.parameter_choice.as_ref()? {
        ParameterChoice::BoolParam(value) => (*value).into(),
        ParameterChoice::Int64Param(value) => (*value).into(),
        ParameterChoice::StringParam(value) => value.as_str().into(),
        ParameterChoice::DoubleParam(value) => (*value).into(),
        ParameterChoice::Uint64Param(value) => (*value).into(),
    })
}

/// Writes a `ModelInferResponse` straight from the slab: a message of prost's would hold a copy of every tensor first.
pub fn write(answer: &Answer, buffer: &mut Vec<u8>) -> Result<()> {
    let (spec, views) = (&answer.model().spec, answer.views());
    for (tag, text) in [(1, &spec.name), (2, &spec.version), (3, &answer.wanted().id)] {
        if !text.is_empty() {
            write_field(tag, text.as_bytes(), buffer);
        }
    }
    if let Some(covered) = answer.wanted().covered {
        write_field(4, guard::FIELDS[usize::from(covered)], buffer);
    }
    let mut contents: SmallVec<[Cow<'_, [u8]>; 4]> = SmallVec::new();
    let mut tensor = Vec::with_capacity(64);
    for wanted in &answer.wanted().outputs {
        let view = &views[wanted.index];
        tensor.clear();
        write_field(1, view.spec.name.as_bytes(), &mut tensor);
        let answered = encode::answer(spec, &WantedOutput { binary: true, ..*wanted }, view)?;
        write_field(2, answered.datatype.name().as_bytes(), &mut tensor);
        int64::encode_packed(3, &answered.shape, &mut tensor);
        contents.push(answered.data);
        write_field(5, &tensor, buffer);
    }
    for bytes in contents {
        write_field(6, &bytes, buffer);
    }
    Ok(())
}

/// Writes a field of text, bytes or an encoded message.
pub fn write_field(tag: u32, bytes: &[u8], buffer: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(bytes.len() as u64, buffer);
    buffer.extend_from_slice(bytes);
}
