//! The one validation path: a request of any face against a model's specification.

use smallvec::{SmallVec, smallvec};

use crate::error::{Error, Result, refuse};
use crate::request::{Data, InferRequest, Input, Parameters, Requested, Typed, flag, parameter, unsigned};
use crate::tensor::{DType, ModelSpec, Shape, TensorSpec};

type Sources = SmallVec<[Option<usize>; 4]>;

/// Where an input of the model gets its elements from, and how much room they need.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Index in `request.inputs`; `None` = an optional input that was left out.
    pub source: Option<usize>,
    /// The full shape, batch dimension included; empty if left out.
    pub shape: Shape,
    /// Bytes that `fill` writes: exact, except for `BYTES`, where it is an upper bound.
    pub max_bytes: usize,
}

/// One output to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedOutput {
    /// Index in `spec.outputs`.
    pub index: usize,
    /// Answer over HTTP as a binary blob rather than as JSON.
    pub binary: bool,
    /// Answer the best so many classes as text instead of the tensor; 0 = the tensor.
    pub classification: u32,
}

/// What remains of a request once its rows are in the slab.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// The client's name for the request; empty = none.
    pub id: String,
    /// What to answer, in the order of the answer.
    pub outputs: SmallVec<[WantedOutput; 2]>,
    /// 1 = highest, 0 = the model's default.
    pub priority: u64,
    /// Longest wait in the queue; 0 = the model's default.
    pub timeout_us: u64,
}

/// A request that may be queued.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The first dimension for a batched model, else 1.
    pub rows: u32,
    /// In the order of `spec.inputs`.
    pub placements: SmallVec<[Placement; 2]>,
    /// What to answer.
    pub wanted: Wanted,
}

/// Checks a request against a model. Its errors carry no request id: `Model::submit` puts that in front of every refusal.
pub fn check(spec: &ModelSpec, request: &InferRequest<'_>) -> Result<Checked> {
    let wanted = check_wanted(spec, request)?;
    let sources = check_names(spec, &request.inputs)?;
    let mut rows = None;
    let mut placements = SmallVec::with_capacity(spec.inputs.len());
    for (expected, source) in spec.inputs.iter().zip(sources) {
        let Some(input) = source.map(|index| &request.inputs[index]) else {
            placements.push(Placement { source, shape: Shape::new(), max_bytes: 0 });
            continue;
        };
        check_tensor(spec, expected, input)?;
        if spec.is_batched() {
            check_rows(spec, input, &mut rows)?;
        }
        let max_bytes = check_size(spec, input)?;
        placements.push(Placement { source, shape: input.shape.clone(), max_bytes });
    }
    // Rows are at most `max_batch_size`, which is an u32.
    Ok(Checked { rows: rows.unwrap_or(1) as u32, placements, wanted })
}

/// Elements of a tensor of that shape; `None` if a dimension is negative or the product is too large.
pub fn elements(shape: &[i64]) -> Option<usize> {
    if shape.contains(&0) && shape.iter().all(|size| *size >= 0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |product, size| product.checked_mul(usize::try_from(*size).ok()?))
}

/// The elements of raw `BYTES` data, each with its length in front; `None` if the last one is cut off.
pub fn count_texts(data: &[u8]) -> Option<usize> {
    let (mut rest, mut count) = (data, 0);
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        rest = tail.get(u32::from_le_bytes(*length) as usize..)?;
        count += 1;
    }
    rest.is_empty().then_some(count)
}

fn check_wanted(spec: &ModelSpec, request: &InferRequest<'_>) -> Result<Wanted> {
    let parameters = &request.parameters;
    let is_reserved = |key: &str| key.starts_with("triton_") && key != "triton_enable_empty_final_response";
    if parameters.iter().any(|(key, _)| is_reserved(key)) {
        let why = "are reserved for Triton usage and should not be specified.";
        refuse!("parameter keys starting with 'triton_' {why}");
    }
    // A model without state between requests ignores sequences, but not flags of a wrong type.
    flag(parameters, "sequence_start")?;
    flag(parameters, "sequence_end")?;
    let binary = flag(parameters, "binary_data_output")?.unwrap_or(false);
    let mut outputs: SmallVec<[WantedOutput; 2]> = SmallVec::new();
    for Requested { name, parameters } in &request.outputs {
        let Some(index) = spec.outputs.iter().position(|output| output.name == *name) else {
            refuse!("unexpected inference output '{name}' for model '{}'", spec.name);
        };
        if outputs.iter().any(|output| output.index == index) {
            refuse!("output '{name}' already exists in request");
        }
        refuse_shared_memory(parameters)?;
        let binary = flag(parameters, "binary_data")?.unwrap_or(binary);
        let classes = unsigned(parameters, "classification")?.unwrap_or(0);
        let classification = u32::try_from(classes).unwrap_or(u32::MAX);
        outputs.push(WantedOutput { index, binary, classification });
    }
    if outputs.is_empty() {
        let all = 0..spec.outputs.len();
        outputs.extend(all.map(|index| WantedOutput { index, binary, classification: 0 }));
    }
    let priority = unsigned(parameters, "priority")?.unwrap_or(0);
    let timeout_us = unsigned(parameters, "timeout")?.unwrap_or(0);
    Ok(Wanted { id: request.id.to_string(), outputs, priority, timeout_us })
}

