//! The store in Redis: a stream of what is unfinished, a hash for each entry, each group of writes one transaction. With
//! `appendfsync always` Redis flushes its log once for the group, before it answers.

use std::collections::HashMap;
use std::time::Duration;

use ::redis::{Client, Connection, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, cmd, pipe};

use crate::entry::{Found, Id, Progress, Record};
use crate::fault::Fault;
use crate::planner::{Change, Planner, Row};
use crate::store::{Expired, MAX_EXPIRED, Outcome, Store, Totals, Write};

/// The stream of unfinished entries: `SEQ-0` with token and lane.
const UNFINISHED: &str = "lrai:unfinished";
/// Sequence numbers of answers, by the time at which they are to be forgotten.
const EXPIRING: &str = "lrai:expiring";
/// Bytes of all entries, and requests that wait.
const TOTALS: &str = "lrai:totals";
/// The writer's connection; there is one at a time.
const WRITER: &str = "lrai-journal";

/// How long Redis may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often, and with what pause, we look whether a former server's connection has gone.
const LOOKS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// A database of Redis.
pub struct Redis {
    client: Client,
    connection: Option<Connection>,
    is_writer: bool,
    /// What Redis calls the writer's last connection.
    own: Option<u64>,
    last: u64,
    /// Requests of a transaction whose outcome is unknown; they were refused, and go when Redis is there again.
    doubtful: Vec<Write>,
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        match error.code() {
            Some("OOM" | "MISCONF") => Self::NoSpace(error.to_string()),
            _ => Self::Failed(format!("Redis: {error}")),
        }
    }
}

fn entry_key(seq: u64) -> String {
    format!("lrai:entry:{seq}")
}

fn name_key(name: &str) -> String {
    format!("lrai:key:{name}")
}

