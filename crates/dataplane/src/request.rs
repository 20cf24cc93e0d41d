//! What an inference request says, whatever face it came through; everything borrows from the body.

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::error::{Error, Result, refuse};
use crate::json::Scanner;
use crate::tensor::{DType, ModelSpec, Shape};

/// The value of a parameter of a request, an input or an output.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter<'a> {
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits `i64`.
    Int(i64),
    /// An integer that fits only `u64`, or one that the client declared unsigned.
    Uint(u64),
    /// Any other number.
    Double(f64),
    /// Text.
    String(Cow<'a, str>),
}

/// Parameters in the order of the request; of equal keys the last counts.
pub type Parameters<'a> = SmallVec<[(Cow<'a, str>, Parameter<'a>); 2]>;

/// Typed contents of a gRPC request.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub enum Typed<'a> {
    Bool(&'a [bool]),
    Int(&'a [i32]),
    Int64(&'a [i64]),
    Uint(&'a [u32]),
    Uint64(&'a [u64]),
    Fp32(&'a [f32]),
    Fp64(&'a [f64]),
    Bytes(&'a [Bytes]),
}

/// Where the elements of an input are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Data<'a> {
    /// The text of the JSON value of `data`, not decoded yet.
    Json(&'a [u8]),
    /// Little-endian elements, row-major, as the binary tensor extension and gRPC carry them.
    Raw(&'a [u8]),
    /// Typed gRPC contents.
    Typed(Typed<'a>),
    /// One `BYTES` element without its length in front, as a raw HTTP body carries it.
    Element(&'a [u8]),
    /// The request gives none.
    Missing,
}

/// One input of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Input<'a> {
    /// The input's name.
    pub name: Cow<'a, str>,
    /// The datatype that the client declares.
    pub datatype: DType,
    /// The shape that the client declares, batch dimension included.
    pub shape: Shape,
    /// Such as `binary_data_size`.
    pub parameters: Parameters<'a>,
    /// Its elements.
    pub data: Data<'a>,
}

/// One requested output.
#[derive(Clone, Debug, PartialEq)]
pub struct Requested<'a> {
    /// The output's name.
    pub name: Cow<'a, str>,
    /// Such as `binary_data` and `classification`.
    pub parameters: Parameters<'a>,
}

/// An inference request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest<'a> {
    /// The client's name for the request; empty = none.
    pub id: Cow<'a, str>,
    /// Such as `timeout` and `priority`.
    pub parameters: Parameters<'a>,
    /// The inputs, in the order of the request.
    pub inputs: SmallVec<[Input<'a>; 2]>,
    /// The outputs to answer; empty = all of them.
    pub outputs: SmallVec<[Requested<'a>; 2]>,
}

impl InferRequest<'_> {
    /// Puts the request's id in front of an error about it; every refusal of a parsed request goes through here once.
    #[cold]
    pub fn tag(&self, error: Error) -> Error {
        tag(&self.id, error)
    }
}

/// Puts a request id, if there is one, in front of an error about that request.
#[cold]
pub fn tag(id: &str, error: Error) -> Error {
    if id.is_empty() {
        return error;
    }
    Error::new(error.code, format!("[request id: {id}] {}", error.message).into())
}

/// The value of the parameter `key`; of several the last.
pub fn parameter<'p, 'a>(parameters: &'p Parameters<'a>, key: &str) -> Option<&'p Parameter<'a>> {
    parameters.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// The value of a parameter that must be `true` or `false`.
pub fn flag(parameters: &Parameters<'_>, key: &str) -> Result<Option<bool>> {
    match parameter(parameters, key) {
        None => Ok(None),
        Some(Parameter::Bool(value)) => Ok(Some(*value)),
        Some(_) => refuse!("Unable to parse '{key}': expected a boolean"),
    }
}

/// The value of a parameter that must be an integer of at least 0.
pub fn unsigned(parameters: &Parameters<'_>, key: &str) -> Result<Option<u64>> {
    match parameter(parameters, key) {
        None => Ok(None),
        Some(Parameter::Int(value @ 0..)) => Ok(Some(*value as u64)),
        Some(Parameter::Uint(value)) => Ok(Some(*value)),
        Some(_) => refuse!("Unable to parse '{key}': expected an integer of at least 0"),
    }
}

/// Reads a request that is JSON from end to end.
pub fn parse_json(body: &[u8]) -> Result<InferRequest<'_>> {
    parse_parts(body, None)
}

/// Reads a JSON head of `head_len` bytes, followed by the blobs of the binary tensor extension.
pub fn parse_binary(body: &[u8], head_len: usize) -> Result<InferRequest<'_>> {
    match body.split_at_checked(head_len) {
        Some((head, blobs)) => parse_parts(head, Some(blobs)),
        None => refuse!("inference header size should be in range (0, {}), got: {head_len}", body.len()),
    }
}

fn parse_parts<'a>(head: &'a [u8], blobs: Option<&'a [u8]>) -> Result<InferRequest<'a>> {
    let (mut request, mut scan) = (InferRequest::default(), Scanner::new(head));
    let parsed = parse_head(&mut scan, &mut request).and_then(|()| scan.end());
    parsed.map_err(|error| Error::invalid(format!("failed to parse the request JSON buffer: {error}")))?;
    place_blobs(&mut request.inputs, blobs).map_err(|error| request.tag(error))?;
    Ok(request)
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
    let data = if datatype == DType::Bytes { Data::Element(body) } else { Data::Raw(body) };
    let input = Input { name: name.into(), datatype, shape, parameters: Parameters::new(), data };
    let parameters = smallvec![("binary_data_output".into(), Parameter::Bool(true))];
    Ok(InferRequest { parameters, inputs: smallvec![input], ..InferRequest::default() })
}

/// Clients may send as null what they could leave out.
fn parse_head<'a>(scan: &mut Scanner<'a>, request: &mut InferRequest<'a>) -> Result<()> {
    scan.object(|scan, key| {
        match &*key {
            _ if scan.null() => {}
            "id" => request.id = scan.string()?,
            "parameters" => request.parameters = parse_parameters(scan)?,
            "inputs" => {
                request.inputs.clear();
                scan.array(|scan| parse_input(scan).map(|input| request.inputs.push(input)))?;
            }
            "outputs" => {
                request.outputs.clear();
                scan.array(|scan| parse_output(scan).map(|output| request.outputs.push(output)))?;
            }
            _ => scan.skip()?,
        }
        Ok(())
    })
}

fn parse_input<'a>(scan: &mut Scanner<'a>) -> Result<Input<'a>> {
    let (mut name, mut datatype, mut shape) = (None, None, None);
    let (mut parameters, mut data) = (Parameters::new(), Data::Missing);
    scan.object(|scan, key| {
        match &*key {
            _ if scan.null() => {}
            "name" => name = Some(scan.string()?),
            "datatype" => {
                let text = scan.string()?;
                datatype = DType::parse(&text);
                datatype.ok_or_else(|| scan.fault(format_args!("unknown datatype '{text}'")))?;
            }
            "shape" => {
                let sizes = shape.insert(Shape::new());
                scan.array(|scan| scan.integer("INT64").map(|size| sizes.push(size)))?;
            }
            "parameters" => parameters = parse_parameters(scan)?,
            "data" => data = Data::Json(scan.span()?),
            _ => scan.skip()?,
        }
        Ok(())
    })?;
    let name = name.ok_or_else(|| scan.fault("an input without 'name'"))?;
    let datatype = datatype.ok_or_else(|| scan.fault(format_args!("input '{name}' without 'datatype'")))?;
    let shape = shape.ok_or_else(|| scan.fault(format_args!("input '{name}' without 'shape'")))?;
    Ok(Input { name, datatype, shape, parameters, data })
}

fn parse_output<'a>(scan: &mut Scanner<'a>) -> Result<Requested<'a>> {
    let (mut name, mut parameters) = (None, Parameters::new());
    scan.object(|scan, key| {
        match &*key {
            _ if scan.null() => {}
            "name" => name = Some(scan.string()?),
            "parameters" => parameters = parse_parameters(scan)?,
            _ => scan.skip()?,
        }
        Ok(())
    })?;
    let name = name.ok_or_else(|| scan.fault("an output without 'name'"))?;
    Ok(Requested { name, parameters })
}

fn parse_parameters<'a>(scan: &mut Scanner<'a>) -> Result<Parameters<'a>> {
    let mut parameters = Parameters::new();
    scan.object(|scan, key| {
        let value = match scan.peek() {
            _ if scan.null() => return Ok(()),
            Some(b'"') => Parameter::String(scan.string()?),
            Some(b't' | b'f') => Parameter::Bool(scan.boolean()?),
            Some(b'-' | b'0'..=b'9') => parse_number(std::str::from_utf8(scan.span()?).unwrap_or_default()),
            _ => return Err(scan.fault(format_args!("parameter '{key}' is no string, number or boolean"))),
        };
        parameters.push((key, value));
        Ok(())
    })?;
    Ok(parameters)
}

/// The narrowest parameter that holds a number, whose text has been checked.
fn parse_number(text: &str) -> Parameter<'static> {
    let integer = text.parse().map(Parameter::Int).or_else(|_| text.parse().map(Parameter::Uint));
    integer.unwrap_or_else(|_| Parameter::Double(text.parse().unwrap_or(f64::NAN)))
}

/// Hands the blobs behind the head to the inputs that declare a `binary_data_size`; `None` = there is no head length.
fn place_blobs<'a>(inputs: &mut [Input<'a>], blobs: Option<&'a [u8]>) -> Result<()> {
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
        input.data = Data::Raw(blob);
        rest = others;
    }
    if !rest.is_empty() {
        refuse!("unexpected additional input data: {} bytes behind the last tensor", rest.len());
    }
    Ok(())
}
