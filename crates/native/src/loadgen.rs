//! The load generator, for `lrai bench`: one call that runs a load to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use lrai_loadgen::{Config, Progress, run};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::refuse;

const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Runs a load on its own thread, so that neither the GIL nor a progress display disturbs its timing.
#[pyfunction]
#[pyo3(signature = (config, requests, progress=None))]
fn run_load(
    py: Python<'_>,
    config: &str,
    requests: Vec<PyBackedBytes>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<String> {
    let config: Config = serde_json::from_str(config).map_err(refuse)?;
    let requests = requests.into_iter().map(|request| request.to_vec()).collect();
    let watched = Arc::new(Progress::default());
    let (sender, results) = sync_channel(1);
    let shared = Arc::clone(&watched);
    let thread = std::thread::Builder::new().name("loadgen".into()).spawn(move || {
        let _ = sender.send(run(&config, requests, &shared));
    })?;
    // Another thread may wait on it while this one has given the GIL away.
    let results = std::sync::Mutex::new(results);
    let mut interrupted = Ok(());
    let result = loop {
        match py.detach(|| results.lock().expect("not poisoned").recv_timeout(WATCH_INTERVAL)) {
            Ok(result) => break result,
            Err(RecvTimeoutError::Disconnected) => return Err(refuse("the load generator has panicked")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if interrupted.is_ok() {
            interrupted = py.check_signals().and_then(|()| report(progress, &watched));
            watched.stop.store(interrupted.is_err(), Relaxed);
        }
    };
    let _ = thread.join();
    interrupted?;
    serde_json::to_string(&result.map_err(refuse)?).map_err(refuse)
}

fn report(progress: Option<&Bound<'_, PyAny>>, watched: &Progress) -> PyResult<()> {
    let Some(progress) = progress else { return Ok(()) };
    progress.call1((watched.answered.load(Relaxed), watched.errors.load(Relaxed))).map(drop)
}

/// Adds the functions of this file.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(run_load, module)?)
}
