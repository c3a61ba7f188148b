//! The rig by itself, on real servers: what it replicates, how it resumes, and that each fault is what it says it is,
//! as a client sees it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#[path = "rig/cluster.rs"]
mod cluster;
#[path = "rig/control.rs"]
mod control;
#[path = "rig/counting.rs"]
mod counting;
#[path = "rig/front.rs"]
mod front;
#[path = "rig/links.rs"]
mod links;
#[path = "rig/network.rs"]
mod network;
#[path = "rig/replication.rs"]
mod replication;
#[path = "rig/reshard.rs"]
mod reshard;
#[path = "rig/resync.rs"]
mod resync;
#[path = "rig/servers.rs"]
mod servers;
#[path = "rig/sharded.rs"]
mod sharded;
#[path = "rig/support.rs"]
mod support;
