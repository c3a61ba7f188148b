//! What the engine knows, for `/status` and the metrics.

use std::time::{Duration, Instant};

use super::event::{Fitness, Health, RestState, Switched};
use super::faults::Fault;
use crate::replica::{CellId, ReplicaId, ShardId};

/// The whole of the engine's view at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// Epoch of the newest route; 0 before the first.
    pub epoch: u64,
    /// The write replica.
    pub active: Option<ReplicaId>,
    /// Percent of sessions by replica that their reads go to.
    pub read: Vec<(ReplicaId, u8)>,
    /// Commands wait.
    pub holding: bool,
    /// An operator's pin.
    pub pinned: Option<ReplicaId>,
    /// The sidecar itself stalled.
    pub tilt: bool,
    /// By [`ReplicaId`].
    pub replicas: Vec<ReplicaView>,
    /// What of replication is broken.
    pub faults: Vec<FaultView>,
    /// The newest last, at most 16.
    pub last_switches: Vec<(Instant, Switched)>,
}

/// Something that is broken.
#[derive(Clone, PartialEq, Debug)]
pub struct FaultView {
    /// What.
    pub fault: Fault,
    /// Since when it has been noticed.
    pub since: Instant,
    /// In words.
    pub words: String,
}

/// One replica.
#[derive(Clone, PartialEq, Debug)]
pub struct ReplicaView {
    /// Which.
    pub id: ReplicaId,
    /// What the evidence says.
    pub health: Health,
    /// What it may be used for.
    pub fitness: Fitness,
    /// Why, in words.
    pub reason: String,
    /// Since when its health is what it is.
    pub since: Instant,
    /// Round-trip time of the newest PING that was answered.
    pub rtt: Option<Duration>,
    /// What its cluster's REST API says; `None`: it is not asked.
    pub rest: Option<RestView>,
    /// By shard.
    pub shards: Vec<ShardView>,
    /// Its outbound links, its own echo among them.
    pub links: Vec<LinkView>,
}

/// What the REST API of a replica's cluster says of it.
#[derive(Clone, PartialEq, Debug)]
pub struct RestView {
    /// Available or not, when there is a fresh answer.
    pub state: RestState,
    /// Why, in words.
    pub words: String,
    /// When it was last asked; `None`: not yet.
    pub at: Option<Instant>,
}

/// One shard of a replica.
#[derive(Clone, PartialEq, Debug)]
pub struct ShardView {
    /// Which.
    pub id: ShardId,
    /// Whether its own echo passes.
    pub echo: bool,
    /// Whether it accepts writes; `None` before the first write probe.
    pub writable: Option<bool>,
}

/// One link.
#[derive(Clone, PartialEq, Debug)]
pub struct LinkView {
    /// Where its heartbeats are awaited.
    pub to: ReplicaId,
    /// The cell that it is in: two shards may have several in common, where a third replica's layout cuts between.
    pub cell: CellId,
    /// The shard that they are published on.
    pub shard: ShardId,
    /// The shard of `to` that they arrive on.
    pub to_shard: ShardId,
    /// Age of the newest heartbeat when it was heard.
    pub lag: Option<Duration>,
    /// The 99th percentile of the newest ages.
    pub usual_lag: Option<Duration>,
    /// When a heartbeat was last heard.
    pub last_heard: Option<Instant>,
    /// Whether heartbeats pass in time.
    pub up: bool,
}
