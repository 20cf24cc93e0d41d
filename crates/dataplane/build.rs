//! Compiles the protocol buffers without `protoc`, and keeps their descriptors for reflection and for `config.pbtxt`.

use std::error::Error;
use std::{env, fs, path::Path};

use prost::Message;

/// What HTTP answers as JSON, with the field names of the `.proto` file.
const AS_JSON: [&str; 10] = [
    "ServerMetadataResponse",
    "ModelMetadataResponse",
    "ModelMetadataResponse.TensorMetadata",
    "ModelStatisticsResponse",
    "ModelStatistics",
    "InferStatistics",
    "InferBatchStatistics",
    "InferResponseStatistics",
    "StatisticDuration",
    "MemoryUsage",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(false).include_imports(true);
    let files = compiler.open_files(["inference.proto"])?.file_descriptor_set();
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("inference.bin"), files.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    for message in AS_JSON {
        config.type_attribute(message, "#[derive(serde::Serialize)]");
    }
    config
        // Tensor contents are slices of the message that came in, never copies.
        .bytes([".inference"])
        // An empty map costs nothing, and most are empty.
        .btree_map([".inference"])
        .compile_fds(files)?;
    Ok(())
}
