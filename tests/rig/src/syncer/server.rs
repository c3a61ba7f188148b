//! A syncer's command connection to one server: the scripts, as typed calls.
//!
//! A server under a fault refuses writes from everyone, the syncer among them; replicas of an Active-Active database
//! still take each other's effects then. So a refused script is sent once more in a way that this server accepts:
//!
//! | refusal | second way |
//! |---|---|
//! | `OOM` | the same script, declared `allow-oom` |
//! | `NOREPLICAS` | in one MULTI with `min-replicas-to-write` at 0 before and back after it |
//! | `READONLY` | in one MULTI with `replica-read-only` off before and on after it |
//!
//! The refused script has changed nothing: its first write is to the books, and that one was refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisResult, Value, from_redis_value};
use tokio::sync::Mutex;

use super::books::Books;
use super::position::{Lineage, Position};
use super::scope::books_key;
use super::scripts::{self, BooksOf};
use super::stream::Effect;
use super::{Side, SyncError};
use crate::slots::SlotRange;

/// A reply may take as long as a hung or paused server; afterwards the books tell what became of the question.
const REPLY_PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// Whoever changes a server's refusals (a fault, or a syncer for one MULTI) holds this meanwhile.
pub(crate) type RefusalLock = Arc<Mutex<()>>;

/// Keys of a snapshot, flat: database, key, expiry, DUMP, …
pub(super) struct Snapshot {
    pub(super) books: Books,
    pub(super) keys: Vec<Vec<u8>>,
}

/// What a script did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Applied {
    /// Effects that the server answered with an error, and the first such error.
    pub(super) failed: u64,
    pub(super) first: String,
}

#[derive(Clone)]
pub(super) struct Server {
    connection: MultiplexedConnection,
    refusals: RefusalLock,
    books_of: BooksOf,
}

impl Server {
    pub(super) async fn connect(side: &Side, books_of: &BooksOf) -> Result<Self, SyncError> {
        let mut connection = side.endpoint.connect(CONNECT_PATIENCE).await?;
        connection.set_response_timeout(REPLY_PATIENCE);
        Ok(Self {
            connection,
            refusals: Arc::clone(&side.refusals),
            books_of: books_of.clone(),
        })
    }

    /// EVAL_RO: also answered while writes are paused.
    fn read_only(&self, script: &str) -> Cmd {
        self.books_of.eval("EVAL_RO", None, script)
    }

    fn eval(&self, flags: Option<&str>, script: &str, args: &[Vec<u8>]) -> Cmd {
        let mut eval = self.books_of.eval("EVAL", flags, script);
        eval.arg(args);
        eval
    }

    pub(super) async fn books(&mut self) -> Result<Books, SyncError> {
        let (info, hash) = self
            .read_only(scripts::BOOKS)
            .query_async::<(String, BTreeMap<String, String>)>(&mut self.connection)
            .await?;
        Books::read(&info, &hash)
    }

    /// The server's stream, whoever owns the cell.
    pub(super) async fn lineage(&mut self) -> Result<Lineage, SyncError> {
        let info: String = redis::cmd("INFO")
            .arg("server")
            .arg("replication")
            .query_async(&mut self.connection)
            .await?;
        Lineage::parse(&info).ok_or_else(|| SyncError::Protocol("INFO lacks what is needed".to_owned()))
    }

    pub(super) async fn snapshot(&mut self) -> Result<Snapshot, SyncError> {
        let (info, hash, keys) = self
            .read_only(scripts::SNAPSHOT)
            .query_async::<(String, BTreeMap<String, String>, Vec<Vec<u8>>)>(&mut self.connection)
            .await?;
        Ok(Snapshot {
            books: Books::read(&info, &hash)?,
            keys,
        })
    }

    /// Applies effects and moves `field` from `before` to `after`, at once or not at all.
    pub(super) async fn apply(
        &mut self,
        field: &str,
        before: Option<&Position>,
        after: &Position,
        effects: &[Effect],
    ) -> Result<Applied, SyncError> {
        let mut args = guard(field, before);
        args.push(after.to_string().into());
        for effect in effects {
            args.push(effect.db.to_string().into());
            args.push(effect.args.len().to_string().into());
            args.extend(effect.args.iter().map(|word| word.to_vec()));
        }
        self.run(scripts::APPLY, &args).await
    }

