//! Typed contents of a gRPC request as raw elements: borrowed where their type has the width of the datatype.

use std::borrow::Cow;
use std::fmt::Display;

use bytemuck::{Pod, cast_slice};

use crate::error::{Result, refuse};
use crate::proto::InferTensorContents;
use crate::proto::model_infer_request::InferInputTensor;
use crate::tensor::{DType, push_text};

/// The elements of the one list that has any, which must be the datatype's own; none at all is a tensor without elements.
pub fn raw<'a>(
    input: &'a InferInputTensor,
    datatype: DType,
    contents: &'a InferTensorContents,
    model: &str,
) -> Result<Cow<'a, [u8]>> {
    let name = &input.name;
    let lens = [
        contents.bool_contents.len(),
        contents.int_contents.len(),
        contents.int64_contents.len(),
        contents.uint_contents.len(),
        contents.uint64_contents.len(),
        contents.fp32_contents.len(),
        contents.fp64_contents.len(),
        contents.bytes_contents.len(),
    ];
    let num_filled = lens.iter().filter(|len| **len > 0).count();
    if num_filled > 1 {
        refuse!("contents of more than one type for input '{name}' for model '{model}'");
    }
    let raw = match datatype {
        DType::Bool => cast_slice(&contents.bool_contents).into(),
        DType::Int8 => narrow::<_, i8>(&contents.int_contents, datatype, name)?,
        DType::Int16 => narrow::<_, i16>(&contents.int_contents, datatype, name)?,
        DType::Int32 => cast_slice(&contents.int_contents).into(),
        DType::Int64 => cast_slice(&contents.int64_contents).into(),
        DType::Uint8 => narrow::<_, u8>(&contents.uint_contents, datatype, name)?,
        DType::Uint16 => narrow::<_, u16>(&contents.uint_contents, datatype, name)?,
        DType::Uint32 => cast_slice(&contents.uint_contents).into(),
        DType::Uint64 => cast_slice(&contents.uint64_contents).into(),
        DType::Fp32 => cast_slice(&contents.fp32_contents).into(),
        DType::Fp64 => cast_slice(&contents.fp64_contents).into(),
        DType::Fp16 | DType::Bf16 => Cow::default(),
        DType::Bytes => {
            let mut texts = Vec::new();
            contents.bytes_contents.iter().for_each(|text| push_text(&mut texts, text));
            texts.into()
        }
    };
    if raw.is_empty() && num_filled > 0 {
        let tensor = format_args!("input tensor '{name}' for model '{model}'");
        refuse!("unexpected explicit tensor data for {tensor}, expected {}", datatype.name());
    }
    Ok(raw)
}

/// Numbers that are wider in the message than in the tensor.
fn narrow<T: Copy + TryInto<U> + Display, U: Pod>(
    values: &[T],
    datatype: DType,
    name: &str,
) -> Result<Cow<'static, [u8]>> {
    let mut raw = Vec::with_capacity(size_of_val(values));
    for value in values {
        let Ok(narrow) = (*value).try_into() else {
            refuse!("{value} is out of range for {} in input '{name}'", datatype.name());
        };
        raw.extend_from_slice(bytemuck::bytes_of::<U>(&narrow));
    }
    Ok(raw.into())
}
