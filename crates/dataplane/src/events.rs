//! What the data plane tells the control plane: a queue of JSON texts behind a descriptor that becomes readable.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use parking_lot::Mutex;
use serde::Serialize;

/// Most events that wait for a control plane that does not fetch them.
const MAX_WAITING: usize = 100_000;

/// One event.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A replica answers from now on.
    ReplicaReady {
        /// Its model.
        key: u64,
        /// Which one.
        replica: u64,
    },
    /// A replica's link is closed, or was closed because the actor broke the protocol.
    ReplicaLost {
        /// Its model.
        key: u64,
        /// Which one.
        replica: u64,
        /// What was seen.
        detail: String,
    },
    /// A client asks for a change that the control plane makes.
    Command {
        /// To be given back with the answer.
        ticket: u64,
        /// `load` or `unload`.
        kind: &'static str,
        /// The model's name.
        model: String,
        /// The request's parameters.
        parameters: serde_json::Value,
    },
    /// A removed model has answered its last request.
    Removed {
        /// Its model.
        key: u64,
    },
    /// A request was found to end actors.
    Poison {
        /// Its model.
        key: u64,
        /// The digest that is refused from now on.
        digest: String,
        /// How the actor ended.
        reason: String,
    },
}

/// The queue.
pub struct Events {
    waiting: Mutex<Vec<Event>>,
    fd: OwnedFd,
}

impl Events {
    /// An empty queue.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call; the result is checked and owned by nobody else.
        let fd = unsafe {
            let raw = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(raw)
        };
        Ok(Self { waiting: Mutex::default(), fd })
    }

    /// Readable while events wait.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Adds an event.
    pub fn push(&self, event: Event) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push(event);
        }
        let one = 1u64.to_ne_bytes();
        // SAFETY: a plain system call on a live buffer; a full counter is readable all the same.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes all events.
    pub fn take(&self) -> Vec<Event> {
        let mut waiting = self.waiting.lock();
        let mut count = [0u8; 8];
        // SAFETY: a plain system call on a live buffer.
        unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        std::mem::take(&mut waiting)
    }
}
