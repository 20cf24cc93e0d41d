//! How a model goes: unloaded, or replaced by another of its name and version.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::dataplane::Dataplane;
use crate::events::Event;
use crate::models::Model;
use crate::queue::Replica;

impl Dataplane {
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
}

impl Model {
    /// Answers what it has; what still comes goes to its successor, if there is one.
    pub(crate) fn close(self: &Arc<Self>, successor: Option<Arc<Self>>) {
        if let Some(successor) = successor {
            // Nobody else replaces a model that has left the routes.
            let _ = self.successor.set(successor);
        }
        self.queue.lock().closing = true;
        self.runtime.spawn(closing_task(Arc::clone(self)));
    }
}

/// Waits until a closed model has answered everything, then closes its links.
async fn closing_task(model: Arc<Model>) {
    while model.queue.lock().pending > 0 {
        sleep(Duration::from_millis(5)).await;
        model.queue.lock().dispatch(Instant::now());
    }
    model.queue.lock().replicas.iter_mut().for_each(Replica::close);
    model.removed.store(true, Relaxed);
    model.timer.notify_one();
    model.events.push(Event::Removed { key: model.key });
}
