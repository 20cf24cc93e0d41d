//! Compiles the protocol buffers without `protoc`, and keeps their descriptors for reflection and for `config.pbtxt`.

use std::error::Error;
use std::{env, fs, path::Path};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(false).include_imports(true);
    let files = compiler.open_files(["inference.proto"])?.file_descriptor_set();
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("inference.bin"), files.encode_to_vec())?;
    prost_build::Config::new()
        // Tensor contents are slices of the message that came in, never copies.
        .bytes([".inference"])
        // An empty map costs nothing, and most are empty.
        .btree_map([".inference"])
        .compile_fds(files)?;
    Ok(())
}
