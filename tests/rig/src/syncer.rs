//! One pull syncer: reads one source's replication stream and applies it on one destination, exactly once.
//!
//! It owns its two connections and nothing else: where it stands is written in the destination's [`books`], in the same
//! script as the effects. So after any break it asks the destination and goes on from there. It never writes to
//! the source, and what it writes never enters the destination's own stream.
//!
//! ```text
//!             ┌──────────── any error, after a short wait ────────────┐
//!             ▼                                                       │
//! Connecting ──▶ (PSYNC) ─┬─ +CONTINUE ──────────────▶ Streaming ─────┤
//!      ▲                  └─ +FULLRESYNC ─▶ Copying ──▶    │          │
//!      └── heal ── Cut ◀── cut, from anywhere ◀────────────┴──────────┘
//! ```

mod books;
mod position;
mod rebuild;
mod scope;
pub(crate) mod scripts;
mod server;
mod session;
mod stream;
mod tape;
mod wide;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::endpoint::Endpoint;
use crate::resp::Malformed;
use crate::slots::SlotRange;
pub(crate) use scope::{Division, Scope};
use scripts::BooksOf;
pub(crate) use server::RefusalLock;
use server::Server;
pub(crate) use tape::Tape;

/// Wait before the next try after a failure: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// Why a syncer had to start over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// The connection to the source broke.
    #[error("source: {0}")]
    Source(#[source] std::io::Error),
    /// The destination ended.
    #[error("destination: {0}")]
    Destination(#[source] std::io::Error),
    /// The source answered, but with an error.
    #[error("source refused: {0}")]
    Refused(String),
    /// Commands on the source or on the destination failed.
    #[error("server: {0}")]
    Server(#[from] redis::RedisError),
    /// The books stand elsewhere: a script of an earlier connection came through, or the data is gone.
    #[error("the destination's books have moved: {0:?}")]
    Moved(String),
    /// The source is not in a state to be copied yet.
    #[error("not yet: {0}")]
    NotYet(&'static str),
    /// Not what the protocol says.
    #[error("protocol: {0}")]
    Protocol(String),
    /// The source's stream is not one.
    #[error("the source's stream: {0}")]
    Stream(#[from] Malformed),
    /// The operator cut the link.
    #[error("cut")]
    Cut,
}

impl SyncError {
    fn silent(what: &'static str) -> Self {
        Self::Source(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
    }
}

/// What a syncer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncerState {
    /// Not attached: trying, or waiting for the next try.
    Connecting,
    /// Attached, copying the source's keys.
    Copying,
    /// Attached, applying effects as they come.
    Streaming,
    /// Cut by the operator, or held while slots move; keeps its place.
    Cut,
}

/// A syncer's state and counters. Counters start with the syncer and never go back.
#[derive(Clone, Debug, Serialize)]
pub struct SyncerStatus {
    /// Region read from.
    pub from: String,
    /// Its shard, counted from 0.
    pub from_shard: usize,
    /// Region applied to.
    pub to: String,
    /// Its shard.
    pub to_shard: usize,
    /// The slots whose effects it applies.
    pub slots: SlotRange,
    /// What it is doing.
    pub state: SyncerState,
    /// The source's replication id that `offset` counts in; empty until the first attachment.
    pub replid: String,
    /// The destination's process (`run_id`) that it applies to; empty until the first attachment.
    pub to_run: String,
    /// The last byte of the source's stream that the destination has acknowledged.
    pub offset: u64,
    /// Effects acknowledged by the destination.
    pub applied: u64,
    /// Effects that the destination answered with an error, or that no script can apply.
    pub failed: u64,
    /// Attachments that went on where they had stopped (`+CONTINUE`).
    pub partial_resyncs: u64,
    /// Attachments that could not (`+FULLRESYNC`), followed by a copy.
    pub full_resyncs: u64,
    /// The number of the next of the messages that are no part of the stream.
    pub messages: u64,
    /// The latest error, kept after recovery.
    pub last_error: Option<String>,
}

/// What the operator wants of a link.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkControl {
    pub(crate) cut: bool,
    pub(crate) delay: Duration,
    /// Grows with each order that ends or begins a flapping: a flapping of an older order changes nothing any more.
    pub(crate) order: u64,
    /// Held by the rig itself while a cell moves; healing does not end it.
    pub(crate) held: bool,
    /// What belongs to no cell of the source is for this syncer.
    pub(crate) rest: bool,
}

impl LinkControl {
    /// Without faults.
    pub(crate) fn heal(&mut self) {
        *self = Self {
            cut: false,
            delay: Duration::ZERO,
            order: self.order + 1,
            ..*self
        };
    }

    /// Whether nothing may pass.
    fn stopped(&self) -> bool {
        self.cut || self.held
    }
}

/// One side of a link: a server.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    /// What the books call it.
    pub(crate) id: String,
    pub(crate) region: String,
    pub(crate) shard: usize,
    pub(crate) endpoint: Endpoint,
    pub(crate) refusals: RefusalLock,
    /// Where its messages are, when they are not in its stream.
    pub(crate) tape: Option<Arc<Tape>>,
}

impl Side {
    fn alone(name: &str, endpoint: Endpoint) -> Self {
        Self {
            id: name.to_owned(),
            region: name.to_owned(),
            shard: 0,
            endpoint,
            refusals: RefusalLock::default(),
            tape: None,
        }
    }
}

/// Writes into `to`'s books of the cell that it has all of what the sources have now: true only when they have nothing of
/// the cell. With it no copy is needed at the start.
pub(crate) async fn begin_equal(to: &Side, sources: &[Side], cell: SlotRange) -> Result<(), SyncError> {
    let books_of = BooksOf::cell(cell);
    let mut here = Server::connect(to, &books_of).await?;
    let known = here.books().await?.from;
    for side in sources {
        let there = Server::connect(side, &books_of).await?.lineage().await?;
        let place = there.at(there.offset, 0);
        let before = known.get(&side.id);
        here.apply(&books::field(&side.id), before, &place, &[]).await?;
    }
    Ok(())
}

/// Divides the books of the cell: each part begins with what the cell has. Its syncers must be held.
pub(crate) async fn split_books(at: &Side, cell: SlotRange, parts: &[SlotRange]) -> Result<(), SyncError> {
    let mut server = Server::connect(at, &BooksOf::cell(cell)).await?;
    server.split(parts).await.map(drop)
}

/// Strikes `source`, which has nothing of the cell any more, from the cell's books.
pub(crate) async fn forget(at: &Side, source: &Side, cell: SlotRange) -> Result<(), SyncError> {
    let mut server = Server::connect(at, &BooksOf::cell(cell)).await?;
    server.forget(&books::field(&source.id)).await.map(drop)
}

/// A running syncer; dropping it ends it.
#[derive(Debug)]
#[must_use = "a dropped syncer ends"]
pub struct Syncer {
    control: watch::Sender<LinkControl>,
    status: watch::Receiver<SyncerStatus>,
    task: JoinHandle<()>,
}

impl Syncer {
    /// Starts a syncer between two servers that are not part of a [`Rig`](crate::Rig). The names identify the servers
    /// in the destination's books: give the same ones each time, and the same ones to the syncer of the other direction.
    pub fn between(from_name: &str, from: Endpoint, to_name: &str, to: Endpoint) -> Self {
        let (from, to) = (Side::alone(from_name, from), Side::alone(to_name, to));
        Self::spawn(from, to, Scope::everything(), LinkControl::default(), 0)
    }

    /// `messages` is the number of the first message of the source's tape that is for it.
    pub(crate) fn spawn(from: Side, to: Side, scope: Scope, control: LinkControl, messages: u64) -> Self {
        let (control, wanted) = watch::channel(control);
        let (progress, status) = watch::channel(SyncerStatus {
            from: from.region.clone(),
            from_shard: from.shard,
            to: to.region.clone(),
            to_shard: to.shard,
            slots: scope.cell,
            state: SyncerState::Connecting,
            replid: String::new(),
            to_run: String::new(),
            offset: 0,
            applied: 0,
            failed: 0,
            partial_resyncs: 0,
            full_resyncs: 0,
            messages,
            last_error: None,
        });
        let task = tokio::spawn(
            Link {
                played: messages,
                books_of: BooksOf::cell(scope.cell),
                from,
                to,
                scope,
                wanted,
                progress,
                seen: None,
            }
            .run(),
        );
        Self {
            control,
            status,
            task,
        }
    }

    /// The present state and counters.
    #[must_use]
    pub fn status(&self) -> SyncerStatus {
        self.status.borrow().clone()
    }

    pub(crate) fn control(&self) -> &watch::Sender<LinkControl> {
        &self.control
    }

    /// Cuts the link, and returns once nothing more can get through.
    pub(crate) async fn cut(&self) {
        self.stop(|wanted| {
            wanted.cut = true;
            wanted.order += 1;
        })
        .await;
    }

    /// As a cut, but not the operator's: healing does not end it.
    pub(crate) async fn hold(&self) {
        self.stop(|wanted| wanted.held = true).await;
    }

    async fn stop(&self, order: impl FnOnce(&mut LinkControl)) {
        self.control.send_modify(order);
        // An error means that the task is gone: then nothing gets through either.
        let _ = self
            .status
            .clone()
            .wait_for(|status| status.state == SyncerState::Cut)
            .await;
    }

    /// Cuts and heals in turns, each for so long, until another order comes.
    pub(crate) fn flap(&self, half: Duration) {
        let control = self.control.clone();
        let mut order = 0;
        control.send_modify(|wanted| {
            wanted.order += 1;
            order = wanted.order;
        });
        tokio::spawn(async move {
            let mut turns = tokio::time::interval(half);
            for turn in 0_u64.. {
                turns.tick().await;
                let goes_on = control.send_if_modified(|wanted| {
                    let mine = wanted.order == order;
                    if mine {
                        wanted.cut = turn.is_multiple_of(2);
                    }
                    mine
                });
                if !goes_on || control.is_closed() {
                    return;
                }
            }
        });
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task behind a [`Syncer`].
struct Link {
    from: Side,
    to: Side,
    scope: Scope,
    books_of: BooksOf,
    wanted: watch::Receiver<LinkControl>,
    progress: watch::Sender<SyncerStatus>,
    /// Where we stood when the destination's process was last seen: lets us tell a FLUSHALL from a loss of all data.
    seen: Option<session::Seen>,
    /// The number of the next message of the source's tape.
    played: u64,
}

impl Link {
    async fn run(mut self) {
        let mut wait = RETRY.0;
        loop {
            if self.wanted.borrow_and_update().stopped() {
                self.set_state(SyncerState::Cut);
                if self.wanted.wait_for(|wanted| !wanted.stopped()).await.is_err() {
                    return;
                }
            }
            self.set_state(SyncerState::Connecting);
            let before = self.progress.borrow().partial_resyncs + self.progress.borrow().full_resyncs;
            let error = self.session().await;
            if matches!(error, SyncError::Cut) {
                continue;
            }
            tracing::debug!(from = self.from.id, to = self.to.id, %error, "starting over");
            self.set_state(SyncerState::Connecting);
            self.progress
                .send_modify(|status| status.last_error = Some(error.to_string()));
            let attached =
                self.progress.borrow().partial_resyncs + self.progress.borrow().full_resyncs > before;
            wait = if attached {
                RETRY.0
            } else {
                (wait * 2).min(RETRY.1)
            };
            let mut wanted = self.wanted.clone();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    fn set_state(&self, state: SyncerState) {
        self.progress.send_modify(|status| status.state = state);
    }
}
