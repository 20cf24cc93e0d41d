//! Datatypes, tensor and model specifications: the words that every other module shares.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

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
    /// Every datatype with its name on the wire.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::Bool, "BOOL"),
        (Self::Uint8, "UINT8"),
        (Self::Uint16, "UINT16"),
        (Self::Uint32, "UINT32"),
        (Self::Uint64, "UINT64"),
        (Self::Int8, "INT8"),
        (Self::Int16, "INT16"),
        (Self::Int32, "INT32"),
        (Self::Int64, "INT64"),
        (Self::Fp16, "FP16"),
        (Self::Bf16, "BF16"),
        (Self::Fp32, "FP32"),
        (Self::Fp64, "FP64"),
        (Self::Bytes, "BYTES"),
    ];

    /// Bytes per element; 0 for `BYTES`, whose elements carry their own length.
    pub const fn size(self) -> usize {
        match self {
            Self::Bytes => 0,
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
        }
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The datatype of that wire name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, text)| *text == name).map(|(dtype, _)| *dtype)
    }
}

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// The tensor's name in the model.
    pub name: String,
    /// Its datatype.
    pub datatype: DType,
    /// Its full shape as in the model's metadata, batch dimension included (`-1`), if there is one.
    pub shape: Vec<i64>,
    /// An input that a request may leave out.
    #[serde(default)]
    pub optional: bool,
    /// Class labels of an output, for the classification extension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// Everything that the data plane knows about a model version; made by the control plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The model's name in URLs.
    pub name: String,
    /// The version, decimal digits.
    pub version: String,
    /// For example `onnxruntime_onnx`.
    pub platform: String,
    /// For example `onnxruntime`.
    pub backend: String,
    /// Most rows in a batch; 0 = the tensors have no batch dimension, every request runs alone.
    pub max_batch_size: u32,
    /// Inputs in the model's order.
    pub inputs: Vec<TensorSpec>,
    /// Outputs in the model's order; a replica answers all of them, in this order.
    pub outputs: Vec<TensorSpec>,
    /// Triton's `ModelConfig` as JSON text, for `/config`.
    #[serde(default)]
    pub config: String,
    /// Whether a batch lost with its replica is run again.
    #[serde(default = "yes")]
    pub retry: bool,
    /// Most requests that wait or run.
    #[serde(default = "default_queue_requests")]
    pub max_queue_requests: u32,
    /// Most input bytes that wait or run.
    #[serde(default = "default_queue_bytes")]
    pub max_queue_bytes: u64,
    /// Bytes that one replica may use for the outputs of one batch.
    #[serde(default = "default_output_bytes")]
    pub max_output_bytes: u64,
}

const fn yes() -> bool {
    true
}
const fn default_queue_requests() -> u32 {
    1024
}
const fn default_queue_bytes() -> u64 {
    1 << 28
}
const fn default_output_bytes() -> u64 {
    1 << 28
}

impl ModelSpec {
    /// Whether requests of this model can share a batch.
    pub const fn is_batched(&self) -> bool {
        self.max_batch_size > 0
    }
}
