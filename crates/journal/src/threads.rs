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
    let (mut swept, mut has_more, mut is_sure) = (Instant::now(), false, true);
    loop {
        match jobs.recv_timeout(if has_more { Duration::ZERO } else { SWEEP }) {
            Ok(first) => {
                let is_done = commit(&mut *store, first, jobs, counters);
                // Whether a group that failed was committed, only the store knows.
                let follow = |totals| counters.follow(totals);
                is_sure = is_done && (is_sure || store.totals().map(follow).is_ok());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if has_more || swept.elapsed() >= SWEEP {
            // What could not be forgotten now is tried again.
            let expired = store.expire(now_ms()).unwrap_or_default();
            counters.release(expired.bytes);
            (swept, has_more) = (Instant::now(), expired.has_more);
        }
    }
}

/// Commits a job and those that wait behind it; returns whether the store did.
fn commit(store: &mut dyn Store, first: Job, jobs: &Receiver<Job>, counters: &Counters) -> bool {
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
    let is_done = outcomes.is_ok();
    let outcomes: Vec<_> = match outcomes {
        Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
        Err(fault) => vec![Err(fault); writes.len()],
    };
    for ((write, reply), outcome) in writes.iter().zip(replies).zip(outcomes) {
        count(counters, write, &outcome);
        // Who asked may have gone meanwhile.
        drop(reply.send(outcome));
    }
    is_done
}

/// Keeps the books: what a request takes was set aside before it came here.
fn count(counters: &Counters, write: &Write, outcome: &Result<Outcome, Fault>) {
    let is_accepted = matches!(outcome, Ok(Outcome::Accepted(_)));
    if let Write::Accept { entry, .. } = write {
        counters.settle(entry.request.size(), is_accepted);
    }
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
    } else if is_accepted {
        counters.accepted.fetch_add(1, Relaxed);
        counters.waiting.fetch_add(1, Relaxed);
    }
}

/// Answers questions until nobody can ask any more.
pub fn read(mut store: Box<dyn Store>, questions: &Receiver<Question>) {
    for Question { id, reply } in questions {
        let found = store.find(id, now_ms());
        if let Err(fault) = &found {
            // Those behind would wait as long as this one, for the same.
            for waiting in questions.try_iter() {
                drop(waiting.reply.send(Err(fault.clone())));
            }
        }
        drop(reply.send(found));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::entry::{Entry, Record};
    use crate::store::{Expired, Totals};

    /// Fails as often as it is told, but does what it was asked for.
    #[derive(Default)]
    struct Fake {
        failures: usize,
        totals: Totals,
        asked: Arc<AtomicUsize>,
    }

    impl Fake {
        fn outcome<T>(&mut self, value: T) -> Result<T, Fault> {
            self.asked.fetch_add(1, Relaxed);
            let Some(left) = self.failures.checked_sub(1) else { return Ok(value) };
            self.failures = left;
            Err(Fault::Failed("away".into()))
        }
    }

    impl Store for Fake {
        fn commit(&mut self, writes: &[Write]) -> Result<Vec<Outcome>, Fault> {
            self.totals.bytes += writes.iter().map(size).sum::<u64>();
            self.totals.waiting += writes.len() as u64;
            self.outcome(vec![Outcome::Accepted(Id { seq: 1, token: 1 }); writes.len()])
        }

        fn expire(&mut self, _: u64) -> Result<Expired, Fault> {
            Ok(Expired::default())
        }

        fn find(&mut self, _: Id, _: u64) -> Result<Option<Found>, Fault> {
            self.outcome(None)
        }

        fn unfinished(&mut self, _: u64, _: usize) -> Result<Vec<(Id, String)>, Fault> {
            Ok(Vec::new())
        }

        fn totals(&mut self) -> Result<Totals, Fault> {
            Ok(self.totals)
        }
    }

    fn job() -> (Job, oneshot::Receiver<Result<Outcome, Fault>>) {
        let entry = Entry { lane: String::new(), key: None, request: Record::default() };
        let (reply, outcome) = oneshot::channel();
        (Job { write: Write::Accept { entry, token: 1 }, reply }, outcome)
    }

    #[test]
    fn the_books_follow_the_store_after_a_failure() {
        let (counters, (jobs, waiting)) = (Arc::<Counters>::default(), channel());
        let store = Fake { failures: 1, ..Fake::default() };
        let shared = Arc::clone(&counters);
        let thread = std::thread::spawn(move || write(Box::new(store), &waiting, &shared));
        let size = Record::default().size();
        for is_done in [false, true, true] {
            counters.reserve(size, 10 * size).unwrap();
            let (job, outcome) = job();
            jobs.send(job).unwrap();
            assert_eq!(outcome.blocking_recv().unwrap().is_ok(), is_done);
        }
        drop(jobs);
        thread.join().unwrap();
        assert_eq!(counters.bytes.load(Relaxed), 3 * size, "what failed was committed all the same");
        assert_eq!((counters.waiting.load(Relaxed), counters.reserved.load(Relaxed)), (3, 0));
    }

    #[test]
    fn who_waits_behind_a_question_that_fails_is_told_the_same() {
        let (questions, asked) = channel();
        let store = Fake { failures: 1, ..Fake::default() };
        let count = Arc::clone(&store.asked);
        let answers: Vec<_> = (0..100)
            .map(|_| {
                let (reply, answer) = oneshot::channel();
                questions.send(Question { id: Id { seq: 1, token: 1 }, reply }).unwrap();
                answer
            })
            .collect();
        drop(questions);
        read(Box::new(store), &asked);
        assert!(answers.into_iter().all(|answer| answer.blocking_recv().unwrap().is_err()));
        assert_eq!(count.load(Relaxed), 1);
    }
}
