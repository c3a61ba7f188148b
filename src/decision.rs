//! VERDICT: which replica takes the traffic, decided by a pure state machine.
//!
//! Owns the health and fitness of every replica, the link matrix, dwell, tilt, failback, pins and planned moves. Never
//! opens a socket, reads a clock, draws a random number or logs: `now` comes in with every call, decisions go out
//! as [`Output`]s, each with its reason and the evidence behind it.
//!
//! The shell in `control` feeds [`Input`]s, calls `on_timer` when `next_timer` is due (a spurious call is a no-op) and
//! drains `poll`.

mod damping;
mod engine;
mod event;
mod evidence;
mod failback;
mod failover;
mod faults;
mod fitness;
mod health;
mod invariants;
mod links;
mod moment;
mod moves;
mod operator;
mod policy;
mod reads;
mod recent;
mod rest;
mod rtt;
mod select;
mod shards;
#[cfg(test)]
mod sim;
mod snapshot;
#[cfg(test)]
mod tests;
mod tilt;
mod timer;
mod view;
mod windows;

pub use engine::{Engine, Member};
pub use event::*;
pub use faults::Fault;
pub use policy::*;
pub use snapshot::*;
