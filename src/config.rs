//! Configuration: file, environment and flags → one validated [`Config`].
//!
//! Owns every key's name, range and default (`schema`). Never connects, and never prints a secret.
//!
//! ```text
//! file ──toml──┐
//! environment ─┼─→ tree (values with their origin) ──walk──→ values ──assemble──→ Config
//! flags ───────┘                                       │                  │
//!                                                      └──── Problems ────┘   all of them at once
//! ```
//!
//! Later sources win: defaults < file < environment < flags. A key of the design whose part is not built yet is refused
//! as such, never ignored.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::decision::Policy;
use crate::replica::Replica;

mod assemble;
mod changes;
mod env;
mod flags;
mod problem;
mod replicas;
mod rest;
mod schema;
#[cfg(test)]
mod tests;
mod tree;
mod url;
mod value;
mod walk;

pub use changes::{Change, changes};
pub use flags::Flags;
pub use problem::{Origin, Problem, Problems};
pub(crate) use value::shown_size;

/// Where a configuration comes from.
#[derive(Clone, Default, Debug)]
pub struct Sources {
    /// `--config`
    pub file: Option<PathBuf>,
    /// The environment, name and value; variables that do not begin with `PULSEGATE_` are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line.
    pub flags: Flags,
}

/// A configuration that can be run.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but perhaps not as wished.
    pub warnings: Vec<Problem>,
    /// The file as it was read, if one was named: what a later change of it is noticed by.
    pub text: Option<String>,
}

/// Reads and checks a configuration.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut root = tree::Table::new();
    let mut whole = Origin::Nowhere;
    let mut read = None;
    if let Some(path) = &sources.file {
        let path: Arc<Path> = Arc::from(path.as_path());
        whole = Origin::File {
            path: path.clone(),
            line: None,
        };
        match read_file(&path) {
            Ok(text) => {
                root = tree::from_toml(&text, &path, &mut problems);
                read = Some(text);
            }
            Err(text) => problems.push(Problem {
                origin: whole.clone(),
                subject: String::new(),
                text,
            }),
        }
    }
    // What a broken file would have said is not known, so nothing is called missing.
    let is_whole = problems.is_empty();
    env::overlay(&mut root, &sources.environment, &mut problems);
    let is_whole_list = problems.len();
    flags::overlay(&mut root, &sources.flags, &mut problems);
    let is_whole = is_whole && problems.len() == is_whole_list;
    let values = walk::walk(&root, &mut problems);
    let mut loaded = None;
    if is_whole {
        let mut findings = assemble::Findings {
            values: &values,
            whole,
            problems: &mut problems,
            warnings: &mut warnings,
        };
        loaded = Some(assemble::assemble(&mut findings));
    }
    match loaded {
        Some(config) if problems.is_empty() => Ok(Loaded {
            config,
            warnings,
            text: read,
        }),
        _ => {
            problems.sort_by(|a, b| a.origin.cmp(&b.origin));
            problems.dedup();
            Err(Problems(problems))
        }
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let bytes =
        std::fs::read(path).map_err(|error| format!("cannot be read: {}", value::words_of(&error)))?;
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("not UTF-8 in line {line}")
    })
}

/// Every key that a configuration can have, in the order of `config/example.toml`.
pub fn keys() -> impl Iterator<Item = &'static str> {
    schema::KEYS.iter().map(|key| key.path)
}

/// The environment variable of the key at `path` (one of [`keys`]); `position` is the replica's.
pub fn environment_name(path: &str, position: usize) -> String {
    env::name_of(path, position)
}

/// The whole validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[listener]`
    pub listener: Listener,
    /// `[[replica]]`, in the order of the configuration; `replicas[i].id == ReplicaId(i)`. One to 16 of them.
    pub replicas: Vec<Replica>,
    /// `[cluster]`
    pub cluster: Cluster,
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
    /// `output_limit`: bytes that may wait for one application to read them; beyond, it is disconnected.
    pub output_limit: usize,
}

/// One listening address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bind {
    /// `host:port`; port 0 picks a free one, which the log names.
    Tcp(SocketAddr),
    /// `unix:/path`
    Unix(PathBuf),
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Tcp(address) => write!(f, "{address}"),
            Bind::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What applies to every sharded replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// `split`: requests whose keys are in several slots (MGET, EXISTS, TOUCH, DEL, UNLINK, MSET) are carried out in parts.
    pub split: bool,
}

/// Who shares upstream connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpstreamMode {
    /// Stateless commands of all sessions; a session that needs a connection of its own has one for as long.
    Shared,
    /// Nobody: every session has a connection of its own.
    Dedicated,
}

/// How links behave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// `upstream.mode`
    pub mode: UpstreamMode,
    /// `upstream.shared_links`: shared connections of each worker to each replica; at least one.
    pub shared_links: usize,
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
#[derive(Clone, PartialEq, Eq, Debug)]
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
