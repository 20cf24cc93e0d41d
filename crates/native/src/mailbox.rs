//! The actor's side: batches in, places of outputs back.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use lrai_dataplane::link::Mailbox as Inner;
use lrai_dataplane::tensor::Shape;
use lrai_dataplane::wire::Place;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::refuse;

/// Python representation of a replica's mailbox.
#[pyclass(module = "lrai._native", frozen)]
pub struct Mailbox {
    inner: Inner,
}

/// Python representation of one batch.
#[pyclass(module = "lrai._native", frozen, get_all)]
pub struct Batch {
    id: u64,
    rows: u32,
    output_slot: u32,
    inputs: Py<PyTuple>,
}

#[pymethods]
impl Mailbox {
    #[new]
    fn new(py: Python<'_>, link_fd: RawFd) -> PyResult<Self> {
        // SAFETY: the caller gives the descriptor away, as the stub says.
        let link = unsafe { OwnedFd::from_raw_fd(link_fd) };
        let opened = py.detach(|| Inner::open(link)).map_err(refuse)?;
        Ok(Self { inner: opened.ok_or_else(|| refuse("the gateway closed the link"))? })
    }

    #[getter]
    fn slab_fds(&self) -> (RawFd, RawFd) {
        (self.inner.input.as_raw_fd(), self.inner.output.as_raw_fd())
    }

    #[getter]
    fn output_slot_bytes(&self) -> u64 {
        self.inner.output_slot_bytes
    }

    fn ready(&self) -> PyResult<()> {
        self.inner.ready().map_err(refuse)
    }

    fn receive(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        let Some(run) = py.detach(|| self.inner.receive()).map_err(refuse)? else { return Ok(None) };
        let place = |Place { offset, byte_len, shape }| Ok((offset, byte_len, PyTuple::new(py, shape)?));
        let inputs = run.inputs.into_iter().map(|input| input.map(place).transpose());
        let inputs = PyTuple::new(py, inputs.collect::<PyResult<Vec<_>>>()?)?.unbind();
        Ok(Some(Batch { id: run.batch, rows: run.rows, output_slot: run.output_slot, inputs }))
    }

    fn done(&self, batch_id: u64, compute_ns: u64, outputs: Vec<(u64, u64, Vec<i64>)>) -> PyResult<()> {
        let place = |(offset, byte_len, dims)| Place { offset, byte_len, shape: Shape::from_vec(dims) };
        self.inner.done(batch_id, compute_ns, outputs.into_iter().map(place)).map_err(refuse)
    }

    fn failed(&self, batch_id: u64, code: u8, message: &str) -> PyResult<()> {
        self.inner.failed(batch_id, code, message).map_err(refuse)
    }
}
