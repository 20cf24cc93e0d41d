//! The journal's two threads: one commits groups, one reads, so that no reader waits for a disk to be flushed.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use crate::counters::Counters;
use crate::entry::{Found, Id};
use crate::fault::Fault;
use crate::store::{Outcome, Store, Write};

/// Most writes of one commit.
const MAX_GROUP: usize = 1024;
/// A group that holds so many bytes takes no more.
const MAX_GROUP_BYTES: u64 = 32 << 20;
/// How often answers whose time has passed are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// A write, and who waits for it.
pub struct Job {
    pub write: Write,
    pub reply: oneshot::Sender<Result<Outcome, Fault>>,
}

/// Which entry is asked for, and who waits for it.
pub struct Question {
    pub id: Id,
    pub reply: oneshot::Sender<Result<Option<Found>, Fault>>,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

fn size(write: &Write) -> u64 {
    match write {
        Write::Accept { entry, .. } => entry.request.size(),
        Write::Answer { answer, .. } => answer.size(),
        Write::Close(_) | Write::Remove(_) => 0,
    }
}

/// Commits what waits, together, until nobody can send any more.
pub fn write(mut store: Box<dyn Store>, jobs: &Receiver<Job>, counters: &Arc<Counters>) {
    let mut swept = Instant::now();
    loop {
        match jobs.recv_timeout(SWEEP) {
            Ok(first) => commit(&mut *store, first, jobs, counters),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if swept.elapsed() >= SWEEP {
            // What could not be forgotten now is tried again.
            counters.release(store.expire(now_ms()).unwrap_or(0));
            swept = Instant::now();
        }
    }
}

fn commit(store: &mut dyn Store, first: Job, jobs: &Receiver<Job>, counters: &Counters) {
    let (mut bytes, mut writes, mut replies) = (0, Vec::new(), Vec::new());
    for Job { write, reply } in std::iter::once(first).chain(jobs.try_iter()) {
        bytes += size(&write);
        writes.push(write);
        replies.push(reply);
        if writes.len() >= MAX_GROUP || bytes >= MAX_GROUP_BYTES {
            break;
        }
    }
    let began = Instant::now();
    let outcomes = store.commit(&writes);
    counters.commit(began.elapsed());
    let outcomes: Vec<_> = match outcomes {
        Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
        Err(fault) => vec![Err(fault); writes.len()],
    };
    for ((write, reply), outcome) in writes.iter().zip(replies).zip(outcomes) {
        count(counters, write, &outcome);
        // Who asked may have gone meanwhile.
        drop(reply.send(outcome));
    }
}

/// Keeps the books: what a request takes was set aside before it came here.
fn count(counters: &Counters, write: &Write, outcome: &Result<Outcome, Fault>) {
    if let Ok(Outcome::Changed { size, was_waiting }) = outcome {
        counters.waiting.fetch_sub(u64::from(*was_waiting), Relaxed);
        match write {
            Write::Answer { answer, .. } => {
                counters.bytes.fetch_add(answer.size(), Relaxed);
                counters.answered.fetch_add(1, Relaxed);
                counters.release(*size);
            }
            Write::Remove(_) => counters.release(*size),
            Write::Accept { .. } | Write::Close(_) => {}
        }
    } else if let Ok(Outcome::Accepted(_)) = outcome {
        counters.accepted.fetch_add(1, Relaxed);
        counters.waiting.fetch_add(1, Relaxed);
    } else {
        counters.release(if matches!(write, Write::Accept { .. }) { size(write) } else { 0 });
    }
}

/// Answers questions until nobody can ask any more.
pub fn read(mut store: Box<dyn Store>, questions: &Receiver<Question>) {
    for Question { id, reply } in questions {
        drop(reply.send(store.find(id, now_ms())));
    }
}
