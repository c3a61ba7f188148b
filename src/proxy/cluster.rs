//! Slot routing: where a request goes when the replica's shards are nodes of their own (OSS Cluster API), and how several
//! answers become one. Pure: bytes and a layout in, bytes and a plan out.
//!
//! ```text
//!   request ──plan──▶ One, Any ─────────────────────────────▶ one shard, unchanged
//!                     All ────────────▶ every shard, unchanged ──┐
//!                     Split ──────────▶ its parts, by slot ──────┴─▶ join ──▶ one reply
//!                     Scan ───────────▶ one shard, its own cursor ──▶ the cursor that the application sees
//!                     UntilFound ─────▶ one shard after another, until the answer is not nil
//!                     Local, Refused ─▶ no shard
//! ```
//!
//! - `plan` decides, by the keys' slots or, without keys, by `policy`
//! - `policy` is the table of commands without keys, from the server's own tips; `docs/sharded.md` shows it
//! - `split` makes the parts of MGET and its like, `join` makes one reply of many
//! - `scan` is the cursor that walks one shard after another
//! - `answers` is what CLUSTER SLOTS and its like say of Pulsegate
//! - `redirect` reads MOVED, ASK and TRYAGAIN

pub mod answers;
pub mod join;
pub mod plan;
pub mod policy;
pub mod redirect;
pub mod scan;
pub mod split;

#[cfg(test)]
mod tests;

pub use answers::{Itself, Local};
pub use join::{Join, Joiner};
pub use plan::{Plan, Router, Slots, slots};
pub use policy::Policy;
pub use redirect::{Redirect, RedirectKind};
pub use scan::Step;
pub use split::{Part, Split};
