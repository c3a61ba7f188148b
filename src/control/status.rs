//! The snapshots that `/status` and `/events` serve, in their published JSON shape.
//!
//! Times are milliseconds since 1970; durations are milliseconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /status`.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Status {
    /// Grows by one at each change of the route; 0 before the first.
    pub epoch: u64,
    /// The write replica's name; `null` before the first route.
    pub active: Option<String>,
    /// Percent of sessions by replica name that their reads go to.
    pub read: BTreeMap<String, u8>,
    /// Commands wait.
    pub holding: bool,
    /// The pinned replica's name.
    pub pinned: Option<String>,
    /// The sidecar itself stalled: it observes but does not act.
    pub tilt: bool,
    /// In the order of the configuration.
    pub replicas: Vec<ReplicaStatus>,
    /// What of replication is broken: replica, direction, shard.
    #[serde(default)]
    pub faults: Vec<FaultStatus>,
    /// The newest last.
    pub last_switches: Vec<SwitchStatus>,
}

/// One replica in [`Status`].
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// A word of `decision::Health`.
    pub health: String,
    /// A word of `decision::Fitness`.
    pub fitness: String,
    /// Why, in words.
    pub reason: String,
    /// When its health last changed.
    pub since: u64,
    /// Round-trip time of the newest answered PING.
    pub rtt_ms: Option<f64>,
    /// What its cluster's REST API says; absent when it is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<RestStatus>,
    /// By shard.
    pub shards: Vec<ShardStatus>,
    /// Its outbound links, its own echo among them.
    pub links: Vec<LinkStatus>,
}

/// The REST check in [`ReplicaStatus`].
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct RestStatus {
    /// A word of `decision::RestState`.
    pub state: String,
    /// Why, in words.
    pub words: String,
    /// When the cluster was last asked; `null` before the first time.
    pub at: Option<u64>,
}

/// One shard in [`ReplicaStatus`].
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct ShardStatus {
    /// Its number.
    pub id: u16,
    /// The slots that it owns, as servers write them: `0-5460`, or several with commas between.
    #[serde(default)]
    pub slots: String,
    /// Where it is reached, when it has an address of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether its own echo passes.
    pub echo: bool,
    /// Whether it accepts writes; `null` before the first write probe.
    pub writable: Option<bool>,
}

/// One link in [`ReplicaStatus`].
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct LinkStatus {
    /// The name of the replica where its heartbeats are awaited.
    pub to: String,
    /// The shard that they belong to.
    pub shard: u16,
    /// The shard of `to` that they arrive on.
    #[serde(default)]
    pub to_shard: u16,
    /// Age of the newest heartbeat when it was heard.
    pub lag_ms: Option<f64>,
    /// The 99th percentile of the newest ages; absent as long as there are too few.
    #[serde(default)]
    pub lag_p99_ms: Option<f64>,
    /// When a heartbeat was last heard.
    pub last_heard_ms: Option<u64>,
    /// Whether heartbeats pass in time.
    pub up: bool,
}

/// Something of replication that is broken.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FaultStatus {
    /// `echo`, `writes`, `isolated`, `outbound`, `inbound` or `link`.
    pub kind: String,
    /// The replica that it is held against; of a link the publishing one.
    pub replica: String,
    /// Its shard there.
    pub shard: u16,
    /// Of a link: where its heartbeats are awaited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Of a link: the shard there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_shard: Option<u16>,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
    /// In words.
    pub words: String,
}

/// One entry of `last_switches`.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct SwitchStatus {
    /// The epoch of the route it made.
    pub epoch: u64,
    /// The replica left; `null` for the first route.
    pub from: Option<String>,
    /// The new active replica.
    pub to: String,
    /// A word of `decision::SwitchReason`.
    pub reason: String,
    /// The evidence, in words.
    pub why: String,
    /// When.
    pub at: u64,
    /// From the last moment the old replica was known well to the verdict.
    pub detect_ms: f64,
    /// From the drain's end to the fence's arrival.
    pub fence_ms: Option<f64>,
    /// From the verdict or the operator's word to the new route.
    pub switch_ms: f64,
}

/// One server-sent event of `/events`: the same words as in [`Status`].
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct EventRecord {
    /// Counts events from 1; gaps mean that the reader was too slow.
    pub id: u64,
    /// When.
    pub at: u64,
    /// `health`, `fitness`, `link`, `layout`, `rest`, `switch`, `move`, `failback`, `tilt`, `pin`, `route`.
    pub kind: String,
    /// One sentence for people.
    pub message: String,
    /// The fields of the event, by name.
    pub details: serde_json::Value,
}
