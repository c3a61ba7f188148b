//! One way to open a connection to an endpoint: resolve, connect, TLS.
//!
//! Owns the TLS configuration of an endpoint (its files are read once, by [`Dialer::new`]) and the socket options of
//! every connection. Links of the data plane and the monitor both dial here, so that what one of them proves holds for
//! the other. Never authenticates, never speaks RESP, never retries: a caller that wants another attempt dials again,
//! and the name is then resolved again.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::replica::{Address, Endpoint};

mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use stream::Stream;
pub use tls::tls_alert;

/// Idle time after which the kernel begins to probe a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Time between two of the kernel's probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Unanswered probes after which the kernel gives the connection up.
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged: as long as keepalive would take to give an idle connection up.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Opens connections to one endpoint. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Arc<Endpoint>,
    tls: Option<TlsSetup>,
}

struct TlsSetup {
    connector: TlsConnector,
    server_name: ServerName<'static>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("endpoint", &self.shared.endpoint)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// Reads the endpoint's TLS files, when it has any, and checks that they fit together.
    ///
    /// # Errors
    /// [`DialError::Files`] when a file cannot be read or does not hold what it should, [`DialError::Tls`] when no TLS
    /// configuration can be made of the files or the server name.
    pub fn new(endpoint: Arc<Endpoint>) -> Result<Dialer, DialError> {
        let tls = endpoint
            .tls
            .as_ref()
            .map(|tls| TlsSetup::new(&endpoint.address, tls))
            .transpose()?;
        Ok(Dialer {
            shared: Arc::new(Shared { endpoint, tls }),
        })
    }

    /// A dialer to `address` with this one's credentials and TLS: another node of the same cluster. No file is read.
    ///
    /// # Errors
    /// [`DialError::Tls`] when the host at `address` cannot be verified by any name.
    pub fn towards(&self, address: Address) -> Result<Dialer, DialError> {
        let endpoint = Endpoint {
            address,
            ..Endpoint::clone(self.endpoint())
        };
        let tls = match (&self.shared.tls, &endpoint.tls) {
            (Some(setup), Some(tls)) => Some(setup.towards(&endpoint.address, tls)?),
            _ => None,
        };
        Ok(Dialer {
            shared: Arc::new(Shared {
                endpoint: Arc::new(endpoint),
                tls,
            }),
        })
    }

    /// Where this dialer connects to.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.shared.endpoint
    }

    /// Opens one connection: resolves the name, tries every address in turn, each with a fair share of what is left of
    /// `timeout`, and completes the TLS handshake.
    ///
    /// With TLS 1.3 a server that rejects the client's certificate says so after the handshake: the first read fails.
    ///
    /// # Errors
    /// Every variant but [`DialError::Files`]. When several addresses failed in different ways, the one that says most:
    /// TLS, then time-out, then refused (hard evidence only when no address did worse than refuse).
    pub async fn connect(&self, timeout: Duration) -> Result<Stream, DialError> {
        let deadline = Instant::now() + timeout;
        match &self.shared.endpoint.address {
            Address::Unix(path) => self.connect_unix(path, deadline, timeout).await,
            Address::Tcp { host, port } => {
                let addresses = self.resolve(host, *port, deadline, timeout).await?;
                self.connect_any(&addresses, deadline, timeout).await
            }
        }
    }

    async fn resolve(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Vec<SocketAddr>, DialError> {
        // An IP literal needs no resolver, and so no thread of the blocking pool.
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        match tokio::time::timeout_at(deadline, tokio::net::lookup_host((host, port))).await {
            Ok(Ok(found)) => {
                let mut addresses: Vec<SocketAddr> = Vec::new();
                for address in found {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                if addresses.is_empty() {
                    return Err(self.failed(DialErrorKind::Refused, "the name has no address".to_owned()));
                }
                Ok(addresses)
            }
            Ok(Err(error)) => Err(self.failed(
                DialErrorKind::Refused,
                format!("the name does not resolve: {error}"),
            )),
            Err(_) => Err(self.failed(
                DialErrorKind::Timeout,
                format!("the name was not resolved within {timeout:?}"),
            )),
        }
    }

    async fn connect_any(
        &self,
        addresses: &[SocketAddr],
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Stream, DialError> {
        let mut worst: Option<DialError> = None;
        for (tried, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let waiting = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = left / waiting;
            let attempt = tokio::time::timeout(share, self.connect_one(*address));
            let error = match attempt.await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err((kind, cause))) => self.failed(kind, format!("{address}: {cause}")),
                Err(_) => self.failed(
                    DialErrorKind::Timeout,
                    // The share itself differs from attempt to attempt; the words must not, or a log repeats them.
                    format!(
                        "{address}: no {} within {}",
                        self.expected(),
                        share_of(timeout, addresses.len())
                    ),
                ),
            };
            worst = match worst {
                Some(before) if before.kind().weight() >= error.kind().weight() => Some(before),
                _ => Some(error),
            };
        }
        Err(worst.unwrap_or_else(|| self.failed(DialErrorKind::Refused, "no address to try".to_owned())))
    }

    /// What a time-out waited for.
    fn expected(&self) -> &'static str {
        if self.shared.tls.is_some() {
            "connection and TLS handshake"
        } else {
            "connection"
        }
    }

    async fn connect_one(&self, address: SocketAddr) -> Result<Stream, (DialErrorKind, String)> {
        let tcp = connect_tcp(address)
            .await
            .map_err(|error| (classify(&error), error.to_string()))?;
        let Some(tls) = &self.shared.tls else {
            return Ok(Stream::Tcp(tcp));
        };
        tls.connector
            .connect(tls.server_name.clone(), tcp)
            .await
            .map(|stream| Stream::Tls(Box::new(stream)))
            .map_err(|error| tls::describe(&error))
    }

    async fn connect_unix(
        &self,
        path: &Path,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Stream, DialError> {
        match tokio::time::timeout_at(deadline, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(Stream::Unix(stream)),
            Ok(Err(error)) => {
                let kind = match error.kind() {
                    // No such path: nobody listens there.
                    io::ErrorKind::NotFound => DialErrorKind::Refused,
                    // A full backlog: the process is there but does not accept.
                    io::ErrorKind::WouldBlock => DialErrorKind::Timeout,
                    _ => classify(&error),
                };
                Err(self.failed(kind, error.to_string()))
            }
            Err(_) => Err(self.failed(
                DialErrorKind::Timeout,
                format!("no connection within {timeout:?}"),
            )),
        }
    }

    fn failed(&self, kind: DialErrorKind, cause: String) -> DialError {
        DialError::new(kind, &self.shared.endpoint.address, cause)
    }
}

