//! The data plane by itself, before real servers: routes, progress and layouts come from the test, which sees what is fed
//! back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#[path = "support/cluster.rs"]
mod cluster;
#[path = "dataplane/plane.rs"]
mod plane;
#[path = "dataplane/reads.rs"]
mod reads;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "dataplane/refusals.rs"]
mod refusals;
#[path = "dataplane/sharded_channels.rs"]
mod sharded_channels;
#[path = "dataplane/shards.rs"]
mod shards;
#[allow(dead_code, reason = "each test binary uses a part of it")]
#[path = "e2e/support.rs"]
mod support;
#[path = "dataplane/told.rs"]
mod told;