fn refuse_shared_memory(parameters: &Parameters<'_>) -> Result<()> {
    if parameter(parameters, "shared_memory_region").is_some() {
        let cure = "Start the server with '--allow-client-shm=true' to enable.";
        refuse!("Client shared memory is disabled. {cure}");
    }
    Ok(())
}

/// For each input of the model, the index of the request's input of that name.
fn check_names(spec: &ModelSpec, inputs: &[Input<'_>]) -> Result<Sources> {
    let mut sources: Sources = smallvec![None; spec.inputs.len()];
    let mut unknown = None;
    for (index, Input { name, .. }) in inputs.iter().enumerate() {
        match spec.inputs.iter().position(|expected| expected.name == *name) {
            None => unknown = unknown.or(Some(name)),
            Some(place) if sources[place].is_some() => refuse!("input '{name}' already exists in request"),
            Some(place) => sources[place] = Some(index),
        }
    }
    let required = spec.inputs.iter().zip(&sources).filter(|(input, _)| !input.optional);
    let (least, most, model) = (required.clone().count(), spec.inputs.len(), &spec.name);
    let mut missing = required.filter(|(_, source)| source.is_none()).peekable();
    match unknown {
        Some(name) if (least..=most).contains(&inputs.len()) => {
            refuse!("unexpected inference input '{name}' for model '{model}'")
        }
        None if missing.peek().is_none() => Ok(sources),
        _ => {
            let range = format!("number of inputs between {least} and {most}");
            let number = if least == most { format!("{most} inputs") } else { range };
            let given = inputs.len();
            // The list stays short however many inputs the client sends.
            let got = list(inputs.iter().take(64).map(|input| format!("'{}'", input.name)));
            let missing = list(missing.map(|(input, _)| format!("'{}'", input.name)));
            refuse!(
                "expected {number} but got {given} inputs for model '{model}'. Got input(s) {got}, but missing \
                 required input(s) {missing}. Please provide all required input(s)."
            )
        }
    }
}

fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    format!("[{}]", items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(","))
}

/// Holds datatype and shape against the specification.
fn check_tensor(spec: &ModelSpec, expected: &TensorSpec, input: &Input<'_>) -> Result<()> {
    let (name, model, shape) = (&input.name, &spec.name, &input.shape);
    refuse_shared_memory(&input.parameters)?;
    if input.datatype != expected.datatype {
        let (got, wants) = (input.datatype.name(), expected.datatype.name());
        refuse!("inference input '{name}' data-type is '{got}', but model '{model}' expects '{wants}'");
    }
    if shape.iter().any(|size| *size < 0) {
        let got = list(shape);
        refuse!("All input dimensions should be specified for input '{name}' for model '{model}', got {got}");
    }
    let mut pairs = expected.shape.iter().zip(shape);
    if shape.len() != expected.shape.len() || pairs.any(|(wants, got)| *wants >= 0 && wants != got) {
        let (wants, got) = (list(&expected.shape), list(shape));
        let lacks_batch = spec.is_batched() && shape.len() + 1 == expected.shape.len();
        let hint = if lacks_batch { ". hint: the first dimension is the batch" } else { "" };
        refuse!("unexpected shape for input '{name}' for model '{model}'. Expected {wants}, got {got}{hint}");
    }
    Ok(())
}

