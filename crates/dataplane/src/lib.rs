//! The data plane of lrai: bytes in, batches out, bytes back. It knows no Python and chooses no policy.
#![warn(missing_docs)]

// words
pub mod config;
pub mod error;
pub mod stats;
pub mod tensor;

// what a request says and how its answer is written
pub mod check;
pub mod encode;
pub mod fill;
pub mod json;
pub mod request;
pub mod typed;

// from a request's rows to a replica and back
pub mod answer;
pub mod batch;
pub mod events;
pub mod knobs;
pub mod line;
pub mod link;
pub mod queue;
pub mod ragged;
pub mod recovery;
pub mod slab;
pub mod tenants;
pub mod wire;

pub mod dataplane;
pub mod models;

// what all faces stand on
pub mod inference;
pub mod memory;
pub mod pool;
pub mod proto;
pub mod reply;
pub mod status;

// the faces: bytes from and to clients
pub mod body;
pub mod connection;
pub mod faces;
pub mod framing;
pub mod gateway;
pub mod grpc;
pub mod http;
pub mod lane;
pub mod listen;
pub mod protobuf;
