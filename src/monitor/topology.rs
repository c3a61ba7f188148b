//! How each replica is divided into shards, and where they are reached: asked of the replica itself, now and then.
//!
//! ```text
//!   at start, every 10 s, when a connection is back, when somebody was sent elsewhere (MOVED)
//!      │
//!      ▼                  refused           refused              nothing configured
//!   CLUSTER SHARDS ──────────► CLUSTER SLOTS ─────► replica.shards ─────────────► one shard
//!      │ told                     │ told               (equal parts)
//!      └───────────┬──────────────┘
//!                  ▼
//!        the director, when it is another one than before
//! ```
//!
//! What a replica once said of itself stands until it says something else: an error, a lost connection or an answer that
//! does not add up changes nothing.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::connect::{self, Complaint, within};
use super::{Common, Target};
use crate::dial::Dialer;
use crate::replica::{Address, Layout, ReplicaId, Topology, TopologyKind};

mod nodes;
mod reply;

use reply::Told;

/// Time between two readings that nobody asked for.
const INTERVAL: Duration = Duration::from_secs(10);

/// Least time between two readings.
const REST: Duration = Duration::from_secs(1);

/// The layout of a replica that says nothing of itself.
pub(super) fn assumed(configured: &Topology) -> Layout {
    Layout::even(configured.shards.unwrap_or(1))
}

/// Asks for a reading soon.
#[derive(Clone, Default, Debug)]
pub(super) struct Asker(Arc<Notify>);

impl Asker {
    pub(super) fn ask(&self) {
        self.0.notify_one();
    }
}

/// What one reading said.
pub(super) type News = (ReplicaId, Option<Layout>);

/// Reads the layout of one replica.
pub(super) struct Reader {
    common: Arc<Common>,
    target: Arc<Target>,
    asked: Asker,
    news: mpsc::Sender<News>,
    complaint: Complaint,
}

/// Why a reading failed.
enum Unread {
    /// No answer came.
    Unreached,
    /// The replica has no such commands.
    Refused(String),
    /// It answered with something that does not add up.
    Nonsense(String),
}

impl Reader {
    pub(super) fn new(
        common: Arc<Common>,
        target: Arc<Target>,
        asked: Asker,
        news: mpsc::Sender<News>,
    ) -> Reader {
        Reader {
            complaint: Complaint::new("reading the layout", &target.name),
            common,
            target,
            asked,
            news,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let layout = self.read().await;
            if self.news.send((self.target.id, layout)).await.is_err() {
                return;
            }
            let earliest = Instant::now() + REST;
            let _ = tokio::time::timeout(INTERVAL, self.asked.0.notified()).await;
            tokio::time::sleep_until(earliest).await;
        }
    }

    /// The layout, when the replica tells one: asked at its endpoint, or else at the nodes that are known.
    async fn read(&mut self) -> Option<Layout> {
        let mut unread = match self.read_at(&self.target.dialer).await {
            Ok(layout) => return self.told(layout),
            Err(unread) => unread,
        };
        if let Unread::Unreached = unread {
            for node in self.known_nodes() {
                let Ok(dialer) = self.target.dialer.towards(node) else {
                    continue;
                };
                match self.read_at(&dialer).await {
                    Ok(layout) => return self.told(layout),
                    Err(Unread::Unreached) => {}
                    Err(other) => {
                        unread = other;
                        break;
                    }
                }
            }
        }
        match unread {
            // `probe` says all there is to say.
            Unread::Unreached => {}
            Unread::Refused(words) if self.target.topology.kind == TopologyKind::Cluster => {
                self.complaint
                    .failed(&format!("topology = \"cluster\", but {words}"));
            }
            Unread::Refused(words) => tracing::debug!(replica = %self.target.name, "no layout: {words}"),
            Unread::Nonsense(words) => self
                .complaint
                .failed(&format!("{words}; the layout stays as it was")),
        }
        None
    }

    fn told(&mut self, layout: Layout) -> Option<Layout> {
        self.complaint.works();
        Some(layout)
    }

    fn known_nodes(&self) -> Vec<Address> {
        let stage = self.common.stage();
        let nodes = stage.speak().nodes(self.target.id);
        nodes.into_iter().flatten().collect()
    }

    async fn read_at(&self, dialer: &Dialer) -> Result<Layout, Unread> {
        let pace = self.common.pace();
        let mut connection = connect::commands(dialer, pace)
            .await
            .map_err(|_| Unread::Unreached)?;
        let tls = dialer.endpoint().tls.is_some();
        let commands = &mut connection.commands;
        let told = match ask(commands, "SHARDS", pace.answer_timeout).await {
            Ok(reply) => reply::shards(&reply, tls).map_err(|words| format!("CLUSTER SHARDS: {words}")),
            Err(Unread::Refused(words)) => match ask(commands, "SLOTS", pace.answer_timeout).await {
                Ok(reply) => reply::slots(&reply).map_err(|words| format!("CLUSTER SLOTS: {words}")),
                Err(Unread::Refused(_)) => return Err(Unread::Refused(words)),
                Err(other) => return Err(other),
            },
            Err(other) => return Err(other),
        };
        let told: Vec<Told> = told.map_err(Unread::Nonsense)?;
        let (asked, endpoint) = (&dialer.endpoint().address, &self.target.dialer.endpoint().address);
        Ok(nodes::layout(told, &self.target.topology, asked, endpoint))
    }
}

async fn ask(commands: &mut MultiplexedConnection, what: &str, patience: Duration) -> Result<Value, Unread> {
    let mut cluster = redis::cmd("CLUSTER");
    cluster.arg(what);
    match within(patience, "CLUSTER", cluster.query_async(commands)).await {
        Ok(reply) => Ok(reply),
        Err(failure) if failure.usable => Err(Unread::Refused(format!(
            "CLUSTER {what} was refused: {}",
            failure.words
        ))),
        Err(_) => Err(Unread::Unreached),
    }
}
