//! Everything that the faces share: which models exist, whether the server is ready, and the way to the control plane.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use parking_lot::RwLock;
use tokio::runtime::Handle;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::faces::durable::{self, Durable};
use crate::faces::repository::Repository;
use crate::knobs::Knobs;
use crate::memory::Memory;
use crate::models::Model;
use crate::pool::Pool;
use crate::request::Sender;
use crate::tensor::ModelSpec;

/// Where requests go.
#[derive(Default)]
pub(crate) struct Routes {
    by_key: HashMap<u64, Arc<Model>>,
    /// Versions of a name, the default (highest) first; no name is without one.
    pub by_name: HashMap<String, Vec<Arc<Model>>>,
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
    /// What the repository holds beside the models that are served.
    pub repository: Repository,
    /// What keeps durable requests, if anything does.
    pub durable: Option<Durable>,
    pub(crate) routes: RwLock<Routes>,
    runtime: OnceLock<Handle>,
    hasher: RandomState,
    last_id: AtomicU64,
}

pub(crate) fn version_number(model: &Model) -> u64 {
    model.spec.version.parse().unwrap_or(0)
}

impl Dataplane {
    /// A data plane without models.
    pub fn new(config: Config) -> io::Result<Arc<Self>> {
        let events = Arc::new(Events::new()?);
        Ok(Arc::new(Self {
            durable: Durable::open(&config, &events).map_err(io::Error::other)?,
            repository: Repository::new(Arc::clone(&events)),
            events,
            memory: Memory::new(config.max_memory_bytes),
            pool: Pool::new(config.pool_threads)?,
            config,
            ready: AtomicBool::new(false),
            routes: RwLock::default(),
            runtime: OnceLock::new(),
            hasher: RandomState::new(),
            last_id: AtomicU64::new(0),
        }))
    }

    /// Names the runtime that reads the links and keeps house.
    pub fn set_runtime(self: &Arc<Self>, runtime: Handle) {
        runtime.spawn(housekeeping_task(Arc::downgrade(self)));
        durable::replay(self, &runtime);
        let _ = self.runtime.set(runtime);
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
        if !self.repository.knows(name) {
            return Error::not_found(format!("{prefix} is not found"));
        }
        if version.is_empty() {
            return Error::unavailable(format!("{prefix} has no available versions"));
        }
        Error::not_found(format!("{prefix} version {version} is not found"))
    }

    /// The served versions of a model, lowest first.
    pub fn versions(&self, name: &str) -> Vec<String> {
        let routes = self.routes.read();
        let versions = routes.by_name.get(name).map_or(&[][..], Vec::as_slice);
        versions.iter().rev().map(|model| model.spec.version.clone()).collect()
    }

    /// Which tenant's a request is, by the value of the header that names one; 0 = no header does.
    pub fn tenant(&self, value: Option<&[u8]>) -> u64 {
        if self.config.tenant_header.is_empty() {
            return 0;
        }
        self.hasher.hash_one(value.unwrap_or_default()).max(1)
    }

    /// The tenant that the headers of a request name, and when its client leaves.
    pub fn sender(&self, headers: &HeaderMap, deadline: Option<Instant>) -> Sender {
        let name = self.config.tenant_header.as_str();
        let value = (!name.is_empty()).then(|| headers.get(name)).flatten();
        Sender { tenant: self.tenant(value.map(HeaderValue::as_bytes)), deadline }
    }

    /// Whether the server is ready.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Identifies a model or a replica towards the control plane.
    fn take_id(&self) -> u64 {
        self.last_id.fetch_add(1, Relaxed) + 1
    }

    /// Makes a model, not routed yet. Returns its key.
    pub fn add_model(&self, spec: ModelSpec) -> io::Result<u64> {
        let runtime =
            self.runtime.get().ok_or_else(|| io::Error::other("the data plane has not been started"))?;
        let key = self.take_id();
        let events = Arc::clone(&self.events);
        let model = Model::new(key, spec, self.config.max_body_bytes, events, runtime.clone())?;
        self.routes.write().by_key.insert(key, model);
        Ok(key)
    }

    pub(crate) fn by_key(&self, key: u64) -> io::Result<Arc<Model>> {
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

    /// Gives a model a replica.
    pub fn attach(&self, key: u64, link: OwnedFd) -> io::Result<u64> {
        let replica = self.take_id();
        self.by_key(key)?.attach(link, replica).map(|()| replica)
    }

    /// Tells how a replica ended; see [`Model::settle`].
    pub fn settle(&self, replica: u64, fault: &str) {
        self.known().iter().any(|model| model.settle(replica, fault));
    }

    /// Sets a model's knobs.
    pub fn set_knobs(&self, key: u64, knobs: Knobs) -> io::Result<()> {
        self.by_key(key).map(|model| model.set_knobs(knobs))
    }

    /// Every model, those included that are not routed yet or any more.
    pub fn known(&self) -> Vec<Arc<Model>> {
        self.routes.read().by_key.values().map(Arc::clone).collect()
    }
}

/// Once a second: pages given back, orphaned requests answered.
async fn housekeeping_task(dataplane: std::sync::Weak<Dataplane>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(dataplane) = dataplane.upgrade() else { return };
        let now = Instant::now();
        dataplane.known().iter().for_each(|model| model.queue.lock().keep_house(now));
        // A closed model stays known by its key until its replicas no longer need to be settled.
        dataplane.routes.write().by_key.retain(|_, model| !model.removed.load(Relaxed));
    }
}
