//! A bounded pool of threads for what would hold up a runtime thread: large bodies and compression.

use std::io;
use std::sync::Arc;

use futures_util::future::{Either, ready};
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, PANICKED, Result};

/// Bodies and answers above this many bytes are parsed and encoded in the pool.
pub const LARGE: usize = 64 << 10;

/// Most pieces of work that wait; bytes are bounded by [`crate::memory::Memory`].
const MAX_WAITING: usize = 4096;

/// How much less the pool counts than other threads when processors are short.
const NICE: i32 = 5;

/// Threads that run closures first come, first served; they end when the pool is dropped. They are the blocking threads
/// of a runtime that runs nothing else.
pub struct Pool {
    runtime: Option<Runtime>,
    places: Arc<Semaphore>,
}

impl Pool {
    /// Starts up to `threads` threads, when they are needed.
    pub fn new(threads: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(threads)
            .thread_name("lrai-pool")
            // The gateway's thread, which everybody waits for, goes first; where that is not allowed, it is one among equals.
            .on_thread_start(|| {
                let _ = setpriority_process(Some(gettid()), NICE);
            })
            .build()?;
        Ok(Self { runtime: Some(runtime), places: Arc::new(Semaphore::new(MAX_WAITING)) })
    }

    /// Runs `work` here and now, or on a pool thread if what it works on `is_large`. That is rare and therefore boxed: the
    /// future of a small request is moved about, and shall be small.
    pub fn run<T: Send + 'static>(
        &self,
        is_large: bool,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> impl Future<Output = Result<T>> {
        if is_large { Either::Left(Box::pin(self.offload(work))) } else { Either::Right(ready(work())) }
    }

    /// When the returned future is dropped before the work began, it never runs.
    async fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Error::unavailable(format!(
                "{MAX_WAITING} large requests wait to be parsed, hint: send fewer at once"
            )));
        };
        let begin = move || {
            drop(place);
            work()
        };
        let runtime = self.runtime.as_ref().expect("it goes when the pool is dropped");
        // The panic hook has told of a panic already.
        let failed = |_| Err(Error::internal(PANICKED));
        AbortOnDropHandle::new(runtime.spawn_blocking(begin)).await.unwrap_or_else(failed)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed on a runtime's thread, where the pool may be dropped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
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
        let error = pool.offload(|| -> Result<()> { panic!("a bug") }).await.expect_err("it panicked");
        assert_eq!(error, Error::internal(PANICKED));
        assert_eq!(pool.offload(|| Ok(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn work_whose_future_is_dropped_while_it_waits_never_runs() {
        let pool = Pool::new(1).expect("a thread");
        let (release, gate) = channel::<()>();
        let (told, ran) = channel();
        let mut context = Context::from_waker(Waker::noop());
        let mut blocker = Box::pin(pool.offload(move || gate.recv().map_err(|_| Error::internal("gone"))));
        assert!(blocker.as_mut().poll(&mut context).is_pending());
        let mut dropped = Box::pin(pool.offload(move || {
            told.send(()).expect("the receiver lives");
            Ok(())
        }));
        assert!(dropped.as_mut().poll(&mut context).is_pending());
        drop(dropped);
        release.send(()).expect("the blocker waits");
        assert_eq!(blocker.await, Ok(()));
        assert_eq!(pool.offload(|| Ok(7)).await, Ok(7));
        assert!(ran.try_recv().is_err());
    }
}
