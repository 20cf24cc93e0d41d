//! The store in a file: `SQLite` with a write-ahead log that is flushed with every commit.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, named_params, params};
use rustix::fs::{FlockOperation, flock};

use crate::entry::{Entry, Found, Id, Progress, Record};
use crate::fault::Fault;
use crate::store::{Expired, MAX_EXPIRED, Outcome, Store, Totals, Write};

/// The file's layout; a file of another one is not touched.
const VERSION: i64 = 1;

/// How long a connection waits for another one of ours.
const PATIENCE: Duration = Duration::from_secs(5);

/// `progress`: 0 = waiting, 1 = open, 2 = done. `expires` is NULL while it waits.
const LAYOUT: &str = "
    CREATE TABLE entries (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        token BLOB NOT NULL,
        lane TEXT NOT NULL,
        name TEXT UNIQUE,
        digest BLOB,
        progress INTEGER NOT NULL,
        size INTEGER NOT NULL,
        expires INTEGER,
        head BLOB NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX unfinished ON entries (seq) WHERE progress < 2;
    CREATE INDEX expiring ON entries (expires) WHERE expires IS NOT NULL;
    PRAGMA user_version = 1;
";

/// A file, open for writing by one server or for reading.
pub struct Sqlite {
    connection: Connection,
    #[expect(dead_code, reason = "it is locked")]
    lock: Option<File>,
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::NoSpace(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// The file in a folder.
fn file(folder: &Path) -> PathBuf {
    folder.join("journal.sqlite")
}

/// Makes the folder and locks it for this process; what is in it is for its owner only.
fn lock(folder: &Path) -> Result<File, Fault> {
    let cannot = |why: &dyn std::fmt::Display| {
        Fault::Failed(format!("{} cannot be used: {why}, hint: name a folder with --state", folder.display()))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|why| cannot(&why))?;
    let open = |path: &Path| OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let lock = open(&folder.join("journal.lock")).map_err(|why| cannot(&why))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| cannot(&"another server keeps its journal there"))?;
    // The files beside it take over its rights.
    open(&file(folder)).map_err(|why| cannot(&why))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|why| cannot(&why))?;
    Ok(lock)
}

impl Sqlite {
    /// The file in `folder`, which is made if need be; it belongs to one server at a time.
    pub fn create(folder: &Path) -> Result<Self, Fault> {
        let lock = Some(lock(folder)?);
        let connection = Connection::open(file(folder))?;
        connection.busy_timeout(PATIENCE)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A commit has reached the disk when it returns.
        connection.pragma_update(None, "synchronous", "FULL")?;
        match connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
            0 => connection.execute_batch(&format!("BEGIN; {LAYOUT} COMMIT"))?,
            VERSION => {}
            other => {
                let name = file(folder);
                let text = format!("{} has the layout {other}, not {VERSION}", name.display());
                return Err(Fault::Failed(format!("{text}, hint: it was written by another release")));
            }
        }
        Ok(Self { connection, lock })
    }

    /// The same file, only to be read.
    pub fn read(folder: &Path) -> Result<Self, Fault> {
        let connection = Connection::open_with_flags(file(folder), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(PATIENCE)?;
        Ok(Self { connection, lock: None })
    }
}

fn accept(transaction: &Transaction<'_>, entry: &Entry, token: u128) -> Result<Outcome, rusqlite::Error> {
    let Entry { lane, key, request } = entry;
    if let Some(key) = key {
        let mut known =
            transaction.prepare_cached("SELECT seq, token, digest FROM entries WHERE name = ?")?;
        let found = known.query_row([&key.name], |row| Ok((id_of(row)?, row.get::<_, Vec<u8>>(2)?)));
        if let Some((id, digest)) = found.optional()? {
            return Ok(if digest == key.digest { Outcome::Known(id) } else { Outcome::Conflict });
        }
    }
    let mut insert = transaction.prepare_cached(
        "INSERT INTO entries (token, lane, name, digest, progress, size, head, body)
         VALUES (:token, :lane, :name, :digest, 0, :size, :head, :body)",
    )?;
    let seq = insert.insert(named_params! {
        ":token": &token.to_be_bytes()[..],
        ":lane": lane,
        ":name": key.as_ref().map(|key| &key.name),
        ":digest": key.as_ref().map(|key| &key.digest[..]),
        ":size": request.size() as i64,
        ":head": request.head,
        ":body": &request.body[..],
    })?;
    Ok(Outcome::Accepted(Id { seq: seq as u64, token }))
}

/// Reads `seq, token` from the first two columns.
fn id_of(row: &Row<'_>) -> Result<Id, rusqlite::Error> {
    Ok(Id { seq: row.get::<_, i64>(0)? as u64, token: u128::from_be_bytes(row.get(1)?) })
}

/// Runs `sql`, whose first parameters are seq and token, on an entry if it exists.
fn change(
    transaction: &Transaction<'_>,
    id: Id,
    sql: &str,
    more: &[Value],
) -> Result<Outcome, rusqlite::Error> {
    let key = [Value::Integer(id.seq as i64), Value::Blob(id.token.to_be_bytes().into())];
    let mut before =
        transaction.prepare_cached("SELECT size, progress FROM entries WHERE seq = ? AND token = ?")?;
    let found = before.query_row(rusqlite::params_from_iter(&key), |row| {
        Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? == 0))
    });
    let Some((size, was_waiting)) = found.optional()? else { return Ok(Outcome::Missing) };
    let params = rusqlite::params_from_iter(key.iter().chain(more));
    let num_changed = transaction.prepare_cached(sql)?.execute(params)?;
    Ok(if num_changed == 0 { Outcome::Missing } else { Outcome::Changed { size, was_waiting } })
}

