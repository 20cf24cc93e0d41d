//! The serving side: what crosses here is cold, and JSON text.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lrai_dataplane::config::Config;
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::faces::repository;
use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::listen::{self, Running};
use pyo3::prelude::*;

use crate::refuse;

/// Python representation of the data plane.
#[pyclass(module = "lrai._native", frozen)]
pub struct Gateway {
    dataplane: Arc<Dataplane>,
    running: std::sync::Mutex<Option<Running>>,
}

impl Gateway {
    fn with_running<T>(&self, act: impl FnOnce(&mut Running) -> T) -> PyResult<T> {
        let mut running = self.running.lock().map_err(refuse)?;
        running.as_mut().map(act).ok_or_else(|| refuse("the data plane is not running"))
    }
}

#[pymethods]
impl Gateway {
    #[new]
    fn new(config: &str) -> PyResult<Self> {
        let dataplane = Dataplane::new(Config::parse(config).map_err(refuse)?).map_err(refuse)?;
        Ok(Self { dataplane, running: std::sync::Mutex::new(None) })
    }

    fn start(&self, py: Python<'_>) -> PyResult<String> {
        let running = py.detach(|| listen::serve(&self.dataplane)).map_err(refuse)?;
        let addresses = serde_json::to_string(&running.addresses).map_err(refuse)?;
        *self.running.lock().map_err(refuse)? = Some(running);
        Ok(addresses)
    }

    #[getter]
    fn event_fd(&self) -> RawFd {
        self.dataplane.events.fd()
    }

    fn events(&self) -> PyResult<Vec<String>> {
        self.dataplane
            .events
            .take()
            .iter()
            .map(|event| serde_json::to_string(event).map_err(refuse))
            .collect()
    }

    fn add_model(&self, spec: &str) -> PyResult<u64> {
        self.dataplane.add_model(serde_json::from_str(spec).map_err(refuse)?).map_err(refuse)
    }

    fn publish(&self, key: u64) -> PyResult<()> {
        self.dataplane.publish(key).map_err(refuse)
    }

    fn remove_model(&self, key: u64) -> PyResult<()> {
        self.dataplane.remove_model(key).map_err(refuse)
    }

    fn attach(&self, key: u64, link_fd: RawFd) -> PyResult<u64> {
        // SAFETY: the caller gives the descriptor away, as the stub says.
        let link = unsafe { OwnedFd::from_raw_fd(link_fd) };
        self.dataplane.attach(key, link).map_err(refuse)
    }

    fn settle(&self, replica: u64, fault: &str) {
        self.dataplane.settle(replica, fault);
    }

    fn set_index(&self, rows: &str) -> PyResult<()> {
        self.dataplane.repository.set_index(serde_json::from_str(rows).map_err(refuse)?);
        Ok(())
    }

    fn set_ready(&self, ready: bool) {
        self.dataplane.ready.store(ready, Relaxed);
    }

    fn set_knobs(&self, key: u64, knobs: &str) -> PyResult<()> {
        self.dataplane.set_knobs(key, Knobs::parse(knobs).map_err(refuse)?).map_err(refuse)
    }

    fn observe(&self) -> PyResult<String> {
        let known = self.dataplane.known();
        let observed: Vec<_> = known.iter().filter_map(|model| model.observe()).collect();
        serde_json::to_string(&observed).map_err(refuse)
    }

    fn answer(&self, ticket: u64, code: &str, message: String) -> PyResult<()> {
        self.dataplane.repository.answer(ticket, repository::outcome(code, message).map_err(refuse)?);
        Ok(())
    }

    fn drain(&self) -> PyResult<()> {
        self.with_running(|running| running.drain())
    }

    fn open_connections(&self) -> PyResult<usize> {
        self.with_running(|running| running.open_connections())
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let running = self.running.lock().map_err(refuse)?.take();
        if let Some(mut running) = running {
            py.detach(|| running.stop());
        }
        Ok(())
    }
}
