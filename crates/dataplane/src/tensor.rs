//! Datatypes, tensor and model specifications: the words that every other module shares.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::faces::guard::GuardBox;
use crate::ragged::Ragged;

/// A tensor's dimensions; `-1` in a specification means "any".
pub type Shape = SmallVec<[i64; 6]>;

/// A datatype of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub enum DType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl DType {
    /// Every datatype with its name on the wire and the bytes of an element.
    pub const ALL: [(Self, &'static str, usize); 14] = [
        (Self::Bool, "BOOL", 1),
        (Self::Uint8, "UINT8", 1),
        (Self::Uint16, "UINT16", 2),
        (Self::Uint32, "UINT32", 4),
        (Self::Uint64, "UINT64", 8),
        (Self::Int8, "INT8", 1),
        (Self::Int16, "INT16", 2),
        (Self::Int32, "INT32", 4),
        (Self::Int64, "INT64", 8),
        (Self::Fp16, "FP16", 2),
        (Self::Bf16, "BF16", 2),
        (Self::Fp32, "FP32", 4),
        (Self::Fp64, "FP64", 8),
        (Self::Bytes, "BYTES", 0),
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Bytes per element; 0 for `BYTES`, whose elements carry their own length.
    pub const fn size(self) -> usize {
        Self::ALL[self as usize].2
    }

    /// The datatype of that wire name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, text, _)| *text == name).map(|(datatype, ..)| *datatype)
    }

    /// What lies behind the first `count` elements of `data`; `None` if it has fewer.
    pub fn behind(self, data: &[u8], count: usize) -> Option<&[u8]> {
        match self {
            Self::Bytes => (0..count).try_fold(data, |rest, _| Some(split_text(rest)?.1)),
            _ => data.get(count.checked_mul(self.size())?..),
        }
    }
}

/// The first element of raw `BYTES` data, which has its length in front, and the rest; `None` if it is cut off.
#[inline]
pub fn split_text(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// Appends an element of raw `BYTES` data.
pub fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

/// Elements of a tensor of that shape; `None` if a dimension is negative or the product is too large.
pub fn elements(shape: &[i64]) -> Option<usize> {
    if shape.contains(&0) && shape.iter().all(|size| *size >= 0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |product, size| product.checked_mul(usize::try_from(*size).ok()?))
}

/// Runs `$body` with `$T` as the Rust type of a datatype's elements: the one for integers or the one for floats.
macro_rules! with_number {
    ($datatype:expr, $I:ident => $integer:expr, $F:ident => $float:expr, $other:pat => $otherwise:expr $(,)?) => {
        with_number!(@arms $datatype, $other => $otherwise; $I $integer; $F $float;
            Uint8 u8, Uint16 u16, Uint32 u32, Uint64 u64, Int8 i8, Int16 i16, Int32 i32, Int64 i64;
            Fp32 f32, Fp64 f64)
    };
    (@arms $datatype:expr, $other:pat => $otherwise:expr; $I:ident $integer:expr; $F:ident $float:expr;
        $($integers:ident $int:ty),*; $($floats:ident $real:ty),*) => {
        match $datatype {
            $($crate::tensor::DType::$integers => { type $I = $int; $integer })*
            $($crate::tensor::DType::$floats => { type $F = $real; $float })*
            $other => $otherwise,
        }
    };
}
pub(crate) use with_number;

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TensorSpec {
    /// The tensor's name in the model.
    pub name: String,
    /// Its datatype.
    pub datatype: DType,
    /// Its full shape as in the model's metadata, batch dimension included (`-1`), if there is one.
    pub shape: Vec<i64>,
    /// An input that a request may leave out.
    pub optional: bool,
    /// Class labels of an output, for the classification extension.
    pub labels: Vec<String>,
}

/// Everything that the data plane knows about a model version; made by the control plane.
#[derive(Clone, Debug, Deserialize)]
pub struct ModelSpec {
    /// The model's name in URLs.
    pub name: String,
    /// The version, decimal digits.
    pub version: String,
    /// For example `onnxruntime_onnx`.
    pub platform: String,
    /// Most rows in a batch; 0 = the tensors have no batch dimension, every request runs alone.
    pub max_batch_size: u32,
    /// Inputs in the model's order.
    pub inputs: Vec<TensorSpec>,
    /// Outputs in the model's order; a replica answers all of them, in this order.
    pub outputs: Vec<TensorSpec>,
    /// Triton's `ModelConfig` as JSON text, for `/config`.
    pub config: String,
    /// Whether a batch lost with its replica is run again.
    pub retry: bool,
    /// Most requests that wait or run.
    pub max_queue_requests: u32,
    /// Most input bytes that wait or run.
    pub max_queue_bytes: u64,
    /// Bytes that one replica may use for the outputs of one batch.
    pub max_output_bytes: u64,
    /// Lowest priority class that a request may ask for, 1 being the highest; 0 = any.
    pub priority_levels: u32,
    /// Priority class of requests that ask for none; 0 = after all others.
    pub default_priority: u32,
    /// Where a proof about the model holds; empty = nothing is marked.
    pub guard: Vec<GuardBox>,
    /// How requests of different lengths share a batch; `None` = they do not.
    pub ragged: Option<Ragged>,
}

impl ModelSpec {
    /// Whether requests of this model can share a batch.
    pub const fn is_batched(&self) -> bool {
        self.max_batch_size > 0
    }
}
