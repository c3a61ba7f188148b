//! Configuration: raw serde shapes → one validated [`Config`].
//!
//! Every error is reported at once, with file, key, value and what would be right. A key of the design whose part is
//! not built yet is refused as such.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::decision::Policy;
use crate::replica::Replica;

/// The whole validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[listener]`
    pub listener: Listener,
    /// `[[replica]]`, in the order of the configuration; `replicas[i].id == ReplicaId(i)`. One to 16 of them.
    pub replicas: Vec<Replica>,
    /// `[upstream]` and the parts of `[detection]` that links need.
    pub upstream: Upstream,
    /// `[detection]`: what the monitor needs beyond `policy`.
    pub detection: Detection,
    /// `[detection]`, `[failover]` and `[failback]` as the engine wants them.
    pub policy: Policy,
    /// `[hold]`
    pub hold: Hold,
    /// `[admin]`
    pub admin: Admin,
    /// `[log]`
    pub log: Log,
}

/// Where applications connect.
#[derive(Clone, Debug)]
pub struct Listener {
    /// `bind`; at least one.
    pub bind: Vec<Bind>,
    /// `max_clients`: connections beyond it get `-ERR max number of clients reached`.
    pub max_clients: usize,
    /// `workers`: data-plane threads.
    pub workers: usize,
}

/// One listening address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bind {
    /// `host:port`; port 0 picks a free one, which the log names.
    Tcp(SocketAddr),
    /// `unix:/path`
    Unix(PathBuf),
}

/// How links behave.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `detection.connect_timeout`
    pub connect_timeout: Duration,
    /// `detection.response_timeout`: a sent command without an answer (not for blocking commands).
    pub response_timeout: Duration,
}

/// What the monitor needs beyond the policy.
#[derive(Clone, Debug)]
pub struct Detection {
    /// `detection.channel_prefix`
    pub channel_prefix: String,
}

/// Bounds of the hold.
#[derive(Clone, Debug)]
pub struct Hold {
    /// Longest wait of one command.
    pub timeout: Duration,
    /// Commands held at once.
    pub max_commands: usize,
    /// Bytes held at once.
    pub max_bytes: usize,
}

/// The admin server.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `bind`
    pub bind: SocketAddr,
    /// The bearer token that the changing verbs need; `None` on a loopback bind.
    pub token: Option<crate::replica::Secret>,
    /// `state_file`: where a pin survives restarts; `None` when empty.
    pub state_file: Option<PathBuf>,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct Log {
    /// `format`
    pub format: LogFormat,
    /// `level`: a `tracing` filter, for instance `info` or `pulsegate::proxy=debug,info`.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