impl Redis {
    /// The database, for the one server that writes; with sentences about what it does not promise.
    pub fn open(address: &str) -> Result<(Self, Vec<String>), Fault> {
        let mut redis = Self { is_writer: true, ..Self::read(address)? };
        let connection = redis.connect()?;
        let notes = doubts(connection);
        for look in 0.. {
            if is_alone(connection) {
                break;
            }
            if look == LOOKS {
                let text = "another server keeps its journal in this database of Redis";
                return Err(Fault::Failed(format!("{text}, hint: name another one, as in redis://HOST/1")));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        Ok((redis, notes))
    }

    /// The database, only to be read.
    pub fn read(address: &str) -> Result<Self, Fault> {
        let client = Client::open(address)?;
        let (connection, is_writer, own, last) = (None, false, None, 0);
        Ok(Self { client, connection, is_writer, own, last, doubtful: Vec::new() })
    }

    /// The connection; a lost one is made again.
    fn connect(&mut self) -> RedisResult<&mut Connection> {
        if let Some(connection) = self.connection.take() {
            return Ok(self.connection.insert(connection));
        }
        let mut new = self.client.get_connection_with_timeout(PATIENCE)?;
        new.set_read_timeout(Some(PATIENCE))?;
        new.set_write_timeout(Some(PATIENCE))?;
        if self.is_writer {
            cmd("CLIENT").arg("SETNAME").arg(WRITER).exec(&mut new)?;
            if let Some(own) = self.own {
                // Redis may not have noticed that it has gone.
                let _ = cmd("CLIENT").arg("KILL").arg("ID").arg(own).exec(&mut new);
                if !is_alone(&mut new) {
                    let why = "another server has taken over this database meanwhile";
                    return Err((ErrorKind::Client, why).into());
                }
            }
            self.own = cmd("CLIENT").arg("ID").query(&mut new).ok();
            self.last = self.last.max(last_seq(&mut new));
        }
        Ok(self.connection.insert(new))
    }

    /// Does something over the connection, which is given up if that fails.
    fn with<T>(&mut self, act: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T, Fault> {
        let outcome = self.connect().and_then(act);
        if outcome.is_err() {
            self.connection = None;
        }
        Ok(outcome?)
    }

    fn try_commit(&mut self, writes: &[Write]) -> Result<Vec<Outcome>, Fault> {
        let planner = self.with(|connection| known(connection, writes))?;
        let (outcomes, changes, last) = planner.plan(writes, self.last);
        self.last = last;
        let applied = self.with(|connection| apply(connection, &changes));
        if applied.is_err() {
            let accepted = outcomes.iter().filter_map(|outcome| match outcome {
                Outcome::Accepted(id) => Some(Write::Remove(*id)),
                _ => None,
            });
            self.doubtful.extend(accepted);
        }
        applied.map(|()| outcomes)
    }
}

/// The last number that the stream has given; 0 where it does not exist.
fn last_seq(connection: &mut Connection) -> u64 {
    let facts =
        cmd("XINFO").arg("STREAM").arg(UNFINISHED).query::<HashMap<String, ::redis::Value>>(connection);
    let last = facts.ok().and_then(|mut facts| facts.remove("last-generated-id"));
    let last = last.and_then(|last| ::redis::from_redis_value::<String>(last).ok());
    last.as_deref().map_or(0, seq_of)
}

/// The number in front of the hyphen of a stream's id.
fn seq_of(id: &str) -> u64 {
    id.split('-').next().and_then(|seq| seq.parse().ok()).unwrap_or(0)
}

/// Whether no other connection to this database writes a journal; where that may not be asked, it is assumed.
fn is_alone(connection: &mut Connection) -> bool {
    let ask = |connection: &mut Connection| {
        let own: u64 = cmd("CLIENT").arg("ID").query(connection)?;
        let list: String = cmd("CLIENT").arg("LIST").query(connection)?;
        RedisResult::Ok((own, list))
    };
    let Ok((own, list)) = ask(connection) else { return true };
    let database = format!("db={}", connection_database(&list, own));
    let is_other = |line: &str| {
        let has = |word: &str| line.split(' ').any(|one| one == word);
        has(&format!("name={WRITER}")) && has(&database) && !has(&format!("id={own}"))
    };
    !list.lines().any(is_other)
}

fn connection_database(list: &str, own: u64) -> &str {
    let own = format!("id={own}");
    let line = list.lines().find(|line| line.split(' ').any(|word| word == own)).unwrap_or_default();
    line.split(' ').find_map(|word| word.strip_prefix("db=")).unwrap_or("0")
}

/// What this Redis does not promise, in sentences.
fn doubts(connection: &mut Connection) -> Vec<String> {
    let mut ask = |pattern: &str| {
        cmd("CONFIG").arg("GET").arg(pattern).query::<HashMap<String, String>>(connection).unwrap_or_default()
    };
    let settings: HashMap<_, _> = ask("append*").into_iter().chain(ask("maxmemory*")).collect();
    let get = |name: &str| settings.get(name).map_or("unknown", String::as_str);
    let (only, sync, policy) = (get("appendonly"), get("appendfsync"), get("maxmemory-policy"));
    let mut notes = Vec::new();
    if (only, sync) != ("yes", "always") {
        notes.push(format!(
            "Redis may lose requests when power fails: appendonly is {only}, appendfsync is {sync}, \
             hint: set them to yes and always"
        ));
    }
    if get("maxmemory") != "0" && policy != "noeviction" {
        notes.push(format!(
            "Redis may drop requests when its memory is full: maxmemory-policy is {policy}, hint: set it to noeviction"
        ));
    }
    notes
}

/// What the database knows of the entries and names that the writes are about.
fn known(connection: &mut Connection, writes: &[Write]) -> RedisResult<Planner> {
    let (mut ids, mut names) = (Vec::new(), Vec::new());
    for write in writes {
        match write {
            Write::Accept { entry, .. } => names.extend(entry.key.iter().map(|key| key.name.clone())),
            Write::Answer { id, .. } | Write::Close(id) | Write::Remove(id) => ids.push(id.seq),
        }
    }
    let (mut about_names, mut about_ids) = (pipe(), pipe());
    for name in &names {
        about_names.cmd("GET").arg(name_key(name));
    }
    for seq in &ids {
        about_ids.cmd("HMGET").arg(entry_key(*seq)).arg(&["token", "size", "progress", "name"]);
    }
    let owners: Vec<Option<String>> = query(&about_names, connection)?;
    let rows: Vec<Vec<Option<String>>> = query(&about_ids, connection)?;
    Ok(Planner {
        rows: ids.into_iter().zip(rows).filter_map(|(seq, row)| Some((seq, read_row(row)?))).collect(),
        names: names
            .into_iter()
            .zip(owners)
            .filter_map(|(name, owner)| Some((name, read_owner(&owner?)?)))
            .collect(),
    })
}

/// The answers to all commands, of which there may be none.
fn query<T: FromRedisValue>(commands: &Pipeline, connection: &mut Connection) -> RedisResult<Vec<T>> {
    if commands.is_empty() { Ok(Vec::new()) } else { commands.query(connection) }
}

/// Reads `token, size, progress, name`.
fn read_row(fields: Vec<Option<String>>) -> Option<Row> {
    let mut fields = fields.into_iter();
    let mut next = || fields.next().flatten();
    let token = u128::from_str_radix(&next()?, 16).ok()?;
    let (size, is_waiting) = (next()?.parse().ok()?, next()? == "0");
    Some(Row { token, size, is_waiting, name: next() })
}

/// Reads an id and a digest.
fn read_owner(text: &str) -> Option<(Id, String)> {
    let (id, digest) = text.split_once(' ')?;
    Some((id.parse().ok()?, digest.to_owned()))
}

/// Makes all changes in one transaction.
fn apply(connection: &mut Connection, changes: &[Change<'_>]) -> RedisResult<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let (mut all, mut bytes, mut waiting) = (pipe(), 0, 0);
    all.atomic();
    for change in changes {
        match change {
            Change::Insert { id, lane, name, request } => {
                let (stream_id, token) = (format!("{}-0", id.seq), format!("{:x}", id.token));
                all.cmd("XADD").arg(UNFINISHED).arg(stream_id).arg("token").arg(&token);
                all.arg("lane").arg(lane).ignore();
                all.cmd("HSET").arg(entry_key(id.seq)).arg("token").arg(token).arg("lane").arg(lane);
                fields(&mut all, Progress::Waiting, request);
                if let Some((name, digest)) = name {
                    all.arg("name").arg(name).ignore();
                    all.cmd("SET").arg(name_key(name)).arg(format!("{id} {digest}"));
                }
                all.ignore();
                (bytes, waiting) = (bytes + request.size() as i64, waiting + 1);
            }
            Change::Answer { seq, before, answer, progress, expires_ms } => {
                all.cmd("HSET").arg(entry_key(*seq));
                fields(&mut all, *progress, answer);
                all.arg("expires").arg(expires_ms).ignore();
                all.cmd("ZADD").arg(EXPIRING).arg(expires_ms).arg(seq).ignore();
                if *progress == Progress::Done {
                    all.cmd("XDEL").arg(UNFINISHED).arg(format!("{seq}-0")).ignore();
                }
                bytes += answer.size() as i64 - before.size as i64;
                waiting -= 1;
            }
            Change::Close { seq } => {
                all.cmd("HSET").arg(entry_key(*seq)).arg("progress").arg(2).ignore();
                all.cmd("XDEL").arg(UNFINISHED).arg(format!("{seq}-0")).ignore();
            }
            Change::Remove { seq, before } => {
                all.cmd("DEL").arg(entry_key(*seq));
                if let Some(name) = &before.name {
                    all.arg(name_key(name));
                }
                all.ignore();
                all.cmd("XDEL").arg(UNFINISHED).arg(format!("{seq}-0")).ignore();
                all.cmd("ZREM").arg(EXPIRING).arg(seq).ignore();
                (bytes, waiting) = (bytes - before.size as i64, waiting - i64::from(before.is_waiting));
            }
        }
    }
    all.cmd("HINCRBY").arg(TOTALS).arg("bytes").arg(bytes).ignore();
    all.cmd("HINCRBY").arg(TOTALS).arg("waiting").arg(waiting).ignore();
    all.exec(connection)
}

fn fields(all: &mut Pipeline, progress: Progress, record: &Record) {
    all.arg("progress").arg(progress as u8).arg("size").arg(record.size());
    all.arg("head").arg(&record.head).arg("body").arg(&record.body[..]);
}

impl Store for Redis {
    fn commit(&mut self, writes: &[Write]) -> Result<Vec<Outcome>, Fault> {
        if !self.doubtful.is_empty() {
            self.try_commit(&self.doubtful.clone())?;
            self.doubtful.clear();
        }
        self.try_commit(writes)
    }

    fn expire(&mut self, now_ms: u64) -> Result<Expired, Fault> {
        let seqs: Vec<u64> = self.with(|connection| {
            let mut range = cmd("ZRANGEBYSCORE");
            range.arg(EXPIRING).arg("-inf").arg(now_ms).arg("LIMIT").arg(0).arg(MAX_EXPIRED);
            range.query(connection)
        })?;
        let mut tokens = pipe();
        for seq in &seqs {
            tokens.cmd("HGET").arg(entry_key(*seq)).arg("token");
        }
        let tokens: Vec<Option<String>> = self.with(|connection| query(&tokens, connection))?;
        let (mut removals, mut lost) = (Vec::new(), pipe());
        for (seq, token) in seqs.iter().zip(tokens) {
            match token.and_then(|token| u128::from_str_radix(&token, 16).ok()) {
                Some(token) => removals.push(Write::Remove(Id { seq: *seq, token })),
                // Redis has dropped the entry; its time must not stand before those of others.
                None => _ = lost.cmd("ZREM").arg(EXPIRING).arg(seq).ignore(),
            }
        }
        if !lost.is_empty() {
            self.with(|connection| lost.exec(connection))?;
        }
        let outcomes = if removals.is_empty() { Vec::new() } else { self.try_commit(&removals)? };
        let size = |outcome| if let Outcome::Changed { size, .. } = outcome { size } else { 0 };
        Ok(Expired { bytes: outcomes.into_iter().map(size).sum(), has_more: seqs.len() == MAX_EXPIRED })
    }

    fn find(&mut self, id: Id, now_ms: u64) -> Result<Option<Found>, Fault> {
        let mut row: HashMap<String, Vec<u8>> =
            self.with(|connection| cmd("HGETALL").arg(entry_key(id.seq)).query(connection))?;
        let text = |name: &str| row.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
        let is_past =
            text("expires").and_then(|time| time.parse::<u64>().ok()).is_some_and(|time| time <= now_ms);
        if text("token") != Some(format!("{:x}", id.token)) || is_past {
            return Ok(None);
        }
        let progress = match text("progress").as_deref() {
            Some("0") => Progress::Waiting,
            Some("1") => Progress::Open,
            _ => Progress::Done,
        };
        let mut take = |name: &str| row.remove(name).unwrap_or_default();
        Ok(Some(Found { record: Record { head: take("head"), body: take("body").into() }, progress }))
    }

    fn unfinished(&mut self, after: u64, limit: usize) -> Result<Vec<(Id, String)>, Fault> {
        let rows: Vec<(String, HashMap<String, String>)> = self.with(|connection| {
            let mut range = cmd("XRANGE");
            range.arg(UNFINISHED).arg(format!("{}-0", after + 1)).arg("+").arg("COUNT").arg(limit);
            range.query(connection)
        })?;
        let row = |(id, mut fields): (String, HashMap<String, String>)| {
            let token = u128::from_str_radix(fields.get("token")?, 16).ok()?;
            Some((Id { seq: seq_of(&id), token }, fields.remove("lane")?))
        };
        Ok(rows.into_iter().filter_map(row).collect())
    }

    fn totals(&mut self) -> Result<Totals, Fault> {
        let totals: HashMap<String, i64> =
            self.with(|connection| cmd("HGETALL").arg(TOTALS).query(connection))?;
        let get = |name: &str| totals.get(name).copied().unwrap_or(0).max(0) as u64;
        Ok(Totals { bytes: get("bytes"), waiting: get("waiting") })
    }
}
