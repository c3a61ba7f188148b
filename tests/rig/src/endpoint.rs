//! Where a server is and how to log in to it: the one noun that syncers, regions and tests share.
//!
//! Never keeps a connection: every dial is a fresh one, so that a fault of one moment does not outlive it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult};
use tokio::net::TcpStream;

/// A server's address and credentials.
#[derive(Clone, Debug)]
pub struct Endpoint {
    info: ConnectionInfo,
}

impl Endpoint {
    /// Reads a URL such as `redis://user:password@host:port`.
    ///
    /// # Errors
    /// When it is not a Redis URL, or one of TLS or a unix socket: syncers speak plain TCP.
    pub fn from_url(url: &str) -> anyhow::Result<Self> {
        let info = url
            .into_connection_info()
            .map_err(|error| anyhow::anyhow!("{url}: {error}"))?;
        anyhow::ensure!(
            matches!(info.addr(), ConnectionAddr::Tcp(..)),
            "{url}: only redis://HOST:PORT is understood here (no TLS, no unix socket)"
        );
        Ok(Self { info })
    }

    pub(crate) fn tcp(host: &str, port: u16, password: Option<&str>) -> RedisResult<Self> {
        Self::at(ConnectionAddr::Tcp(host.to_owned(), port), password)
    }

    pub(crate) fn unix(path: &std::path::Path, password: Option<&str>) -> RedisResult<Self> {
        Self::at(ConnectionAddr::Unix(path.to_owned()), password)
    }

    fn at(addr: ConnectionAddr, password: Option<&str>) -> RedisResult<Self> {
        let info = addr.into_connection_info()?;
        let mut login = info.redis_settings().clone();
        if let Some(password) = password {
            login = login.set_password(password);
        }
        Ok(Self {
            info: info.set_redis_settings(login),
        })
    }

    /// `host:port`, or the socket's path.
    #[must_use]
    pub fn address(&self) -> String {
        self.info.addr().to_string()
    }

    /// Opens a connection for commands; `patience` bounds the connect and every reply.
    ///
    /// # Errors
    /// As the `redis` crate reports them: refused, timed out, wrong password, loading …
    pub async fn connect(&self, patience: Duration) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(patience));
        redis::Client::open(self.info.clone())?
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Opens a bare TCP connection, for the replication protocol.
    pub(crate) async fn dial(&self) -> std::io::Result<TcpStream> {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => TcpStream::connect((host.as_str(), *port)).await,
            other => Err(std::io::Error::other(format!(
                "{other}: replication needs a TCP address"
            ))),
        }
    }

    /// The words of AUTH, when there is anything to authenticate with.
    pub(crate) fn auth(&self) -> Option<Vec<&str>> {
        let login = self.info.redis_settings();
        let password = login.password()?;
        Some(login.username().into_iter().chain([password]).collect())
    }
}
