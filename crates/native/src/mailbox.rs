//! The actor's side: batches in, places of outputs back.

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use lrai_dataplane::link::Mailbox as Inner;
use lrai_dataplane::tensor::Shape;
use lrai_dataplane::wire::{Place, Run};
use memmap2::MmapRaw;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyTuple};

use crate::refuse;

/// Python representation of a replica's mailbox.
#[pyclass(module = "lrai._native", frozen)]
pub struct Mailbox {
    inner: Arc<Inner>,
}

/// A slab as a buffer.
#[pyclass(module = "lrai._native", frozen)]
struct Slab {
    inner: Arc<Inner>,
    writable: bool,
}

/// Python representation of one batch.
#[pyclass(module = "lrai._native", frozen)]
pub struct Batch {
    run: Run,
}

impl Slab {
    fn mapping(&self) -> &MmapRaw {
        if self.writable { &self.inner.output } else { &self.inner.input }
    }
}

#[pymethods]
impl Slab {
    /// # Safety
    /// Called by the interpreter with a view to fill.
    #[expect(clippy::needless_pass_by_value, reason = "the slot's signature is given")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let slab = slf.get();
        let (address, len) = (slab.mapping().as_mut_ptr(), slab.mapping().len());
        let readonly = c_int::from(!slab.writable);
        // SAFETY: the mapping lives as long as the object that the view keeps alive.
        let outcome = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                address.cast(),
                len as ffi::Py_ssize_t,
                readonly,
                flags,
            )
        };
        if outcome == 0 {
            Ok(())
        } else {
            Err(PyErr::take(slf.py()).unwrap_or_else(|| PyBufferError::new_err("no buffer")))
        }
    }
}

#[pymethods]
impl Mailbox {
    #[new]
    fn new(py: Python<'_>, link_fd: RawFd) -> PyResult<Self> {
        // SAFETY: the caller gives the descriptor away, as the stub says.
        let link = unsafe { OwnedFd::from_raw_fd(link_fd) };
        let opened = py.detach(|| Inner::open(link)).map_err(refuse)?;
        let inner = opened.ok_or_else(|| refuse("the gateway closed the link"))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    #[getter]
    fn input<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(Bound::new(py, Slab { inner: Arc::clone(&self.inner), writable: false })?.as_any())
    }

    #[getter]
    fn output<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(Bound::new(py, Slab { inner: Arc::clone(&self.inner), writable: true })?.as_any())
    }

    #[getter]
    fn output_slot_bytes(&self) -> u64 {
        self.inner.output_slot_bytes
    }

    fn ready(&self) -> PyResult<()> {
        self.inner.ready().map_err(refuse)
    }

    fn receive(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        py.detach(|| self.inner.receive()).map(|run| run.map(|run| Batch { run })).map_err(refuse)
    }

    fn done(&self, batch_id: u64, compute_ns: u64, outputs: Vec<(u64, u64, Vec<i64>)>) -> PyResult<()> {
        let place = |(offset, byte_len, dims)| Place { offset, byte_len, shape: Shape::from_vec(dims) };
        self.inner.done(batch_id, compute_ns, outputs.into_iter().map(place)).map_err(refuse)
    }

    fn failed(&self, batch_id: u64, code: u8, message: &str) -> PyResult<()> {
        self.inner.failed(batch_id, code, message).map_err(refuse)
    }
}

#[pymethods]
impl Batch {
    #[getter]
    fn id(&self) -> u64 {
        self.run.batch
    }

    #[getter]
    fn rows(&self) -> u32 {
        self.run.rows
    }

    #[getter]
    fn output_slot(&self) -> u32 {
        self.run.output_slot
    }

    #[getter]
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let place = |place: &Place| {
            let dims = PyTuple::new(py, place.shape.iter())?;
            Ok((place.offset, place.byte_len, dims))
        };
        let inputs = self.run.inputs.iter().map(|input| input.as_ref().map(place).transpose());
        PyTuple::new(py, inputs.collect::<PyResult<Vec<_>>>()?)
    }
}
