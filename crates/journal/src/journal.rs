//! The journal: what its owner calls. Nothing here waits for a disk; the threads do.

use std::fmt::{Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::oneshot;

use crate::counters::Counters;
use crate::entry::{Entry, Found, Id, Progress, Record};
use crate::fault::Fault;
use crate::redis::Redis;
use crate::sqlite::Sqlite;
use crate::store::{Outcome, Store, Write};
use crate::threads::{Job, Question, now_ms, read, write};

/// Ids that are read at once.
const PAGE: usize = 4096;

/// Where the entries lie.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A file of `SQLite` in a folder.
    Folder(PathBuf),
    /// A database of Redis; `redis://[user:password@]host[:port][/number]`.
    Redis(String),
}

impl FromStr for Place {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.split_once(':') {
            Some(("sqlite", folder)) if !folder.is_empty() => Ok(Self::Folder(folder.into())),
            Some(("redis" | "redis+unix" | "unix", _)) => Ok(Self::Redis(text.to_owned())),
            _ => Err(Fault::Failed("it lies in sqlite:FOLDER or redis://HOST:PORT".into())),
        }
    }
}

impl Display for Place {
    /// As log lines have it, without a password.
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(formatter),
            Self::Redis(address) => {
                let (scheme, rest) = address.split_once("://").unwrap_or(("redis", address));
                let rest = rest.rsplit('@').next().unwrap_or_default();
                write!(formatter, "{scheme}://{}", rest.split('?').next().unwrap_or_default())
            }
        }
    }
}

/// What the journal keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of requests and answers; answers are never refused, their work is done.
    pub max_bytes: u64,
    /// How long an answer is kept.
    pub keep: Duration,
}

/// A journal at work; its threads end with it.
pub struct Journal {
    /// What it has done and holds.
    pub counters: Arc<Counters>,
    limits: Limits,
    jobs: Sender<Job>,
    questions: Sender<Question>,
}

/// What became of a request that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub id: Id,
    /// Whether it was taken now; else its idempotency key was known.
    pub is_new: bool,
}

/// A journal that was opened.
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// Ids and lanes of what a former server left: requests that wait and answers that are open, oldest first.
    pub unfinished: Vec<(Id, String)>,
    /// Sentences about what the place does not promise.
    pub notes: Vec<String>,
}

impl Journal {
    /// Opens or makes a journal; waits for the disk or the network.
    pub fn open(place: &Place, limits: Limits) -> Result<Opened, Fault> {
        let (mut writer, reader, notes): (Box<dyn Store>, Box<dyn Store>, _) = match place {
            Place::Folder(folder) => {
                (Box::new(Sqlite::create(folder)?), Box::new(Sqlite::read(folder)?), Vec::new())
            }
            Place::Redis(address) => {
                let (writer, notes) = Redis::open(address).map_err(|fault| fault.at(place))?;
                (Box::new(writer), Box::new(Redis::read(address)?), notes)
            }
        };
        let unfinished = unfinished(&mut *writer)?;
        let counters = Arc::<Counters>::default();
        counters.follow(writer.totals()?);
        let ((jobs, waiting), (questions, asked)) = (channel(), channel());
        let shared = Arc::clone(&counters);
        start("lrai-journal", move || write(writer, &waiting, &shared))?;
        start("lrai-journal-read", move || read(reader, &asked))?;
        Ok(Opened { journal: Self { counters, limits, jobs, questions }, unfinished, notes })
    }

    async fn write(&self, write: Write) -> Result<Outcome, Fault> {
        let (reply, outcome) = oneshot::channel();
        self.jobs.send(Job { write, reply }).map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }

    /// Keeps a request: when this returns, it survives a loss of power. Dropping the future does not take it back.
    pub async fn accept(&self, entry: Entry) -> Result<Accepted, Fault> {
        let limit = self.limits.max_bytes;
        let reserved = self.counters.reserve(entry.request.size(), limit);
        reserved.map_err(|used| Fault::Full { used, limit })?;
        let name = entry.key.as_ref().map(|key| key.name.clone()).unwrap_or_default();
        match self.write(Write::Accept { token: token(), entry }).await? {
            Outcome::Accepted(id) => Ok(Accepted { id, is_new: true }),
            Outcome::Known(id) => Ok(Accepted { id, is_new: false }),
            _ => Err(Fault::Conflict(name)),
        }
    }

    /// Puts an answer in its request's place, to be kept for its time from now on; one that was removed stays away.
    pub async fn answer(&self, id: Id, answer: Record, progress: Progress) -> Result<(), Fault> {
        let expires_ms = now_ms() + self.limits.keep.as_millis() as u64;
        self.write(Write::Answer { id, answer, progress, expires_ms }).await.map(drop)
    }

    /// Nothing is to be done with an answer any more.
    pub async fn close(&self, id: Id) -> Result<(), Fault> {
        self.write(Write::Close(id)).await.map(drop)
    }

    /// Forgets an entry; false = there is none.
    pub async fn remove(&self, id: Id) -> Result<bool, Fault> {
        self.write(Write::Remove(id)).await.map(|outcome| outcome != Outcome::Missing)
    }

    /// The entry with this id.
    pub async fn find(&self, id: Id) -> Result<Option<Found>, Fault> {
        let (reply, found) = oneshot::channel();
        self.questions.send(Question { id, reply }).map_err(|_| ended())?;
        found.await.map_err(|_| ended())?
    }
}

fn unfinished(store: &mut dyn Store) -> Result<Vec<(Id, String)>, Fault> {
    let mut all: Vec<(Id, String)> = Vec::new();
    loop {
        let page = store.unfinished(all.last().map_or(0, |(id, _)| id.seq), PAGE)?;
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
    let started = thread::Builder::new().name(name.into()).spawn(run);
    started.map(drop).map_err(|why| Fault::Failed(format!("cannot start a thread: {why}")))
}

#[cold]
fn ended() -> Fault {
    Fault::Failed("its thread has ended".into())
}

/// A number that nobody can guess.
fn token() -> u128 {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).expect("the kernel gives 16 bytes at once");
    u128::from_ne_bytes(bytes)
}
