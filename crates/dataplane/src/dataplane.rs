//! Everything that the faces share: which models exist, whether the server is ready, and the way to the control plane.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::events::{Event, Events};
use crate::memory::Memory;
use crate::models::{Model, Window};
use crate::pool::Pool;
use crate::rule::Knobs;
use crate::tensor::ModelSpec;

/// A line of the repository index, as the control plane states it; an empty text is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexRow {
    /// The model's name.
    pub name: String,
    /// The version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// `READY`, `UNAVAILABLE`, `LOADING`, `UNLOADING` or `UNKNOWN`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Why it is in this state.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

#[derive(Default)]
struct Routes {
    by_key: HashMap<u64, Arc<Model>>,
    /// Versions of a name, the default (highest) first.
    by_name: HashMap<String, Vec<Arc<Model>>>,
}

/// The state behind all faces.
pub struct Dataplane {
    /// Fixed at the start.
    pub config: Config,
    /// Whether the server says that it is ready.
    pub ready: AtomicBool,
    /// What the control plane must hear.
    pub events: Arc<Events>,
    /// The budget of bytes in request bodies and answers.
    pub memory: Memory,
    /// Where large bodies are parsed and large answers encoded.
    pub pool: Pool,
    routes: RwLock<Routes>,
    index: RwLock<Vec<IndexRow>>,
    runtime: Mutex<Option<Handle>>,
    commands: Mutex<HashMap<u64, oneshot::Sender<Result<()>>>>,
    next_key: AtomicU64,
    next_replica: Arc<AtomicU64>,
}

fn version_number(model: &Model) -> u64 {
    model.spec.version.parse().unwrap_or(0)
}

