//! The one validation path: a request of any face against a model's specification.

use std::cmp::Ordering;

use smallvec::{SmallVec, smallvec};

use crate::error::{Error, Result, refuse};
use crate::faces::parameters;
use crate::ragged::Bucket;
use crate::request::{Data, InferRequest, Input, Requested, Sender};
use crate::tensor::{DType, ModelSpec, Shape, TensorSpec, elements, split_text};

/// A list with one element for each input of the model, in the order of its specification.
pub type PerInput<T> = SmallVec<[T; 2]>;

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
    /// Who sends it.
    pub sender: Sender,
    /// What to answer, in the order of the answer.
    pub outputs: SmallVec<[WantedOutput; 2]>,
    /// 1 = highest, 0 = the model's default.
    pub priority: u64,
    /// Longest wait in the queue; 0 = the model's default.
    pub timeout_us: u64,
    /// Whether a proof about the model covers the inputs; `None` = the model has none.
    pub covered: Option<bool>,
}

/// A request that may be queued.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checked {
    /// The first dimension for a batched model, else 1.
    pub rows: u32,
    /// Indices in `request.inputs`; `None` = an optional input that was left out.
    pub sources: PerInput<Option<usize>>,
    /// Full shapes, but 0 for the batch dimension: what all requests of a batch have in common.
    pub shapes: PerInput<Option<Shape>>,
    /// Bytes that `fill` writes: exact, except for `BYTES`, where it is an upper bound.
    pub max_bytes: PerInput<usize>,
    /// To what length the request is padded; set when it is queued.
    pub bucket: Option<Bucket>,
    /// What to answer.
    pub wanted: Wanted,
}

/// Checks a request against a model. Its errors carry no request id: `Model::submit` puts that in front of every refusal.
pub fn check(spec: &ModelSpec, request: &InferRequest<'_>) -> Result<Checked> {
    let wanted = check_wanted(spec, request)?;
    let sources = check_names(spec, &request.inputs)?;
    let mut checked = Checked { rows: 1, sources, wanted, ..Checked::default() };
    let mut rows = None;
    for (expected, source) in spec.inputs.iter().zip(&checked.sources) {
        let Some(input) = source.map(|index| &request.inputs[index]) else {
            checked.shapes.push(None);
            checked.max_bytes.push(0);
            continue;
        };
        check_tensor(spec, expected, input)?;
        let mut shape = input.shape.clone();
        if spec.is_batched() {
            check_rows(spec, input, &mut rows)?;
            shape[..1].fill(0);
        }
        checked.max_bytes.push(check_size(spec, input)?);
        checked.shapes.push(Some(shape));
    }
    // Rows are at most `max_batch_size`, which is an u32.
    checked.rows = rows.unwrap_or(1) as u32;
    Ok(checked)
}

fn check_wanted(spec: &ModelSpec, request: &InferRequest<'_>) -> Result<Wanted> {
    let mut wanted = Wanted { id: request.id.to_string(), sender: request.sender, ..Wanted::default() };
    let binary = !request.parameters.is_empty() && parameters::of_request(&request.parameters, &mut wanted)?;
    for Requested { name, parameters } in &request.outputs {
        let Some(index) = spec.outputs.iter().position(|output| output.name == *name) else {
            refuse!("unexpected inference output '{name}' for model '{}'", spec.name);
        };
        if wanted.outputs.iter().any(|output| output.index == index) {
            refuse!("output '{name}' already exists in request");
        }
        let mut output = WantedOutput { index, binary, classification: 0 };
        parameters::of_output(parameters, &mut output)?;
        wanted.outputs.push(output);
    }
    if wanted.outputs.is_empty() {
        let all = 0..spec.outputs.len();
        wanted.outputs.extend(all.map(|index| WantedOutput { index, binary, classification: 0 }));
    }
    Ok(wanted)
}

/// For each input of the model, the index of the request's input of that name.
fn check_names(spec: &ModelSpec, inputs: &[Input<'_>]) -> Result<PerInput<Option<usize>>> {
    let mut sources: PerInput<Option<usize>> = smallvec![None; spec.inputs.len()];
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
    parameters::refuse_shared_memory(&input.parameters)?;
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
    let got = match &input.data {
        // Every element takes a byte of the text: a huge shape is refused before memory is reserved for it.
        Data::Json(text) if count > text.len() => return Err(too_few(input)),
        // Four bytes of length take the place of two quotes, if not of a comma as well.
        Data::Json(text) if is_text => return Ok(text.len() + 2 * count),
        Data::Json(_) => return Ok(count * size),
        Data::Raw(data) if is_text => {
            check_texts(spec, input, count, data)?;
            return Ok(data.len());
        }
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

/// Holds the number of texts against the shape.
fn check_texts(spec: &ModelSpec, input: &Input<'_>, wants: usize, data: &[u8]) -> Result<()> {
    let tensor = format_args!("for inference input '{}' for model '{}'", input.name, spec.name);
    let (mut rest, mut got) = (data, 0);
    while !rest.is_empty() {
        let Some((_, behind)) = split_text(rest) else {
            refuse!("incomplete string data {tensor}: a length points behind the end");
        };
        (rest, got) = (behind, got + 1);
    }
    match got.cmp(&wants) {
        Ordering::Less => refuse!("expected {wants} string elements {tensor}, got {got}"),
        Ordering::Equal => Ok(()),
        Ordering::Greater => {
            refuse!("unexpected number of string elements {got} {tensor}, expecting {wants}")
        }
    }
}

/// The error for JSON data with fewer elements than the shape has.
#[cold]
pub fn too_few(Input { name, shape, .. }: &Input<'_>) -> Error {
    let tensor =
        format!("input '{name}' of shape {} takes {} elements", list(shape), elements(shape).unwrap_or(0));
    Error::invalid(format!("Failed to parse 'data' field: shape does not match true shape: {tensor}"))
}
