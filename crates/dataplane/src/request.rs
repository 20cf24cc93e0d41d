//! What an inference request says, whatever face it came through; everything borrows from the body.

use std::borrow::Cow;
use std::time::Instant;

use serde_json::Value;
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::faces::binary::place_blobs;
use crate::json::Scanner;
use crate::tensor::{DType, Shape};

/// Parameters in the order of the request, each a string, a number or a boolean; of equal keys the last counts.
pub type Parameters<'a> = SmallVec<[(Cow<'a, str>, Value); 2]>;

/// Where the elements of an input are.
#[derive(Clone, Debug, PartialEq)]
pub enum Data<'a> {
    /// The text of the JSON value of `data`, not decoded yet.
    Json(&'a [u8]),
    /// Little-endian elements, row-major, as the binary tensor extension and gRPC carry them.
    Raw(Cow<'a, [u8]>),
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

/// What the headers of a request tell about who sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// Digest of the tenant's name; 0 = there are no tenants.
    pub tenant: u64,
    /// When the client leaves.
    pub deadline: Option<Instant>,
}

/// An inference request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest<'a> {
    /// The client's name for the request; empty = none.
    pub id: Cow<'a, str>,
    /// Who sends it.
    pub sender: Sender,
    /// Such as `timeout` and `priority`.
    pub parameters: Parameters<'a>,
    /// The inputs, in the order of the request.
    pub inputs: SmallVec<[Input<'a>; 2]>,
    /// The outputs to answer; empty = all of them.
    pub outputs: SmallVec<[Requested<'a>; 2]>,
}

/// Puts a request id, if there is one, in front of an error about that request; every refusal goes through here once.
#[cold]
pub fn tag(id: &str, error: Error) -> Error {
    if id.is_empty() {
        return error;
    }
    let message = format!("[request id: {id}] {}", error.message).into();
    Error { retry_after_s: error.retry_after_s, ..Error::new(error.code, message) }
}

/// Reads a request that is JSON from end to end.
pub fn parse_json(body: &[u8]) -> Result<InferRequest<'_>> {
    place_blobs(parse_head(body)?, None)
}

/// Reads the JSON of a request, which says where the binary extension may have put its tensors.
pub(crate) fn parse_head(text: &[u8]) -> Result<InferRequest<'_>> {
    let (mut request, mut scan) = (InferRequest::default(), Scanner::new(text));
    let parsed = scan.object(|scan, key| {
        match &*key {
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
    });
    let named = |error| Error::invalid(format!("failed to parse the request JSON buffer: {error}"));
    parsed.and_then(|()| scan.end()).map_err(named).map(|()| request)
}

fn parse_input<'a>(scan: &mut Scanner<'a>) -> Result<Input<'a>> {
    let (mut name, mut datatype, mut shape) = (None, None, None);
    let (mut parameters, mut data) = (Parameters::new(), Data::Missing);
    scan.object(|scan, key| {
        match &*key {
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
        if !matches!(scan.peek(), Some(b'"' | b't' | b'f' | b'-' | b'0'..=b'9')) {
            return Err(scan.fault(format_args!("parameter '{key}' is no string, number or boolean")));
        }
        let value = serde_json::from_slice(scan.span()?).map_err(|error| scan.fault(error))?;
        parameters.push((key, value));
        Ok(())
    })?;
    Ok(parameters)
}