fn share_of(timeout: Duration, addresses: usize) -> String {
    if addresses == 1 {
        format!("{timeout:?}")
    } else {
        format!("its share of {timeout:?}, one of {addresses} addresses")
    }
}

async fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    options.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let stream = socket.connect(address).await?;
    // Dialling a dead local port again and again meets, once in a while, a source port equal to the target: TCP's
    // simultaneous open then connects the socket to itself, and would keep the port from the server that returns.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "nobody listens (the connection reached itself)",
        ));
    }
    Ok(stream)
}

fn classify(error: &io::Error) -> DialErrorKind {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DialErrorKind::Refused,
        io::ErrorKind::TimedOut => DialErrorKind::Timeout,
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory => DialErrorKind::Local,
        _ if matches!(
            error.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS)
        ) =>
        {
            DialErrorKind::Local
        }
        _ => DialErrorKind::Other,
    }
}

/// Why no connection was made. No byte of a command was sent in any of these cases. Messages name the endpoint and the
/// cause, never a secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens there: refused, the name does not resolve, or the unix path does not exist.
    #[error("cannot connect to {address}: {cause}")]
    Refused {
        /// The endpoint's address.
        address: Address,
        /// What the system said.
        cause: String,
    },
    /// No connection, or no finished TLS handshake, in time.
    #[error("cannot connect to {address}: {cause}")]
    Timeout {
        /// The endpoint's address.
        address: Address,
        /// What was waited for, and how long.
        cause: String,
    },
    /// The peers do not agree on TLS: an untrusted or wrong certificate, no common version, no TLS there at all.
    #[error("TLS with {address} failed: {cause}")]
    Tls {
        /// The endpoint's address.
        address: Address,
        /// What rustls said.
        cause: String,
    },
    /// A TLS file cannot be used. Only at [`Dialer::new`].
    #[error("{}: {cause}", path.display())]
    Files {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// This process, or its machine, has no room for another connection: out of file descriptors, ports or memory. Says
    /// nothing about the endpoint.
    #[error("cannot connect to {address}: {cause}")]
    Local {
        /// The endpoint's address.
        address: Address,
        /// What the system said.
        cause: String,
    },
    /// Anything else: network unreachable, reset, permission denied.
    #[error("cannot connect to {address}: {cause}")]
    Other {
        /// The endpoint's address.
        address: Address,
        /// What the system said.
        cause: String,
    },
}

/// The kinds of [`DialError`], for evidence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DialErrorKind {
    /// See [`DialError::Refused`]. Hard evidence.
    Refused,
    /// See [`DialError::Timeout`].
    Timeout,
    /// See [`DialError::Tls`].
    Tls,
    /// See [`DialError::Files`].
    Files,
    /// See [`DialError::Local`].
    Local,
    /// See [`DialError::Other`].
    Other,
}

impl DialErrorKind {
    /// Which of several failed addresses is reported: the highest.
    fn weight(self) -> u8 {
        match self {
            DialErrorKind::Other => 0,
            DialErrorKind::Refused => 1,
            DialErrorKind::Timeout => 2,
            DialErrorKind::Tls => 3,
            DialErrorKind::Files => 4,
            DialErrorKind::Local => 5,
        }
    }
}

impl DialError {
    fn new(kind: DialErrorKind, address: &Address, cause: String) -> DialError {
        let address = address.clone();
        match kind {
            DialErrorKind::Refused => DialError::Refused { address, cause },
            DialErrorKind::Timeout => DialError::Timeout { address, cause },
            DialErrorKind::Tls => DialError::Tls { address, cause },
            DialErrorKind::Local => DialError::Local { address, cause },
            DialErrorKind::Files | DialErrorKind::Other => DialError::Other { address, cause },
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> DialErrorKind {
        match self {
            DialError::Refused { .. } => DialErrorKind::Refused,
            DialError::Timeout { .. } => DialErrorKind::Timeout,
            DialError::Tls { .. } => DialErrorKind::Tls,
            DialError::Files { .. } => DialErrorKind::Files,
            DialError::Local { .. } => DialErrorKind::Local,
            DialError::Other { .. } => DialErrorKind::Other,
        }
    }
}
