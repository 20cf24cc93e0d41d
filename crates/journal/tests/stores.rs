//! Both stores do the same, lose nothing that was committed, and keep their books.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lrai_journal::entry::{Entry, Id, Key, Progress, Record};
use lrai_journal::fault::Fault;
use lrai_journal::journal::{Journal, Limits, Place};
use lrai_journal::redis::Redis;
use lrai_journal::sqlite::Sqlite;
use lrai_journal::store::{Expired, MAX_EXPIRED, Outcome, Store, Totals, Write};
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

/// A Redis of this test's own; it ends with it.
struct RedisServer {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RedisServer {
    /// `None` where Debian's package redis-server is not installed.
    fn start(settings: &[&str]) -> Option<Self> {
        let folder = tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--save", "", "--dir"]).arg(folder.path()).args(settings);
        let Ok(child) = command.stdout(Stdio::null()).spawn() else {
            println!("skipped: redis-server is not installed");
            return None;
        };
        let server = Self { child, port, _folder: folder };
        let end = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "redis-server does not listen");
            sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    fn durable() -> Option<Self> {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    fn address(&self, database: u32) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }
}

fn record(text: &str) -> Record {
    Record { head: text.as_bytes().to_vec(), body: text.repeat(3).into_bytes().into() }
}

fn accept(token: u128, name: Option<(&str, u8)>, text: &str) -> Write {
    let key = name.map(|(name, digest)| Key { name: name.into(), digest: [digest; 32] });
    Write::Accept { token, entry: Entry { lane: format!("lane {text}"), key, request: record(text) } }
}

fn answer(id: Id, text: &str, progress: Progress, expires_ms: u64) -> Write {
    Write::Answer { id, answer: record(text), progress, expires_ms }
}

fn accepted(outcome: &Outcome) -> Id {
    match outcome {
        Outcome::Accepted(id) => *id,
        other => panic!("{other:?}"),
    }
}

/// What every store does.
fn holds_the_contract(store: &mut dyn Store) {
    let outcomes = store
        .commit(&[
            accept(11, Some(("a", 1)), "one"),
            accept(12, None, "two"),
            accept(13, Some(("a", 1)), "again"),
            accept(14, Some(("a", 2)), "other"),
        ])
        .unwrap();
    let (one, two) = (accepted(&outcomes[0]), accepted(&outcomes[1]));
    assert_eq!(outcomes[2..], [Outcome::Known(one), Outcome::Conflict]);
    assert!(one.seq < two.seq && one.token == 11);
    assert_eq!(store.commit(&[accept(15, Some(("a", 1)), "late")]).unwrap(), [Outcome::Known(one)]);
    assert_eq!(store.commit(&[accept(16, Some(("a", 3)), "late")]).unwrap(), [Outcome::Conflict]);

    let (size_one, size_two) = (record("one").size(), record("two").size());
    assert_eq!(store.totals().unwrap(), Totals { bytes: size_one + size_two, waiting: 2 });
    assert_eq!(store.unfinished(0, 9).unwrap(), [(one, "lane one".to_owned()), (two, "lane two".to_owned())]);
    assert_eq!(store.unfinished(0, 1).unwrap().len(), 1);
    assert_eq!(store.unfinished(one.seq, 9).unwrap(), [(two, "lane two".to_owned())]);
    let found = store.find(one, 0).unwrap().unwrap();
    assert_eq!((found.record, found.progress), (record("one"), Progress::Waiting));
    assert_eq!(store.find(Id { token: 99, ..one }, 0).unwrap(), None);

    let forged = answer(Id { token: 99, ..one }, "forged", Progress::Done, 1000);
    let real = answer(one, "answer", Progress::Open, 1000);
    let outcomes = store.commit(&[forged, real, Write::Close(two)]).unwrap();
    let before = Outcome::Changed { size: size_one, was_waiting: true };
    assert_eq!(outcomes, [Outcome::Missing, before, Outcome::Missing]);
    let found = store.find(one, 999).unwrap().unwrap();
    assert_eq!((found.record, found.progress), (record("answer"), Progress::Open));
    assert_eq!(store.find(one, 1000).unwrap(), None);
    assert_eq!(store.unfinished(0, 9).unwrap().len(), 2);
    store.commit(&[Write::Close(one)]).unwrap();
    assert_eq!(store.unfinished(0, 9).unwrap(), [(two, "lane two".to_owned())]);
    assert_eq!(store.find(one, 0).unwrap().unwrap().progress, Progress::Done);

    assert_eq!(store.expire(999).unwrap(), Expired::default());
    let expired = Expired { bytes: record("answer").size(), has_more: false };
    assert_eq!(store.expire(1000).unwrap(), expired);
    assert_eq!(store.find(one, 0).unwrap(), None);
    let gone = Outcome::Changed { size: size_two, was_waiting: true };
    assert_eq!(store.commit(&[Write::Remove(two), Write::Remove(two)]).unwrap(), [gone, Outcome::Missing]);
    assert_eq!(store.totals().unwrap(), Totals::default());
    let third = accepted(&store.commit(&[accept(17, Some(("a", 3)), "new")]).unwrap()[0]);
    assert!(third.seq > two.seq, "numbers are not used twice");
    store.commit(&[Write::Remove(third)]).unwrap();
    forgets_in_parts(store);
}

/// Thousands of answers whose time has passed hold up nobody, and are all forgotten.
fn forgets_in_parts(store: &mut dyn Store) {
    let writes: Vec<_> = (0..=MAX_EXPIRED).map(|at| accept(at as u128, None, "x")).collect();
    let ids: Vec<_> = store.commit(&writes).unwrap().iter().map(accepted).collect();
    let answers: Vec<_> = ids.into_iter().map(|id| answer(id, "x", Progress::Done, 1000)).collect();
    store.commit(&answers).unwrap();
    let one = record("x").size();
    let part = Expired { bytes: MAX_EXPIRED as u64 * one, has_more: true };
    assert_eq!(store.expire(1000).unwrap(), part);
    assert_eq!(store.expire(1000).unwrap(), Expired { bytes: one, has_more: false });
    assert_eq!(store.totals().unwrap(), Totals::default());
}

#[test]
fn sqlite_holds_the_contract() {
    let folder = tempdir().unwrap();
    holds_the_contract(&mut Sqlite::create(folder.path()).unwrap());
}

#[test]
fn redis_holds_the_contract() {
    let Some(server) = RedisServer::durable() else { return };
    let (mut store, notes) = Redis::open(&server.address(0)).unwrap();
    assert_eq!(notes, Vec::<String>::new());
    holds_the_contract(&mut store);
}

#[test]
fn a_redis_that_may_lose_requests_is_told_of() {
    let Some(server) = RedisServer::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"])
    else {
        return;
    };
    let (_store, notes) = Redis::open(&server.address(0)).unwrap();
    assert!(notes[0].contains("appendonly is no, appendfsync is everysec"), "{notes:?}");
    assert!(notes[1].contains("maxmemory-policy is allkeys-lru"), "{notes:?}");
}

#[test]
fn a_second_server_is_refused() {
    let folder = tempdir().unwrap();
    let first = Sqlite::create(folder.path()).unwrap();
    let refused = Sqlite::create(folder.path()).err().unwrap();
    assert!(refused.to_string().contains("another server keeps its journal there"), "{refused}");
    drop(first);
    Sqlite::create(folder.path()).unwrap();
    let Some(server) = RedisServer::durable() else { return };
    let first = Redis::open(&server.address(0)).unwrap();
    let refused = Redis::open(&server.address(0)).err().unwrap();
    assert!(refused.to_string().contains("another server keeps its journal"), "{refused}");
    Redis::open(&server.address(1)).expect("another database");
    drop(first);
    Redis::open(&server.address(0)).expect("the first one has gone");
}

#[test]
fn a_redis_that_went_away_is_found_again() {
    let Some(server) = RedisServer::durable() else { return };
    let (mut store, _) = Redis::open(&server.address(0)).unwrap();
    let first = accepted(&store.commit(&[accept(1, None, "before")]).unwrap()[0]);
    let mut killer = redis_client(&server);
    redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .exec(&mut killer)
        .unwrap();
    assert!(matches!(store.commit(&[accept(2, None, "meanwhile")]), Err(Fault::Failed(_))));
    let second = accepted(&store.commit(&[accept(3, None, "after")]).unwrap()[0]);
    let waiting: Vec<_> = store.unfinished(0, 9).unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(waiting, [first, second], "what was refused is not there");
}

#[test]
fn a_server_whose_redis_was_taken_over_writes_no_more() {
    let Some(server) = RedisServer::durable() else { return };
    let (mut first, _) = Redis::open(&server.address(0)).unwrap();
    first.commit(&[accept(1, None, "before")]).unwrap();
    let mut killer = redis_client(&server);
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec(&mut killer).unwrap();
    let (mut second, _) = Redis::open(&server.address(0)).unwrap();
    for _ in 0..3 {
        let refused = first.commit(&[accept(2, None, "too late")]).unwrap_err();
        assert!(matches!(refused, Fault::Failed(_)), "{refused}");
    }
    let refused = first.commit(&[]).unwrap_err();
    assert!(refused.to_string().contains("taken over"), "{refused}");
    second.commit(&[accept(3, None, "after")]).unwrap();
    assert_eq!(second.unfinished(0, 9).unwrap().len(), 2);
    drop(second);
    let end = Instant::now() + Duration::from_secs(20);
    while first.commit(&[accept(4, None, "again")]).is_err() {
        assert!(Instant::now() < end, "the database is free again");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_entry_that_redis_has_dropped_does_not_stand_before_others() {
    let Some(server) = RedisServer::durable() else { return };
    let (mut store, _) = Redis::open(&server.address(0)).unwrap();
    let id = accepted(&store.commit(&[accept(1, None, "x")]).unwrap()[0]);
    store.commit(&[answer(id, "x", Progress::Done, 1000)]).unwrap();
    let mut client = redis_client(&server);
    redis::cmd("DEL").arg(format!("lrai:entry:{}", id.seq)).exec(&mut client).unwrap();
    assert_eq!(store.expire(1000).unwrap(), Expired::default());
    let left: u64 = redis::cmd("ZCARD").arg("lrai:expiring").query(&mut client).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn a_redis_that_is_not_there_is_named_with_a_hint() {
    let limits = Limits { max_bytes: 1, keep: Duration::from_secs(1) };
    for address in ["redis://", "redis://:1:2", "redis://u:secret@127.0.0.1:1/0", "redis://127.0.0.1:1/x"] {
        let place: Place = address.parse().unwrap();
        let text = Journal::open(&place, limits).err().unwrap().to_string();
        assert!(text.contains("hint: ") && text.contains(&place.to_string()), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

fn redis_client(server: &RedisServer) -> redis::Connection {
    redis::Client::open(server.address(0)).unwrap().get_connection().unwrap()
}

/// A step of a random history; entries are chosen by their places in it.
#[derive(Clone, Debug)]
enum Step {
    Accept(Option<(u8, u8)>),
    Answer(usize, bool),
    Close(usize),
    Remove(usize),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        4 => proptest::option::of((0..4u8, 0..2u8)).prop_map(Step::Accept),
        3 => (0..20usize, any::<bool>()).prop_map(|(at, open)| Step::Answer(at, open)),
        1 => (0..20usize).prop_map(Step::Close),
        1 => (0..20usize).prop_map(Step::Remove),
        1 => Just(Step::Reopen),
    ];
    vec(vec(step, 1..6), 1..10)
}

/// Runs a history in groups and compares with a plain map after each.
fn follows_the_model(groups: Vec<Vec<Step>>, open: impl Fn() -> Box<dyn Store>) {
    let mut store = open();
    let (mut model, mut ids) = (HashMap::<Id, (Record, Progress)>::new(), Vec::<Id>::new());
    let mut names = HashMap::<u8, (Id, u8)>::new();
    let mut token = 0;
    for group in groups {
        if group.iter().any(|step| matches!(step, Step::Reopen)) {
            drop(store);
            store = open();
        }
        // Groups refer to entries of earlier groups only, whose ids are known.
        let (known, mut writes, mut kept) = (ids.clone(), Vec::new(), Vec::new());
        let pick = |at: usize| (!known.is_empty()).then(|| known[at % known.len()]);
        for step in group {
            token += 1;
            let write = match &step {
                Step::Accept(None) => accept(token, None, "text"),
                Step::Accept(Some((name, digest))) => {
                    accept(token, Some((&name.to_string(), *digest)), "text")
                }
                Step::Answer(at, open) => {
                    let Some(id) = pick(*at) else { continue };
                    answer(
                        id,
                        "an answer",
                        if *open { Progress::Open } else { Progress::Done },
                        u64::MAX >> 12,
                    )
                }
                Step::Close(at) => Write::Close(if let Some(id) = pick(*at) { id } else { continue }),
                Step::Remove(at) => Write::Remove(if let Some(id) = pick(*at) { id } else { continue }),
                Step::Reopen => continue,
            };
            writes.push(write);
            kept.push(step);
        }
        for ((write, step), outcome) in writes.iter().zip(kept).zip(store.commit(&writes).unwrap()) {
            follow(&mut model, &mut names, (write, &step), &outcome);
            if let Outcome::Accepted(id) = outcome {
                ids.push(id);
            }
        }
        for id in &ids {
            let found = store.find(*id, 0).unwrap().map(|found| (found.record, found.progress));
            assert_eq!(found, model.get(id).cloned());
        }
        let bytes = model.values().map(|(record, _)| record.size()).sum();
        let is_waiting = |entry: &&(Record, Progress)| entry.1 == Progress::Waiting;
        let waiting = model.values().filter(is_waiting).count() as u64;
        assert_eq!(store.totals().unwrap(), Totals { bytes, waiting });
        let mut unfinished: Vec<_> =
            model.iter().filter(|(_, entry)| entry.1 != Progress::Done).map(|(id, _)| *id).collect();
        unfinished.sort_by_key(|id| id.seq);
        let listed: Vec<_> = store.unfinished(0, 1000).unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(listed, unfinished);
    }
    let all: Vec<_> = model.into_keys().map(Write::Remove).collect();
    store.commit(&all).unwrap();
}

/// Does to the model what the write must do, and compares outcomes.
fn follow(
    model: &mut HashMap<Id, (Record, Progress)>,
    names: &mut HashMap<u8, (Id, u8)>,
    (write, step): (&Write, &Step),
    outcome: &Outcome,
) {
    let changed = |entry: Option<&(Record, Progress)>| {
        entry.map_or(Outcome::Missing, |(record, progress)| Outcome::Changed {
            size: record.size(),
            was_waiting: *progress == Progress::Waiting,
        })
    };
    match (write, step) {
        (Write::Accept { entry, .. }, Step::Accept(name)) => {
            match name.and_then(|(name, _)| names.get(&name)) {
                Some((owner, digest)) if name.is_some_and(|(_, new)| new == *digest) => {
                    assert_eq!(outcome, &Outcome::Known(*owner));
                }
                Some(_) => assert_eq!(outcome, &Outcome::Conflict),
                None => {
                    let id = accepted(outcome);
                    model.insert(id, (entry.request.clone(), Progress::Waiting));
                    names.extend(name.map(|(name, digest)| (name, (id, digest))));
                }
            }
        }
        (Write::Answer { id, answer, progress, .. }, _) => {
            let waiting = model.get(id).filter(|entry| entry.1 == Progress::Waiting);
            assert_eq!(outcome, &changed(waiting));
            if let Some(entry) = model.get_mut(id).filter(|entry| entry.1 == Progress::Waiting) {
                *entry = (answer.clone(), *progress);
            }
        }
        (Write::Close(id), _) => {
            let answered = model.get(id).filter(|entry| entry.1 != Progress::Waiting);
            assert_eq!(outcome, &changed(answered));
            if let Some(entry) = model.get_mut(id).filter(|entry| entry.1 == Progress::Open) {
                entry.1 = Progress::Done;
            }
        }
        (Write::Remove(id), _) => {
            assert_eq!(outcome, &changed(model.get(id)));
            model.remove(id);
            names.retain(|_, (owner, _)| owner != id);
        }
        _ => unreachable!("a write is made from its step"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_follows_the_model(groups in steps()) {
        let folder = tempdir().unwrap();
        follows_the_model(groups, || Box::new(Sqlite::create(folder.path()).unwrap()));
    }

    /// Power fails while a group is being written: any part of what was not yet flushed may be there or not.
    #[test]
    fn a_torn_write_loses_no_committed_entry(
        sizes in vec(1..40usize, 2..6), cut in 0.0..1.0f64, garbage in vec(any::<u8>(), 0..64)
    ) {
        let (folder, copy) = (tempdir().unwrap(), tempdir().unwrap());
        let mut store = Sqlite::create(folder.path()).unwrap();
        let (mut committed, mut flushed) = (Vec::new(), 0);
        let log = folder.path().join("journal.sqlite-wal");
        for (index, size) in sizes.iter().enumerate() {
            let writes: Vec<_> = (0..*size).map(|at| accept(at as u128, None, &"x".repeat(100 * at))).collect();
            let ids: Vec<_> = store.commit(&writes).unwrap().iter().map(accepted).collect();
            if index + 1 < sizes.len() {
                flushed = fs::metadata(&log).unwrap().len();
                committed.extend(ids);
            }
        }
        let mut bytes = fs::read(&log).unwrap();
        let len = flushed as usize + (cut * (bytes.len() - flushed as usize) as f64) as usize;
        bytes.truncate(len);
        bytes.extend(garbage);
        fs::copy(folder.path().join("journal.sqlite"), copy.path().join("journal.sqlite")).unwrap();
        fs::write(copy.path().join("journal.sqlite-wal"), bytes).unwrap();
        let found = left(copy.path());
        prop_assert!(committed.iter().all(|id| found.contains(id)));
        let total: usize = sizes.iter().sum();
        prop_assert!(found.len() == committed.len() || found.len() == total, "a group is there whole or not at all");
    }
}

fn left(folder: &Path) -> Vec<Id> {
    let mut store = Sqlite::create(folder).unwrap();
    store.unfinished(0, usize::MAX >> 1).unwrap().into_iter().map(|(id, _)| id).collect()
}

#[test]
fn redis_follows_the_model() {
    let Some(server) = RedisServer::durable() else { return };
    let config = ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(groups in steps())| {
        follows_the_model(groups, || Box::new(Redis::open(&server.address(0)).unwrap().0));
    });
}

fn entry(text: &str) -> Entry {
    Entry { lane: "lane".into(), key: None, request: record(text) }
}

#[tokio::test]
async fn requests_that_come_together_are_committed_together_and_found_after_a_restart() {
    let folder = tempdir().unwrap();
    let place = Place::Folder(folder.path().into());
    let limits = Limits { max_bytes: 1 << 30, keep: Duration::from_secs(60) };
    let journal = Journal::open(&place, limits).unwrap().journal;
    let accepts = (0..500).map(|index| journal.accept(entry(&index.to_string())));
    let ids: Vec<_> =
        futures_util::future::join_all(accepts).await.into_iter().map(|one| one.unwrap().id).collect();
    let commits = journal.counters.commits.load(Relaxed);
    assert!(commits < 250, "{commits} commits for 500 requests");
    journal.answer(ids[0], record("answer"), Progress::Done).await.unwrap();
    assert_eq!(journal.find(ids[0]).await.unwrap().unwrap().record, record("answer"));
    assert_eq!(journal.counters.waiting.load(Relaxed), 499);
    let bytes = journal.counters.bytes.load(Relaxed);
    drop(journal);
    let again = reopen(&place, limits);
    assert_eq!(again.unfinished.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[1..]);
    assert_eq!(again.journal.counters.bytes.load(Relaxed), bytes);
}

/// Opens a journal whose threads may still be ending.
fn reopen(place: &Place, limits: Limits) -> lrai_journal::journal::Opened {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match Journal::open(place, limits) {
            Ok(opened) => return opened,
            Err(fault) => assert!(Instant::now() < end, "{fault}"),
        }
        sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_full_journal_refuses_at_once_until_something_goes() {
    let folder = tempdir().unwrap();
    let one = entry("x").request.size();
    let limits = Limits { max_bytes: 2 * one, keep: Duration::from_secs(60) };
    let journal = Journal::open(&Place::Folder(folder.path().into()), limits).unwrap().journal;
    let first = journal.accept(entry("x")).await.unwrap().id;
    journal.accept(entry("y")).await.unwrap();
    let refused = journal.accept(entry("z")).await.unwrap_err();
    assert_eq!(refused, Fault::Full { used: 2 * one, limit: 2 * one });
    assert!(journal.remove(first).await.unwrap());
    assert!(!journal.remove(first).await.unwrap());
    journal.accept(entry("z")).await.unwrap();
    assert_eq!(journal.counters.refused.load(Relaxed), 1);
}

#[test]
fn a_place_shows_no_password() {
    let place: Place = "redis://user:secret@host:1/2".parse().unwrap();
    assert_eq!(place.to_string(), "redis://host:1/2");
    let place: Place = "redis+unix:///run/redis.sock?db=1&pass=secret".parse().unwrap();
    assert_eq!(place.to_string(), "redis+unix:///run/redis.sock");
    assert_eq!("sqlite:/x/y".parse::<Place>().unwrap().to_string(), "/x/y");
    assert!("postgres://host".parse::<Place>().is_err());
}
