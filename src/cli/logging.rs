//! Log lines: to standard error, with a timestamp in UTC, as text or as one JSON object each.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use super::{Exit, Failure};
use crate::config::{Log, LogFormat};

/// Starts the log of this process; once.
///
/// # Errors
/// When the filter is unusable (the configuration has checked it) or a log was started before.
pub fn start(log: &Log) -> Result<(), Failure> {
    let filter = log
        .level
        .parse::<EnvFilter>()
        .map_err(|error| Failure::new(Exit::Usage, format!("log.level = {:?}: {error}", log.level)))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(SystemTime)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(Exit::Software, format!("cannot start the log: {error}")))
}
