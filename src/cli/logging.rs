//! Log lines: to standard error, with a timestamp in UTC, as text or as one JSON object each.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use super::{Exit, Failure};
use crate::config::{Log, LogFormat};

/// Changes the level of the running log.
pub struct Level(Set);

type Set = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Level")
    }
}

impl Level {
    /// From now on log what `level` says.
    ///
    /// # Errors
    /// In words, when the filter is unusable (the configuration has checked it); the old one stays.
    pub fn set(&self, level: &str) -> Result<(), String> {
        let filter = level
            .parse::<EnvFilter>()
            .map_err(|error| format!("log.level = {level:?}: {error}"))?;
        (self.0)(filter)
    }
}

/// Starts the log of this process; once.
///
/// # Errors
/// When the filter is unusable (the configuration has checked it) or a log was started before.
pub fn start(log: &Log) -> Result<Level, Failure> {
    let filter = log
        .level
        .parse::<EnvFilter>()
        .map_err(|error| Failure::new(Exit::Usage, format!("log.level = {:?}: {error}", log.level)))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(SystemTime)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    // The two handles have types of their own, which nobody else needs to know.
    let (started, level) = match log.format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let level: Set = Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()));
            (builder.try_init(), level)
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            let level: Set = Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()));
            (builder.try_init(), level)
        }
    };
    started
        .map(|()| Level(level))
        .map_err(|error| Failure::new(Exit::Software, format!("cannot start the log: {error}")))
}
