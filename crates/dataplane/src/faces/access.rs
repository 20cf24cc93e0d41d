//! The access log: one JSON line per request on standard error, never waited for.

use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::Response;
use http::request::Parts;
use hyper::body::{Body, Incoming};
use serde_json::{Value, json};

use crate::connection::Outgoing;
use crate::error::{Error, Result};

/// Lines that may wait for the writer.
const MAX_WAITING: usize = 8192;

/// Writes from a thread of its own; what finds no room is counted and dropped.
pub struct AccessLog {
    lines: SyncSender<String>,
    dropped: AtomicU64,
}

impl AccessLog {
    /// Starts the writer; it ends when this is dropped.
    pub fn start(mut sink: impl Write + Send + 'static) -> Result<Self> {
        let (lines, waiting) = sync_channel::<String>(MAX_WAITING);
        let write = move || {
            while let Ok(first) = waiting.recv() {
                let mut sink = BufWriter::new(&mut sink);
                for line in std::iter::once(first).chain(waiting.try_iter().take(MAX_WAITING)) {
                    // Nobody is left to be told when standard error is gone.
                    if writeln!(sink, "{line}").is_err() {
                        return;
                    }
                }
            }
        };
        thread::Builder::new()
            .name("lrai-access-log".into())
            .spawn(write)
            .map_err(|error| Error::internal(format!("cannot start the access log: {error}")))?;
        Ok(Self { lines, dropped: AtomicU64::new(0) })
    }

    /// A request begins; returns what ends its line.
    pub fn begin<'a>(
        &'a self,
        client: &str,
        (parts, body): &(Parts, Incoming),
    ) -> impl FnOnce(&Response<Outgoing>) + use<'a> {
        let (began, time) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH));
        let mut line = json!({
            "time": time.unwrap_or_default().as_secs_f64(),
            "client": client,
            "method": parts.method.as_str(),
            "path": parts.uri.path(),
            "request_bytes": body.size_hint().exact(),
        });
        move |reply| {
            line["status"] = json!(reply.status().as_u16());
            line["response_bytes"] = json!(reply.body().size_hint().exact());
            line["duration_seconds"] = json!(began.elapsed().as_secs_f64());
            self.log(&line);
        }
    }

    /// Takes a line, or counts it as dropped.
    fn log(&self, line: &Value) {
        if self.lines.try_send(line.to_string()).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes a write only when it is told to.
    struct Slow {
        gate: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.gate.recv().map_err(std::io::Error::other)?;
            self.written.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_and_what_finds_no_room_is_counted() {
        let (release, gate) = channel();
        let (written, lines) = channel();
        let log = AccessLog::start(Slow { gate, written }).expect("a thread");
        for _ in 0..3 * MAX_WAITING {
            log.log(&serde_json::json!({ "status": 200 }));
        }
        assert!(log.dropped() >= MAX_WAITING as u64 - 1, "{}", log.dropped());
        release.send(()).expect("the writer waits");
        let first = lines.recv().expect("a line was written");
        assert!(first.starts_with(b"{\"status\":200}\n"), "{}", String::from_utf8_lossy(&first));
    }
}
