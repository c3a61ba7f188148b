//! The Active-Active stand-in: one to three regions of real Redis servers that replicate to each other both ways, and
//! every fault that such a database and its network can have.
//!
//! ```text
//!  application ──▶ relay ──▶ redis-server "local" ──▶ syncer ──▶ redis-server "remote" ◀── relay ◀── application
//!                  (network's                    ◀── syncer ◀──
//!                   faults)                     (links' faults)
//! ```
//!
//! - [`Rig`] starts all of it, has a method for each fault, and ends all of it when dropped.
//! - [`Syncer`] applies one server's writes and messages on another, exactly once, without loops.
//! - [`control`] serves a rig's faults over HTTP; the binary `rig` is that with a command line.
//!
//! A region is one server, or several: behind one address that routes by slot, or as a cluster ([`Form`]). Regions may be
//! divided differently. Methods take a region, or one shard of it ([`At`]): `"local"`, `("local", 1)`.
//!
//! What replicates is the *effect* of a command, in the order of its source. Nothing resolves conflicts: concurrent
//! writes to one key converge where they commute (INCR, SADD of different members), and otherwise may differ.
//! See the README beside this crate for the whole picture.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use rig::{Rig, RigOptions};
//! use std::time::Duration;
//!
//! let rig = Rig::start(RigOptions::default()).await?;
//! let application = redis::Client::open(rig.region("local").url())?;
//! rig.cut_link("local", "remote").await?;
//! rig.region("local").command(&["INCR", "hits"]).await?;
//! rig.heal_link("local", "remote")?;
//! rig.wait_converged(Duration::from_secs(5)).await?;
//! rig.kill("local").await?;
//! # Ok(()) }
//! ```

mod commands;
pub mod control;
mod endpoint;
mod front;
mod options;
mod region;
pub mod relay;
mod resp;
mod rig;
mod shard;
mod slots;
mod syncer;

pub use endpoint::Endpoint;
pub use options::{DEFAULT_NAMES, Form, RigOptions};
pub use region::{Region, RegionStatus};
pub use relay::{Direction, NetworkFaults};
pub use rig::{At, Data, LinkStatus, Rig, RigStatus};
pub use shard::{Shard, ShardStatus};
pub use slots::{SLOTS, SlotRange, slot};
pub use syncer::{Syncer, SyncerState, SyncerStatus};
