//! Pulsegate end to end: the real binary in front of real servers, by capability.
//!
//! The rig stands in for Active-Active Redis; applications are raw sockets, and redis-py.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#[path = "support/authority.rs"]
mod authority;
#[path = "e2e/checker.rs"]
mod checker;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "e2e/clusters.rs"]
mod clusters;
#[path = "e2e/contract.rs"]
mod contract;
#[path = "e2e/elsewhere.rs"]
mod elsewhere;
#[path = "e2e/failover.rs"]
mod failover;
#[path = "e2e/faults.rs"]
mod faults;
#[path = "e2e/hold.rs"]
mod hold;
#[path = "e2e/hostile.rs"]
mod hostile;
#[path = "e2e/limits.rs"]
mod limits;
#[path = "e2e/matrix.rs"]
mod matrix;
#[path = "e2e/planned.rs"]
mod planned;
#[path = "e2e/promoted.rs"]
mod promoted;
#[path = "support/python.rs"]
mod python;
#[path = "e2e/redis_py.rs"]
mod redis_py;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "e2e/reload.rs"]
mod reload;
#[path = "e2e/resources.rs"]
mod resources;
#[path = "e2e/rest.rs"]
mod rest;
#[path = "support/rest_server.rs"]
mod rest_server;
#[path = "e2e/saturated.rs"]
mod saturated;
#[path = "e2e/scale.rs"]
mod scale;
#[path = "e2e/sessions.rs"]
mod sessions;
#[path = "e2e/sharded.rs"]
mod sharded;
#[path = "e2e/staged.rs"]
mod staged;
#[path = "e2e/state.rs"]
mod state;
#[path = "e2e/support.rs"]
mod support;
#[path = "e2e/switches.rs"]
mod switches;
#[path = "e2e/tls.rs"]
mod tls;
#[path = "e2e/transparent.rs"]
mod transparent;
#[path = "e2e/witness.rs"]
mod witness;
