//! What all connections share: their number, the coarse clock, who has overstayed, and the end of it all.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::connection::Connection;
use crate::dataplane::Dataplane;
use crate::error::Result;
use crate::faces::access::AccessLog;

/// The state behind all connections.
pub struct Gateway {
    /// Models and settings.
    pub dataplane: Arc<Dataplane>,
    /// A place for each connection that may be open.
    pub slots: Arc<Semaphore>,
    /// Where requests are logged, if they are.
    pub access: Option<AccessLog>,
    /// From now on an answer over HTTP/1.1 ends its connection: the client knows that it was the last one.
    pub draining: AtomicBool,
    connections: Mutex<Vec<Weak<Connection>>>,
    ending: AtomicBool,
    now_ms: AtomicU64,
}

impl Gateway {
    /// No connection yet.
    pub fn new(dataplane: Arc<Dataplane>) -> Result<Self> {
        let config = &dataplane.config;
        Ok(Self {
            slots: Arc::new(Semaphore::new(config.max_connections)),
            access: config.access_log.then(|| AccessLog::start(std::io::stderr())).transpose()?,
            draining: AtomicBool::new(false),
            connections: Mutex::default(),
            ending: AtomicBool::new(false),
            now_ms: AtomicU64::new(0),
            dataplane,
        })
    }

    /// Milliseconds since the start, as of the last sweep: reading it costs nothing.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    /// Whether connections shall end when they have answered what they have, idle ones at once.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Relaxed)
    }

    /// From now on a connection is swept and drained with the others.
    pub fn register(&self, connection: &Arc<Connection>) {
        self.connections.lock().push(Arc::downgrade(connection));
    }

    /// Open connections.
    pub fn open_connections(&self) -> usize {
        self.dataplane.config.max_connections - self.slots.available_permits()
    }

    /// Asks every connection to end.
    pub fn end(&self) {
        self.ending.store(true, Relaxed);
        self.each_connection(Connection::wake);
    }

    /// Moves the clock and ends connections that have overstayed; never returns.
    pub async fn sweep_task(self: Arc<Self>) {
        let (config, started) = (&self.dataplane.config, Instant::now());
        let shortest = config.header_timeout_ms.min(config.keep_alive_timeout_ms);
        let mut turns = tokio::time::interval(Duration::from_millis((shortest / 4).clamp(10, 1000)));
        loop {
            turns.tick().await;
            self.now_ms.store(started.elapsed().as_millis() as u64, Relaxed);
            self.each_connection(Connection::sweep);
        }
    }

    fn each_connection(&self, act: impl Fn(&Connection)) {
        let is_open = |connection: &Weak<Connection>| connection.upgrade().map(|open| act(&open)).is_some();
        self.connections.lock().retain(is_open);
    }
}
