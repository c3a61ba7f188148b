//! The Redis protocol on the wire: where a frame ends, which command it is, what a reply says.
//!
//! Pure: bytes in, facts out. Nothing here reads a clock, allocates per frame, recurses or copies. Frames are found by
//! scanners that resume where they stopped, so a frame that arrives in pieces is read once; `redis-protocol` is the oracle
//! of their tests.

pub mod command;
mod frame;
mod number;
mod reply;
mod request;

pub use frame::{Args, Elements, args, elements, encode_command, error_code, inline_args};
pub use reply::{Reply, ReplyError, ReplyScan, ReplyScanner};
pub use request::{ProtocolError, Request, RequestScanner, Scan};

#[cfg(test)]
mod tests;
