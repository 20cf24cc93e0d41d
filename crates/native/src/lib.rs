//! `lrai._native`: types across the seam between Python and Rust, and no logic.

mod gateway;
mod loadgen;
mod mailbox;
mod simulator;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pyo3::create_exception!(lrai._native, NativeError, PyException, "The data plane refused; one sentence.");

/// Any failure as a `NativeError`.
fn refuse(error: impl std::fmt::Display) -> PyErr {
    NativeError::new_err(error.to_string())
}

/// Reads Triton's config.pbtxt; returns JSON with the field names of the .proto file.
#[pyfunction]
fn parse_model_config(text: &str) -> PyResult<String> {
    lrai_dataplane::faces::config::parse_model_config(text).map_err(refuse)
}

#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add_function(wrap_pyfunction!(parse_model_config, module)?)?;
    loadgen::register(module)?;
    module.add_class::<gateway::Gateway>()?;
    module.add_class::<mailbox::Mailbox>()?;
    module.add_class::<simulator::Simulator>()?;
    module.add_class::<mailbox::Batch>()
}
