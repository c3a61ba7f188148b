//! A client of the admin API: plain HTTP/1.1, one connection for each request.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{AdminArgs, Exit, Failure};
use crate::replica::Secret;

/// Where `admin.bind` is by default.
const DEFAULT: &str = "127.0.0.1:9379";
const DEFAULT_PORT: u16 = 9379;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer that is read: a status of 16 replicas with thousands of links is far below.
const ANSWER_MAX: usize = 16 << 20;

/// Time for the answer to a question.
pub(super) const QUICK: Duration = Duration::from_secs(5);
/// Time for the answer to a request that moves the traffic: the answer comes when the move has ended.
pub(super) const MOVE: Duration = Duration::from_secs(90);

/// The admin server of one sidecar.
#[derive(Debug)]
pub(super) struct AdminClient {
    /// `host:port`
    authority: String,
    token: Option<Secret>,
}

impl AdminClient {
    /// The server that the flags name, or else the environment that configured it, or else the default one.
    pub(super) fn new(args: &AdminArgs) -> Result<AdminClient, Failure> {
        let authority = match &args.admin {
            Some(url) => authority(url).map_err(|why| {
                Failure::new(
                    Exit::Usage,
                    format!("--admin {url:?}: {why}; write e.g. http://127.0.0.1:9379"),
                )
            })?,
            None => match std::env::var("PULSEGATE_ADMIN__BIND") {
                Ok(bind) => reachable(&bind),
                Err(_) => DEFAULT.to_owned(),
            },
        };
        let (source, file) = match &args.token_file {
            Some(file) => ("--token-file", Some(file.clone())),
            None => (
                "PULSEGATE_ADMIN__TOKEN_FILE",
                std::env::var_os("PULSEGATE_ADMIN__TOKEN_FILE").map(Into::into),
            ),
        };
        let token = match file {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(&file).map_err(|error| {
                    let message = format!("{source} {}: cannot be read: {error}", file.display());
                    Failure::new(Exit::Usage, message)
                })?;
                let text = text.trim_end_matches(['\r', '\n']);
                if text.is_empty() || text.contains(|c: char| c.is_control()) {
                    let message = format!("{source} {}: not a file with one token", file.display());
                    return Err(Failure::new(Exit::Usage, message));
                }
                Some(Secret::new(text))
            }
        };
        Ok(AdminClient { authority, token })
    }

    /// Asks, and reads the whole answer within `limit`.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let exchange = async {
            let response = self.open(method, path, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            let body = body.map_err(|error| self.unavailable(&format!("the answer broke off: {error}")))?;
            Ok((status, body.to_bytes()))
        };
        match timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unavailable(&format!("no answer within {} s", limit.as_secs()))),
        }
    }

    /// Asks, and returns as soon as the answer's head is there.
    pub(super) async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.authority)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.unavailable(&error.to_string())),
            Err(_) => {
                let waited = CONNECT_TIMEOUT.as_secs();
                return Err(self.unavailable(&format!("no connection within {waited} s")));
            }
        };
        let broken = |error: hyper::Error| self.unavailable(&format!("not an admin server: {error}"));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends with the exchange; its error reaches the exchange as well.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(
                header::USER_AGENT,
                concat!("pulsegate/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(bytes))
            .map_err(|error| Failure::new(Exit::Usage, format!("cannot ask {}: {error}", self.authority)))?;
        sender.send_request(request).await.map_err(broken)
    }

    /// The admin server could not be reached, or does not answer as one.
    pub(super) fn unavailable(&self, why: &str) -> Failure {
        let message = format!(
            "no answer from the admin server at http://{}: {why}",
            self.authority
        );
        Failure::new(Exit::Unavailable, message)
    }
}

/// `host:port` of a URL.
fn authority(url: &str) -> Result<String, String> {
    if url.starts_with("https://") {
        return Err("the admin server speaks plain HTTP".to_owned());
    }
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() || rest.contains(['/', '@', '?', '#', ' ']) {
        return Err("not the URL of a server".to_owned());
    }
    let after_host = rest.rfind(']').map_or(rest, |end| &rest[end..]);
    match after_host.rsplit_once(':') {
        None => Ok(format!("{rest}:{DEFAULT_PORT}")),
        Some((_, port)) if port.parse::<u16>().is_ok() => Ok(rest.to_owned()),
        Some(_) => Err("the port is not a number from 1 to 65535".to_owned()),
    }
}

/// The address at which a server bound to `bind` is reached from here.
fn reachable(bind: &str) -> String {
    match bind.parse::<SocketAddr>() {
        Ok(mut address) if address.ip().is_unspecified() => {
            match address {
                SocketAddr::V4(_) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                SocketAddr::V6(_) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            }
            address.to_string()
        }
        _ => bind.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_url_is_a_host_and_a_port() {
        for (url, want) in [
            ("http://127.0.0.1:9379", "127.0.0.1:9379"),
            ("http://127.0.0.1:9379/", "127.0.0.1:9379"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("sidecar", "sidecar:9379"),
            ("http://[::1]", "[::1]:9379"),
            ("http://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(authority(url).as_deref(), Ok(want), "{url}");
        }
        for url in [
            "",
            "http://",
            "https://a:1",
            "http://a:x",
            "http://a:1/status",
            "http://u@a:1",
            "a:99999",
        ] {
            assert!(authority(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_server_on_every_interface_is_reached_on_loopback() {
        assert_eq!(reachable("0.0.0.0:9379"), "127.0.0.1:9379");
        assert_eq!(reachable("[::]:9379"), "[::1]:9379");
        assert_eq!(reachable("10.0.0.1:9379"), "10.0.0.1:9379");
        assert_eq!(reachable("localhost:9379"), "localhost:9379");
    }
}