fn write(transaction: &Transaction<'_>, write: &Write) -> Result<Outcome, rusqlite::Error> {
    match write {
        Write::Accept { entry, token } => accept(transaction, entry, *token),
        Write::Answer { id, answer, progress, expires_ms } => {
            let more = [
                Value::Integer(if *progress == Progress::Open { 1 } else { 2 }),
                Value::Integer(answer.size() as i64),
                Value::Integer(*expires_ms as i64),
                Value::Blob(answer.head.clone()),
                Value::Blob(answer.body.to_vec()),
            ];
            let sql = "UPDATE entries SET progress = ?3, size = ?4, expires = ?5, head = ?6, body = ?7
                       WHERE seq = ?1 AND token = ?2 AND progress = 0";
            change(transaction, *id, sql, &more)
        }
        Write::Close(id) => {
            let sql = "UPDATE entries SET progress = 2 WHERE seq = ? AND token = ? AND progress > 0";
            change(transaction, *id, sql, &[])
        }
        Write::Remove(id) => change(transaction, *id, "DELETE FROM entries WHERE seq = ? AND token = ?", &[]),
    }
}

impl Store for Sqlite {
    fn commit(&mut self, writes: &[Write]) -> Result<Vec<Outcome>, Fault> {
        let transaction = self.connection.transaction()?;
        let outcomes = writes.iter().map(|one| write(&transaction, one)).collect::<Result<_, _>>()?;
        transaction.commit()?;
        Ok(outcomes)
    }

    fn expire(&mut self, now_ms: u64) -> Result<Expired, Fault> {
        let mut delete = self.connection.prepare_cached(
            "DELETE FROM entries
             WHERE seq IN (SELECT seq FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)
             RETURNING size",
        )?;
        let sizes = delete.query_map([now_ms as i64, MAX_EXPIRED as i64], |row| row.get::<_, i64>(0))?;
        let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
        Ok(Expired { bytes: sizes.iter().sum::<i64>() as u64, has_more: sizes.len() == MAX_EXPIRED })
    }

    fn find(&mut self, id: Id, now_ms: u64) -> Result<Option<Found>, Fault> {
        let mut select = self.connection.prepare_cached(
            "SELECT head, body, progress FROM entries
             WHERE seq = ? AND token = ? AND (expires IS NULL OR expires > ?)",
        )?;
        let found = select.query_row(params![id.seq as i64, id.token.to_be_bytes(), now_ms as i64], |row| {
            let record = Record { head: row.get(0)?, body: row.get::<_, Vec<u8>>(1)?.into() };
            let progress = match row.get::<_, i64>(2)? {
                0 => Progress::Waiting,
                1 => Progress::Open,
                _ => Progress::Done,
            };
            Ok(Found { record, progress })
        });
        Ok(found.optional()?)
    }

    fn unfinished(&mut self, after: u64, limit: usize) -> Result<Vec<(Id, String)>, Fault> {
        let mut select = self.connection.prepare_cached(
            "SELECT seq, token, lane FROM entries WHERE progress < 2 AND seq > ? ORDER BY seq LIMIT ?",
        )?;
        let rows = select.query_map([after as i64, limit as i64], |row| Ok((id_of(row)?, row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn totals(&mut self) -> Result<Totals, Fault> {
        let sql = "SELECT coalesce(sum(size), 0), coalesce(sum(progress = 0), 0) FROM entries";
        let read = |row: &Row<'_>| {
            Ok(Totals { bytes: row.get::<_, i64>(0)? as u64, waiting: row.get::<_, i64>(1)? as u64 })
        };
        Ok(self.connection.query_row(sql, [], read)?)
    }
}