/// Holds the rows of an input against those of the inputs before it and against the limit.
fn check_rows(spec: &ModelSpec, input: &Input<'_>, rows: &mut Option<i64>) -> Result<()> {
    let (name, model, most) = (&input.name, &spec.name, spec.max_batch_size);
    let got = input.shape.first().copied();
    if got > Some(i64::from(most)) {
        refuse!("inference request batch-size must be <= {most} for '{model}'");
    }
    if rows.is_some() && *rows != got {
        refuse!("input '{name}' batch size does not match other inputs for '{model}'");
    }
    *rows = got;
    Ok(())
}

/// Holds the size of the data against the shape, and returns the room that the input needs.
fn check_size(spec: &ModelSpec, input: &Input<'_>) -> Result<usize> {
    let (name, model, size) = (&input.name, &spec.name, input.datatype.size());
    let count = elements(&input.shape).filter(|count| *count <= i64::MAX as usize / size.max(1));
    let Some(count) = count else {
        let why = format!("causes total size to exceed maximum size of {}", i64::MAX);
        refuse!("invalid shape for input '{name}': shape {} {why}", list(&input.shape));
    };
    let is_text = input.datatype == DType::Bytes;
    let got = match input.data {
        // Every element takes a byte of the text: a huge shape is refused before memory is reserved for it.
        Data::Json(text) if count > text.len() => return Err(too_few(input, count)),
        // Four bytes of length take the place of two quotes, if not of a comma as well.
        Data::Json(text) if is_text => return Ok(text.len() + 2 * count),
        Data::Json(_) => return Ok(count * size),
        Data::Element(data) => return Ok(4 + data.len()),
        Data::Raw(data) if is_text => {
            check_count(spec, input, count, count_texts(data))?;
            return Ok(data.len());
        }
        Data::Typed(Typed::Bytes(texts)) if is_text => {
            check_count(spec, input, count, Some(texts.len()))?;
            return Ok(texts.iter().map(|text| 4 + text.len()).sum());
        }
        Data::Typed(typed) => size * check_typed(spec, input, typed)?,
        Data::Raw(data) => data.len(),
        Data::Missing if count == 0 => 0,
        Data::Missing => {
            refuse!("input '{name}' for model '{model}' has no data. hint: set 'data' or 'binary_data_size'")
        }
    };
    if got != count * size {
        let sizes = format!("Expected {}, got {got}", count * size);
        refuse!("input byte size mismatch for input '{name}' for model '{model}'. {sizes}");
    }
    Ok(got)
}

/// Holds the number of texts against the shape; `got` is `None` if the last text is cut off.
fn check_count(spec: &ModelSpec, input: &Input<'_>, wants: usize, got: Option<usize>) -> Result<()> {
    let tensor = format_args!("for inference input '{}' for model '{}'", input.name, spec.name);
    match got {
        None => refuse!("incomplete string data {tensor}: a length points behind the end"),
        Some(got) if got < wants => refuse!("expected {wants} string elements {tensor}, got {got}"),
        Some(got) if got > wants => {
            refuse!("unexpected number of string elements {got} {tensor}, expecting {wants}")
        }
        Some(_) => Ok(()),
    }
}

/// Holds the kind of typed contents against the datatype, and returns the number of elements.
fn check_typed(spec: &ModelSpec, input: &Input<'_>, typed: Typed<'_>) -> Result<usize> {
    use DType::{Bool, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    match (typed, input.datatype) {
        (Typed::Bool(values), Bool) => Ok(values.len()),
        (Typed::Int(values), Int8 | Int16 | Int32) => Ok(values.len()),
        (Typed::Int64(values), Int64) => Ok(values.len()),
        (Typed::Uint(values), Uint8 | Uint16 | Uint32) => Ok(values.len()),
        (Typed::Uint64(values), Uint64) => Ok(values.len()),
        (Typed::Fp32(values), Fp32) => Ok(values.len()),
        (Typed::Fp64(values), Fp64) => Ok(values.len()),
        (_, wants) => {
            let tensor = format!("input tensor '{}' for model '{}'", input.name, spec.name);
            refuse!("unexpected explicit tensor data for {tensor}, expected {}", wants.name())
        }
    }
}

/// The error for JSON data with fewer elements than the shape has.
#[cold]
pub fn too_few(input: &Input<'_>, count: usize) -> Error {
    let (name, shape) = (&input.name, list(&input.shape));
    let tensor = format_args!("input '{name}' of shape {shape} takes {count} elements");
    Error::invalid(format!("Failed to parse 'data' field: shape does not match true shape: {tensor}"))
}