impl Dataplane {
    /// A data plane without models.
    pub fn new(config: Config) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            memory: Memory::new(config.max_memory_bytes),
            pool: Pool::new(config.pool_threads)?,
            config,
            ready: AtomicBool::new(false),
            events: Arc::new(Events::new()?),
            routes: RwLock::default(),
            index: RwLock::default(),
            runtime: Mutex::default(),
            commands: Mutex::default(),
            next_key: AtomicU64::new(1),
            next_replica: Arc::new(AtomicU64::new(1)),
        }))
    }

    /// Names the runtime that reads the links and keeps house.
    pub fn set_runtime(self: &Arc<Self>, runtime: Handle) {
        runtime.spawn(housekeeping_task(Arc::downgrade(self)));
        *self.runtime.lock() = Some(runtime);
    }

    /// The model of that name; an empty version means the default one.
    pub fn model(&self, name: &str, version: &str) -> Result<Arc<Model>> {
        let routes = self.routes.read();
        let versions = routes.by_name.get(name).map_or(&[][..], Vec::as_slice);
        let found = match version {
            "" => versions.first(),
            version => versions.iter().find(|model| model.spec.version == version),
        };
        found.map(Arc::clone).ok_or_else(|| self.unknown(name, version))
    }

    #[cold]
    fn unknown(&self, name: &str, version: &str) -> Error {
        let prefix = format!("Request for unknown model: '{name}'");
        if !self.index.read().iter().any(|row| row.name == name) {
            return Error::not_found(format!("{prefix} is not found"));
        }
        if version.is_empty() {
            return Error::unavailable(format!("{prefix} has no available versions"));
        }
        Error::not_found(format!("{prefix} version {version} is not found"))
    }

    /// All routed models, by name and version.
    pub fn models(&self) -> Vec<Arc<Model>> {
        let mut models: Vec<_> = self.routes.read().by_name.values().flatten().map(Arc::clone).collect();
        models.sort_by(|a, b| (&a.spec.name, version_number(a)).cmp(&(&b.spec.name, version_number(b))));
        models
    }

    /// The served versions of a model, lowest first.
    pub fn versions(&self, name: &str) -> Vec<String> {
        let routes = self.routes.read();
        let versions = routes.by_name.get(name).map_or(&[][..], Vec::as_slice);
        versions.iter().rev().map(|model| model.spec.version.clone()).collect()
    }

    /// The repository index.
    pub fn index(&self) -> Vec<IndexRow> {
        self.index.read().clone()
    }

    /// States the repository index.
    pub fn set_index(&self, rows: Vec<IndexRow>) {
        *self.index.write() = rows;
    }

    /// Whether the server is ready.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Has the control plane load or unload a model, and waits until it has.
    pub async fn command(
        &self,
        kind: &'static str,
        model: String,
        parameters: serde_json::Value,
    ) -> Result<()> {
        let ticket = self.next_key.fetch_add(1, Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.commands.lock().insert(ticket, sender);
        self.events.push(Event::Command { ticket, kind, model, parameters });
        receiver.await.unwrap_or_else(|_| Err(Error::unavailable("the server is shutting down")))
    }

    /// Answers a command; an unknown ticket belongs to a client that has gone.
    pub fn answer(&self, ticket: u64, outcome: Result<()>) {
        if let Some(sender) = self.commands.lock().remove(&ticket) {
            let _ = sender.send(outcome);
        }
    }

    /// Makes a model, not routed yet. Returns its key.
    pub fn add_model(&self, spec: ModelSpec) -> io::Result<u64> {
        let Some(runtime) = self.runtime.lock().clone() else {
            return Err(io::Error::other("the data plane has not been started"));
        };
        let key = self.next_key.fetch_add(1, Relaxed);
        let replicas = Arc::clone(&self.next_replica);
        let shared = (Arc::clone(&self.events), runtime);
        let model = Model::new(key, spec, self.config.max_body_bytes, replicas, shared)?;
        self.routes.write().by_key.insert(key, model);
        Ok(key)
    }

    fn by_key(&self, key: u64) -> io::Result<Arc<Model>> {
        let found = self.routes.read().by_key.get(&key).map(Arc::clone);
        found.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no model with key {key}"))
        })
    }

    /// Routes requests to a model; the former one of the same name and version answers what it has and goes.
    pub fn publish(&self, key: u64) -> io::Result<()> {
        let model = self.by_key(key)?;
        let mut routes = self.routes.write();
        let versions = routes.by_name.entry(model.spec.name.clone()).or_default();
        let former = versions.iter().position(|former| former.spec.version == model.spec.version);
        let former = former.map(|index| versions.remove(index));
        versions.push(Arc::clone(&model));
        versions.sort_by_key(|model| std::cmp::Reverse(version_number(model)));
        if let Some(former) = former {
            former.close(Some(model));
        }
        Ok(())
    }

    /// Takes a model out of the routes; an event tells when it has answered its last request.
    pub fn remove_model(&self, key: u64) -> io::Result<()> {
        let model = self.by_key(key)?;
        let mut routes = self.routes.write();
        if let Some(versions) = routes.by_name.get_mut(&model.spec.name) {
            versions.retain(|candidate| candidate.key != key);
            if versions.is_empty() {
                routes.by_name.remove(&model.spec.name);
            }
        }
        drop(routes);
        model.close(None);
        Ok(())
    }

    /// Gives a model a replica.
    pub fn attach(&self, key: u64, link: OwnedFd) -> io::Result<u64> {
        self.by_key(key)?.attach(link)
    }

    /// Tells how a replica ended; see [`Model::settle`].
    pub fn settle(&self, replica: u64, fault: &str) {
        let models: Vec<_> = self.routes.read().by_key.values().map(Arc::clone).collect();
        models.iter().any(|model| model.settle(replica, fault));
    }

    /// Sets a model's knobs.
    pub fn set_knobs(&self, key: u64, knobs: Knobs) -> io::Result<()> {
        self.by_key(key)?.set_knobs(knobs);
        Ok(())
    }

    /// What the control plane looks at: every model with its numbers.
    pub fn windows(&self) -> Vec<(Window, Arc<Model>)> {
        let now = Instant::now();
        let routes = self.routes.read();
        routes.by_key.values().map(|model| (model.window(now), Arc::clone(model))).collect()
    }
}

/// Once a second: pages given back, orphaned requests answered.
async fn housekeeping_task(dataplane: std::sync::Weak<Dataplane>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(dataplane) = dataplane.upgrade() else { return };
        let now = Instant::now();
        for (_, model) in dataplane.windows() {
            model.tick(now);
        }
        // A closed model stays known by its key until its replicas no longer need to be settled.
        dataplane.routes.write().by_key.retain(|_, model| !model.is_removed());
    }
}
