//! What all connections share: their number, who has overstayed, and the end of it all.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::connection::{Connection, State};
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
            dataplane,
        })
    }

    /// From now on a connection is swept and drained with the others.
    pub fn register(&self, connection: &Arc<Connection>) {
        self.connections.lock().push(Arc::downgrade(connection));
    }

    /// Open connections.
    pub fn open_connections(&self) -> usize {
        self.dataplane.config.max_connections - self.slots.available_permits()
    }

    /// Ends connections that have overstayed; never returns.
    pub async fn sweep_task(self: Arc<Self>) {
        let config = &self.dataplane.config;
        let shortest = config.header_timeout_ms.min(config.keep_alive_timeout_ms);
        let period_ms = (shortest / 4).clamp(10, 1000);
        loop {
            // A turn counts for no more than this, so that no client pays for a time in which we did not listen.
            tokio::time::sleep(Duration::from_millis(period_ms)).await;
            self.each_connection(|connection| connection.sweep(period_ms, config));
        }
    }

    /// Does something to every connection.
    pub fn each_connection(&self, act: impl Fn(&State)) {
        let is_open =
            |connection: &Weak<Connection>| connection.upgrade().map(|open| act(&open.state)).is_some();
        self.connections.lock().retain(is_open);
    }
}
