//! Answers what is kept. Each model version has a lane, so that one that is slow or away holds up no other; a lane answers
//! in the order of the commits, some requests side by side, so that they batch.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use lrai_journal::entry::{Id, Progress};
use lrai_journal::fault::Fault;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::record::{Answered, Encoded, Request};
use super::{Durable, webhook};
use crate::dataplane::Dataplane;
use crate::error::{Code, Error, PANICKED, Result};

/// Requests of a lane that are computed side by side.
const MAX_WORKERS: usize = 64;
/// Requests of a lane that wait in memory with their bodies; the bodies of others are read again.
const MAX_HELD: usize = 64;
/// Pauses between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// A request to be answered.
pub struct Task {
    /// Its id.
    pub id: Id,
    /// What it says; `None` = it is read from the journal.
    pub request: Option<Request>,
}

/// The line of one model version.
#[derive(Default)]
pub struct Lane {
    waiting: VecDeque<Task>,
    workers: usize,
    /// Since when its model is away.
    failing: Option<Instant>,
}

/// Puts a request at the end of its lane.
pub fn push(dataplane: &Arc<Dataplane>, name: String, task: Task) {
    let Some(durable) = &dataplane.durable else { return };
    let mut lanes = durable.lanes.lock();
    let lane = lanes.entry(name.clone()).or_default();
    let request = task.request.filter(|_| lane.waiting.len() < MAX_HELD);
    lane.waiting.push_back(Task { request, ..task });
    if lane.workers < MAX_WORKERS {
        lane.workers += 1;
        tokio::spawn(worker_task(Arc::clone(dataplane), name));
    }
}

/// Takes up what a former server left.
pub fn replay(dataplane: &Arc<Dataplane>, runtime: &Handle) {
    let left = dataplane.durable.as_ref().map(|durable| std::mem::take(&mut *durable.left.lock()));
    let _entered = runtime.enter();
    for (id, lane) in left.into_iter().flatten() {
        push(dataplane, lane, Task { id, request: None });
    }
}

async fn worker_task(dataplane: Arc<Dataplane>, name: String) {
    let Some(durable) = &dataplane.durable else { return };
    while let Some(task) = durable.next(&name) {
        if let Err(error) = durable.run(&dataplane, &name, task).await {
            durable.tell("error", format!("a durable request is left for the next start: {error}"));
        }
    }
}

/// The time until what fails now is tried again.
struct Pause(Duration);

impl Pause {
    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = LAST_PAUSE.min(2 * self.0);
    }
}

impl Durable {
    fn next(&self, name: &str) -> Option<Task> {
        let mut lanes = self.lanes.lock();
        let lane = lanes.get_mut(name)?;
        let task = lane.waiting.pop_front().filter(|_| !self.is_draining.load(Relaxed));
        if task.is_none() {
            lane.workers -= 1;
            if lane.workers == 0 {
                lanes.remove(name);
            }
        }
        task
    }

    /// Computes a request, keeps its answer, and calls its webhook.
    async fn run(&self, dataplane: &Arc<Dataplane>, lane: &str, task: Task) -> Result<()> {
        let Some((id, answered)) = self.answered(dataplane, lane, task).await? else { return Ok(()) };
        if answered.webhook().is_some() {
            // A slow receiver does not hold up the lane.
            let (dataplane, lane) = (Arc::clone(dataplane), lane.to_owned());
            tokio::spawn(async move { webhook::call(&dataplane, id, &lane).await });
        }
        Ok(())
    }

    /// The answer, kept by now; `None` if the request was removed, or is left for the next server.
    async fn answered(
        &self,
        dataplane: &Arc<Dataplane>,
        lane: &str,
        Task { id, mut request }: Task,
    ) -> Result<Option<(Id, Answered)>> {
        let (began, mut pause) = (Instant::now(), Pause(FIRST_PAUSE));
        loop {
            let taken = match request.take() {
                Some(request) => request,
                None => match self.find(id).await? {
                    Some(Ok(request)) => request,
                    Some(Err(answered)) => return Ok(Some((id, answered))),
                    None => return Ok(None),
                },
            };
            let head = taken.head.clone();
            // The panic hook has told of a panic already.
            let outcome = AssertUnwindSafe(within_memory(dataplane, taken)).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Err(Error::internal(PANICKED)));
            let is_failure = outcome.is_err();
            if is_failure && self.is_draining.load(Relaxed) {
                return Ok(None);
            }
            if !self.is_final(lane, &outcome) && began.elapsed() < self.patience {
                pause.wait().await;
                continue;
            }
            let answered = Answered::new(&head, outcome);
            self.store(id, &answered).await?;
            return Ok(Some((id, answered)));
        }
    }

    /// The request, or the answer that is there already.
    pub(super) async fn find(&self, id: Id) -> Result<Option<Result<Request, Answered>>> {
        let found = self.insist(|| self.journal.find(id)).await?;
        let Some(found) = found else { return Ok(None) };
        Ok(Some(match found.progress {
            Progress::Waiting => Ok(Request::read(found.record)?),
            _ => Err(Answered::read(found.record)?),
        }))
    }

    /// Whether an outcome is the answer: a model that is away may come back, until patience is over for all of its lane.
    fn is_final(&self, name: &str, outcome: &Result<Encoded>) -> bool {
        let is_away = |error: &Error| matches!(error.code, Code::Unavailable | Code::NotFound);
        let mut lanes = self.lanes.lock();
        let Some(lane) = lanes.get_mut(name) else { return true };
        if !outcome.as_ref().is_err_and(is_away) {
            lane.failing = None;
            return true;
        }
        lane.failing.get_or_insert_with(Instant::now).elapsed() >= self.patience
    }

    async fn store(&self, id: Id, answered: &Answered) -> Result<()> {
        let progress = if answered.webhook().is_some() { Progress::Open } else { Progress::Done };
        self.insist(|| self.journal.answer(id, answered.to_record(), progress)).await
    }

    /// Tries until the journal does it, or patience is over.
    async fn insist<T, F: Future<Output = Result<T, Fault>>>(&self, act: impl Fn() -> F) -> Result<T> {
        let (began, mut pause) = (Instant::now(), Pause(FIRST_PAUSE));
        loop {
            match act().await {
                Err(_) if began.elapsed() < self.patience => pause.wait().await,
                outcome => return Ok(outcome?),
            }
        }
    }

    /// An answer was delivered, or cannot be.
    pub(super) async fn close(&self, id: Id) -> Result<()> {
        self.insist(|| self.journal.close(id)).await
    }
}

/// Computes a request whose body counts as held.
async fn within_memory(dataplane: &Arc<Dataplane>, request: Request) -> Result<Encoded> {
    let mut held = dataplane.memory.hold();
    held.grow(request.body.len())?;
    request.compute(dataplane).await
}
