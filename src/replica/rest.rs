//! The REST API of the cluster that a replica's database lives in.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Endpoint;

/// How a cluster (Redis Enterprise) is asked over REST about a replica's database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rest {
    /// Where its API listens, how TLS is verified there, and as whom Pulsegate asks.
    pub endpoint: Arc<Endpoint>,
    /// Which of the cluster's databases is the replica.
    pub database: Database,
    /// Ask the node at the endpoint about its own proxy only, not about the whole database.
    pub local: bool,
    /// Replication lag up to which the cluster is to call the database available.
    pub lag_tolerance: Duration,
    /// How often it is asked.
    pub interval: Duration,
}

impl fmt::Display for Rest {
    /// Its URL, without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.endpoint.tls.is_some() {
            "https"
        } else {
            "http"
        };
        write!(f, "{scheme}://{}", self.endpoint.address)
    }
}

/// A database of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Database {
    /// The one that has an endpoint at the replica's host and port.
    Auto,
    /// The one with this number (`uid`).
    Uid(u64),
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Database::Auto => f.write_str("found by its endpoint"),
            Database::Uid(uid) => write!(f, "{uid}"),
        }
    }
}
