//! What the data plane tells the control plane: a queue of JSON texts behind a descriptor that becomes readable.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use parking_lot::Mutex;
use serde::Serialize;

/// Most events that wait for a control plane that does not fetch them.
const MAX_WAITING: usize = 100_000;

/// One event: of the model `key`, of its `replica`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are told with their event")]
pub enum Event {
    /// A replica answers from now on.
    ReplicaReady { key: u64, replica: u64 },
    /// A replica's link is closed, or was closed because the actor broke the protocol; `detail` is what was seen.
    ReplicaLost { key: u64, replica: u64, detail: String },
    /// A client asks for what only the control plane can do; `kind` is `load`, `unload` or `why`, `ticket` is to be given
    /// back with the answer.
    Command { ticket: u64, kind: &'static str, model: String, parameters: serde_json::Value },
    /// A removed model has answered its last request.
    Removed { key: u64 },
    /// A request was found to end actors: its digest is refused from now on, and how the actor ended.
    Poison { key: u64, digest: String, reason: String },
    /// Something about the journal that belongs into the log.
    Journal { level: &'static str, message: String },
}

/// The queue; one byte lies between bell and ear while it is not empty.
pub struct Events {
    waiting: Mutex<Vec<Event>>,
    bell: UnixStream,
    ear: UnixStream,
}

impl Events {
    /// An empty queue.
    pub fn new() -> io::Result<Self> {
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        Ok(Self { waiting: Mutex::default(), bell, ear })
    }

    /// Readable while events wait.
    pub fn fd(&self) -> RawFd {
        self.ear.as_raw_fd()
    }

    /// Adds an event.
    pub fn push(&self, event: Event) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            (&self.bell).write_all(&[1]).expect("one byte fits into an empty socket");
        }
        if waiting.len() < MAX_WAITING {
            waiting.push(event);
        }
    }

    /// Takes all events.
    pub fn take(&self) -> Vec<Event> {
        let mut waiting = self.waiting.lock();
        if !waiting.is_empty() {
            (&self.ear).read_exact(&mut [0]).expect("the byte of the first event is there");
        }
        std::mem::take(&mut waiting)
    }
}
