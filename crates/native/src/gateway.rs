//! The serving side: cold paths cross as JSON text, numbers as frozen classes.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lrai_dataplane::config::Config;
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::error::Error;
use lrai_dataplane::faces::observation::latency_bounds_us;
use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::listen::{self, Running};
use lrai_dataplane::models::Model;
use lrai_dataplane::stats::Refusal;
use pyo3::prelude::*;

use crate::refuse;

/// Python representation of the data plane.
#[pyclass(module = "lrai._native", frozen)]
pub struct Gateway {
    dataplane: Arc<Dataplane>,
    running: std::sync::Mutex<Option<Running>>,
}

/// Python representation of one model's numbers.
#[pyclass(module = "lrai._native", frozen, get_all)]
pub struct Window {
    key: u64,
    pending: u32,
    inflight_age_ms: Vec<(u64, u64)>,
    requests: u64,
    rows_in: u64,
    burst_rows: u32,
    queue_age_us: u64,
    replicas: u32,
    service: Vec<(u32, u32, u64, u64, u64)>,
    lengths: Vec<(u32, u64)>,
    batches: u64,
    rows: u64,
    busy_ns: u64,
    compute_bounds_us: Vec<u64>,
    compute_counts: Vec<u64>,
    latency_bounds_us: Vec<u64>,
    latency_counts: Vec<u64>,
    late: u64,
    refused_late: u64,
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

    fn observe(&self) -> Vec<Window> {
        let window = |model: &Arc<Model>| {
            let observed = model.observe()?;
            let snapshot = model.stats.snapshot();
            let compute = snapshot.compute_duration;
            Some(Window {
                key: model.key,
                pending: observed.pending,
                inflight_age_ms: observed.inflight_age_ms,
                requests: observed.requests,
                rows_in: observed.rows,
                burst_rows: observed.burst_rows,
                queue_age_us: observed.queue_age.as_micros() as u64,
                replicas: observed.replicas,
                service: observed.served,
                lengths: model.take_lengths(),
                batches: snapshot.execution_count,
                rows: snapshot.inference_count,
                busy_ns: compute.sum,
                compute_bounds_us: compute.bounds.iter().map(|ns| ns / 1000).collect(),
                compute_counts: compute.buckets,
                latency_bounds_us: latency_bounds_us(),
                latency_counts: snapshot.latency_counts,
                late: snapshot.late,
                refused_late: snapshot.refused[Refusal::Late as usize],
            })
        };
        self.dataplane.known().iter().filter_map(window).collect()
    }

    fn answer(&self, ticket: u64, code: &str, message: String) -> PyResult<()> {
        let outcome = match code {
            "" => Ok(message),
            "not_found" => Err(Error::not_found(message)),
            "invalid" => Err(Error::invalid(message)),
            "unavailable" => Err(Error::unavailable(message)),
            "unsupported" => Err(Error::unsupported(message)),
            "internal" => Err(Error::internal(message)),
            other => return Err(refuse(format!("unknown code '{other}'"))),
        };
        self.dataplane.repository.answer(ticket, outcome);
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