    /// Becomes the snapshot; `source` now stands at `position`, and `own` is where own writes begin to be missing.
    pub(super) async fn adopt(
        &mut self,
        field: &str,
        before: Option<&Position>,
        own: &Position,
        fields: &[(String, String)],
        keys: Vec<Vec<u8>>,
    ) -> Result<Applied, SyncError> {
        let mut args = guard(field, before);
        args.extend([own.run.clone().into(), own.id.clone().into()]);
        args.extend([own.offset.to_string().into(), own.db.to_string().into()]);
        args.push(fields.len().to_string().into());
        args.extend(
            fields
                .iter()
                .flat_map(|(name, value)| [name.clone().into(), value.clone().into()]),
        );
        args.extend(keys);
        self.run(scripts::ADOPT, &args).await
    }

    /// Takes from the snapshot what is missing here.
    pub(super) async fn unite(
        &mut self,
        field: &str,
        before: Option<&Position>,
        after: &Position,
        keys: Vec<Vec<u8>>,
    ) -> Result<Applied, SyncError> {
        let mut args = guard(field, before);
        args.push(after.to_string().into());
        args.extend(keys);
        self.run(scripts::UNITE, &args).await
    }

    pub(super) async fn settle(&mut self, debt: &Position) -> Result<Applied, SyncError> {
        self.run(scripts::SETTLE, &[debt.to_string().into()]).await
    }

    /// Writes the same books for each of these parts of the cell.
    pub(super) async fn split(&mut self, parts: &[SlotRange]) -> Result<Applied, SyncError> {
        let keys: Vec<Vec<u8>> = parts.iter().map(|&part| books_key(part).into()).collect();
        self.run(scripts::SPLIT, &keys).await
    }

    /// Strikes a source from the books.
    pub(super) async fn forget(&mut self, field: &str) -> Result<Applied, SyncError> {
        self.run(scripts::FORGET, &[field.into()]).await
    }

    async fn run(&mut self, script: &str, args: &[Vec<u8>]) -> Result<Applied, SyncError> {
        let value = match self
            .eval(None, script, args)
            .query_async::<Value>(&mut self.connection)
            .await
        {
            Ok(value) => value,
            Err(refused) => match refused.code() {
                Some("OOM") => {
                    let allowed = self.eval(Some("allow-oom,allow-cross-slot-keys"), script, args);
                    allowed.query_async(&mut self.connection).await?
                }
                Some("NOREPLICAS") => {
                    self.run_without("min-replicas-to-write", "0", script, args)
                        .await?
                }
                Some("READONLY") => self.run_without("replica-read-only", "no", script, args).await?,
                _ => return Err(refused.into()),
            },
        };
        verdict(value)
    }

    async fn run_without(
        &mut self,
        setting: &str,
        lenient: &str,
        script: &str,
        args: &[Vec<u8>],
    ) -> RedisResult<Value> {
        let refusals = Arc::clone(&self.refusals);
        let _held = refusals.lock().await;
        let (_, strict): (String, String) = redis::cmd("CONFIG")
            .arg("GET")
            .arg(setting)
            .query_async(&mut self.connection)
            .await?;
        let set = |value: &str| {
            let mut command = redis::cmd("CONFIG");
            command.arg("SET").arg(setting).arg(value);
            command
        };
        let (_, value, _): (Value, Value, Value) = redis::pipe()
            .atomic()
            .add_command(set(lenient))
            .add_command(self.eval(None, script, args))
            .add_command(set(&strict))
            .query_async(&mut self.connection)
            .await?;
        Ok(value)
    }
}

fn guard(field: &str, before: Option<&Position>) -> Vec<Vec<u8>> {
    vec![
        field.into(),
        before.map(ToString::to_string).unwrap_or_default().into(),
    ]
}

fn verdict(value: Value) -> Result<Applied, SyncError> {
    let words: Vec<Value> = from_redis_value(value).map_err(redis::RedisError::from)?;
    let text = |at: usize| {
        words
            .get(at)
            .cloned()
            .map(from_redis_value::<String>)
            .and_then(Result::ok)
    };
    match text(0).as_deref() {
        Some("OK") => Ok(Applied {
            failed: text(1).and_then(|count| count.parse().ok()).unwrap_or(0),
            first: text(2).unwrap_or_default(),
        }),
        Some("MOVED") => Err(SyncError::Moved(text(1).unwrap_or_default())),
        _ => Err(SyncError::Protocol(format!("the script said {words:?}"))),
    }
}
