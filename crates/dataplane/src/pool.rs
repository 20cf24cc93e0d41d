//! A bounded pool of threads for what would hold up a runtime thread: large bodies and compression.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// Bodies and answers above this many bytes are parsed and encoded in the pool.
pub const LARGE: usize = 64 << 10;

/// Most pieces of work that wait; bytes are bounded by [`crate::memory::Memory`].
const MAX_WAITING: usize = 4096;

/// How much less the pool counts than other threads when processors are short.
const NICE: i32 = 5;

type Work = Box<dyn FnOnce() + Send>;

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    stopped: bool,
}

/// Threads that run closures first come, first served; they end when the pool is dropped.
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts `threads` threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new() });
        let pool = Self { shared };
        for index in 0..threads {
            let shared = Arc::clone(&pool.shared);
            thread::Builder::new().name(format!("lrai-pool-{index}")).spawn(move || work_task(&shared))?;
        }
        Ok(pool)
    }

    /// Runs `work` on a pool thread. When the returned future is dropped before the work began, it never runs.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let work = Box::new(move || {
            if !answer.is_closed() {
                // A receiver that has gone away needs no answer.
                drop(answer.send(work()));
            }
        });
        {
            let mut state = self.shared.state.lock();
            if state.waiting.len() >= MAX_WAITING {
                return Err(Error::unavailable(format!(
                    "{MAX_WAITING} large requests wait to be parsed, hint: send fewer at once"
                )));
            }
            state.waiting.push_back(work);
        }
        self.shared.wake.notify_one();
        answered.await.unwrap_or_else(|_| Err(Error::internal("the server failed on this request")))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.stopped = true;
        state.waiting.clear();
        self.shared.wake.notify_all();
    }
}

fn work_task(shared: &Shared) {
    // The gateway's thread, which everybody waits for, goes first; where that is not allowed, it is one among equals.
    let _ = setpriority_process(Some(gettid()), NICE);
    loop {
        let work = {
            let mut state = shared.state.lock();
            loop {
                if state.stopped {
                    return;
                }
                match state.waiting.pop_front() {
                    Some(work) => break work,
                    None => shared.wake.wait(&mut state),
                }
            }
        };
        // The panic hook has told it already; the waiting request sees its sender dropped.
        drop(catch_unwind(AssertUnwindSafe(work)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_an_internal_error_and_the_thread_lives_on() {
        let pool = Pool::new(1).expect("a thread");
        let error = pool.run(|| -> Result<()> { panic!("a bug") }).await.expect_err("it panicked");
        assert_eq!(error, Error::internal("the server failed on this request"));
        assert_eq!(pool.run(|| Ok(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn work_whose_future_is_dropped_while_it_waits_never_runs() {
        let pool = Pool::new(1).expect("a thread");
        let (release, gate) = channel::<()>();
        let (told, ran) = channel();
        let mut context = Context::from_waker(Waker::noop());
        let mut blocker = Box::pin(pool.run(move || gate.recv().map_err(|_| Error::internal("gone"))));
        assert!(blocker.as_mut().poll(&mut context).is_pending());
        let mut dropped = Box::pin(pool.run(move || {
            told.send(()).expect("the receiver lives");
            Ok(())
        }));
        assert!(dropped.as_mut().poll(&mut context).is_pending());
        drop(dropped);
        release.send(()).expect("the blocker waits");
        assert_eq!(blocker.await, Ok(()));
        assert_eq!(pool.run(|| Ok(7)).await, Ok(7));
        assert!(ran.try_recv().is_err());
    }
}
