//! The nouns that all parts share: which replica, which shard, and where it is reached.
//!
//! Nothing here does any work; `dial` opens connections to an [`Endpoint`].

mod layout;
mod rest;
mod topology;

pub use layout::{Cell, Layout, Shard, SlotRange, cells, slot_words};
pub use rest::{Database, Rest};
pub use topology::{AddressPair, Topology, TopologyKind};

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A replica, as its position in the configuration (which is also the order of preference among equal weights).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReplicaId(pub u8);

impl ReplicaId {
    /// The position as an index into tables kept per replica.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A shard of one replica. A replica reached through one endpoint has the single shard 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The only shard of a replica that is not sharded.
    pub const ONLY: ShardId = ShardId(0);
}

/// A cell of the replicas' layouts (see [`Cell`]). Given once in the life of the process: a cell of a new layout that is
/// the same as one before keeps its id, every other one has a new id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CellId(pub u32);

impl CellId {
    /// The only cell of replicas that are not sharded, or whose layouts are not known yet.
    pub const ONLY: CellId = CellId(0);
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One participating database of the Active-Active set.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its position in the configuration.
    pub id: ReplicaId,
    /// Its name, as operators, logs and metrics call it.
    pub name: Arc<str>,
    /// Preference: the highest weight is the preferred replica; equal weights go by position.
    pub weight: u32,
    /// How it is sharded.
    pub topology: Topology,
    /// Where it is reached, and how.
    pub endpoint: Arc<Endpoint>,
    /// Its cluster's REST API, when it is to be asked.
    pub rest: Option<Arc<Rest>>,
}

/// Where a replica is reached, with the identity Pulsegate itself uses there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The transport address.
    pub address: Address,
    /// TLS, for `rediss://`.
    pub tls: Option<Tls>,
    /// The identity that links and the monitor present, when one is configured.
    pub credentials: Option<Credentials>,
}

/// A transport address. Host names are resolved again at every connect.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// `host:port`; the host is a name or an IP address (IPv6 without brackets).
    Tcp {
        /// Name or IP address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A unix domain socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How a TLS endpoint is verified and how Pulsegate identifies itself to it.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Tls {
    /// PEM file with the certificate authorities to trust; the system's store (`/etc/ssl/certs`) when `None`.
    pub ca: Option<PathBuf>,
    /// PEM file with Pulsegate's own certificate chain; needs `key`.
    pub cert: Option<PathBuf>,
    /// PEM file with the private key of `cert`.
    pub key: Option<PathBuf>,
    /// The name to ask for (SNI) and to verify; the address's host when `None`.
    pub server_name: Option<String>,
    /// Accept any certificate. For tests and emergencies: the connection is then open to interception.
    pub insecure_skip_verify: bool,
}

/// A user and password for AUTH.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// ACL user; `None` sends the one-argument AUTH of the default user.
    pub username: Option<String>,
    /// The password.
    pub password: Secret,
}

/// Text that never reaches a log, an error or `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself, for the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
