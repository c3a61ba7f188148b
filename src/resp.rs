//! The Redis protocol on the wire: frame boundaries, commands, replies, keys.
//!
//! Owns: where a frame ends, what a command is (its row in the command table), which arguments are keys, and
//! which slot a key maps to.
//!
//! Never: reads a clock, logs, allocates per frame, copies payload, or recurses on what the network sent. No
//! input makes it panic.
//!
//! ```text
//!   application bytes ──► request::RequestScanner ──► Request {len, name, first, …}
//!                                                        │ name
//!                                                        ▼
//!                                     command::lookup ──► CommandInfo {class, kind, keys, …}
//!                                                        │ keys
//!                                                        ▼
//!                                     keys::first_key ──► keys::slot
//!
//!   replica bytes ──► reply::ReplyScanner ──► Reply {len, kind}
//! ```
//!
//! Both scanners are resumable: the caller keeps one per connection, passes the bytes from the frame's first byte
//! on, and passes the same bytes plus later ones when more has arrived. Bytes seen by an earlier call are not read
//! again, so the cost of a frame does not depend on how the network cut it.
//!
//! `redis-protocol` is not used here: it decodes recursively and from the start each time. It is the oracle of the
//! property tests (`tests/resp_properties.rs`), as a real server is of `tests/resp_differential.rs`.

pub mod command;
pub mod encode;
pub mod error;
mod header;
pub mod inline;
pub mod keys;
pub mod reply;
pub mod request;

pub use command::{Class, CommandInfo, Kind, is_blocking, lookup, lookup_sub};
pub use encode::{encode_command, encode_command_into};
pub use error::ProtocolError;
pub use inline::{inline_args, inline_to_multibulk};
pub use keys::{first_key, keys, routing_key, routing_keys, slot};
pub use reply::{
    Aggregate, Reply, ReplyScan, ReplyScanner, error_code, reply_aggregate, reply_elements, reply_text,
};
pub use request::{Args, Request, RequestScanner, Scan, args};
