//! The simulator: arrivals in as packed integers, counters out as the gateway's.

use lrai_dataplane::knobs::Knobs;
use lrai_simulator::{Arrival, Simulator as Inner};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::refuse;

/// Python representation of a simulated model.
#[pyclass(module = "lrai._native", frozen)]
pub struct Simulator {
    inner: Mutex<Inner>,
}

#[pymethods]
impl Simulator {
    #[new]
    fn new(config: &str, times_ns: &[u8], rows: &[u8], lengths: &[u8]) -> PyResult<Self> {
        let (times, rows, lengths) = (times_ns.as_chunks().0, rows.as_chunks().0, lengths.as_chunks().0);
        if times.len() != rows.len() || times.len() != lengths.len() {
            return Err(refuse("times, rows and lengths are not equally many"));
        }
        let arrivals = times.iter().zip(rows).zip(lengths).map(|((at, rows), length)| Arrival {
            at_ns: u64::from_le_bytes(*at),
            rows: u32::from_le_bytes(*rows),
            length: u32::from_le_bytes(*length),
        });
        let config = serde_json::from_str(config).map_err(refuse)?;
        Ok(Self { inner: Mutex::new(Inner::new(config, arrivals.collect()).map_err(refuse)?) })
    }

    fn set_knobs(&self, knobs: &str) -> PyResult<()> {
        self.inner.lock().set_knobs(Knobs::parse(knobs).map_err(refuse)?);
        Ok(())
    }

    fn advance(&self, py: Python<'_>, seconds: f64) {
        py.detach(|| self.inner.lock().advance(seconds));
    }

    fn drain(&self, py: Python<'_>) {
        py.detach(|| self.inner.lock().drain());
    }

    fn observe(&self) -> PyResult<String> {
        serde_json::to_string(&self.inner.lock().observe()).map_err(refuse)
    }

    fn outcome(&self, py: Python<'_>) -> PyResult<String> {
        let outcome = py.detach(|| self.inner.lock().outcome());
        serde_json::to_string(&outcome).map_err(refuse)
    }
}
