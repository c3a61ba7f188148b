//! A replica's URL: `redis://[user[:password]@]host[:port]`, `rediss://…`, `unix:///path`; its cluster's REST API:
//! `https://host[:port]`.
//!
//! Parsed here, so that no error and no log ever quotes a password.

use std::path::PathBuf;

use super::problem::nearest;
use crate::replica::{Address, Secret};

/// The port when a URL names none.
pub(super) const DEFAULT_PORT: u16 = 6379;
/// Where Redis Enterprise serves its REST API over TLS, and without.
const HTTPS_PORT: u16 = 9443;
const HTTP_PORT: u16 = 8080;

/// A URL, taken apart.
#[derive(Debug)]
pub(super) struct Url {
    pub(super) address: Address,
    /// `rediss`, `https`
    pub(super) tls: bool,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
}

/// Reads a URL; the error says what would be right and never quotes the part that may hold a password.
pub(super) fn parse(text: &str) -> Result<Url, String> {
    if let Some(rest) = text.strip_prefix("unix:") {
        return parse_unix(rest);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("not a URL; write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH".to_owned());
    };
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        other => {
            let hint = match nearest(other, ["redis", "rediss", "unix"]) {
                Some(near) => format!("did you mean {near}://?"),
                None => "write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH".to_owned(),
            };
            return Err(format!("unknown scheme; {hint}"));
        }
    };
    if rest.contains('?') || rest.contains('#') {
        return Err(
            "options after ? or # are not supported here; write them as keys (a password with such a character \
             must be percent-encoded: ? is %3F, # is %23)"
                .to_owned(),
        );
    }
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if path.contains('@') {
        return Err("a / in a user name or password must be percent-encoded as %2F".to_owned());
    }
    let (identity, host_port) = match authority.rsplit_once('@') {
        Some((identity, host_port)) => (Some(identity), host_port),
        None => (None, authority),
    };
    let address = parse_host_port(host_port, DEFAULT_PORT, "write redis://HOST:PORT")?;
    match path {
        "" | "/" | "/0" => {}
        _ => {
            return Err(
                "a database number or path is not supported: Active-Active databases have only database 0, \
                 and SELECT belongs to the application; end the URL after the port"
                    .to_owned(),
            );
        }
    }
    let (username, password) = match identity {
        Some(identity) => parse_identity(identity)?,
        None => (None, None),
    };
    Ok(Url {
        address,
        tls,
        username,
        password,
    })
}

/// Reads the URL of a REST API; as for [`parse`].
pub(super) fn parse_http(text: &str) -> Result<Url, String> {
    let example = "write https://HOST:9443";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("not a URL; {example}"));
    };
    let (tls, port) = match scheme {
        "https" => (true, HTTPS_PORT),
        "http" => (false, HTTP_PORT),
        _ => return Err(format!("unknown scheme; {example}")),
    };
    if rest.contains('@') {
        return Err(
            "credentials in the URL are not supported here; write username and password_file".to_owned(),
        );
    }
    let host_port = rest.strip_suffix('/').unwrap_or(rest);
    if host_port.contains(['/', '?', '#']) {
        return Err(format!(
            "only a server is named here, Pulsegate knows the paths; {example}"
        ));
    }
    Ok(Url {
        address: parse_host_port(host_port, port, example)?,
        tls,
        username: None,
        password: None,
    })
}

fn parse_unix(rest: &str) -> Result<Url, String> {
    let path = match rest.strip_prefix("//") {
        Some(path) => path,
        None => rest,
    };
    if path.contains('?') || path.contains('@') {
        return Err("a unix URL is only a path; write the rest as username and password_file".to_owned());
    }
    if !path.starts_with('/') || path.len() < 2 {
        return Err("the path of a unix socket must be absolute; write unix:///PATH".to_owned());
    }
    if path.len() > SUN_PATH_MAX {
        return Err(format!(
            "the path of a unix socket has at most {SUN_PATH_MAX} bytes"
        ));
    }
    Ok(Url {
        address: Address::Unix(PathBuf::from(path)),
        tls: false,
        username: None,
        password: None,
    })
}

/// `sockaddr_un.sun_path` has 108 bytes on Linux, the last a NUL.
pub(super) const SUN_PATH_MAX: usize = 107;

/// `HOST`, `HOST:PORT` or `[IPv6]:PORT`. `default`: the port when there is none.
pub(super) fn parse_host_port(text: &str, default: u16, example: &str) -> Result<Address, String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((host, port)) = rest.split_once(']') else {
            return Err("the ] after the IPv6 address is missing".to_owned());
        };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("what stands in [] is not an IPv6 address".to_owned());
        }
        match port.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if port.is_empty() => (host, None),
            None => return Err("after the ] only :PORT may follow".to_owned()),
        }
    } else {
        if text.matches(':').count() > 1 {
            return Err("write an IPv6 address in brackets: [::1]:PORT".to_owned());
        }
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err(format!("the host is missing; {example}"));
    }
    let is_name = host
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'));
    if !is_name {
        return Err("the host is neither a name nor an IP address".to_owned());
    }
    let port = match port {
        None => default,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err("the port is not a number from 1 to 65535".to_owned()),
        },
    };
    Ok(Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

fn parse_identity(identity: &str) -> Result<(Option<String>, Option<Secret>), String> {
    let (username, password) = match identity.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (identity, None),
    };
    let username = percent_decoded(username)?;
    let password = password.map(percent_decoded).transpose()?;
    if password.as_deref() == Some("") {
        return Err("the password is empty".to_owned());
    }
    Ok((
        (!username.is_empty()).then_some(username),
        password.map(Secret::new),
    ))
}

/// RFC 3986, section 2.1.
fn percent_decoded(text: &str) -> Result<String, String> {
    let bad =
        || "a % in the user name or password must be followed by two hexadecimal digits; write % as %25";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|c| char::from(c).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(bad().to_owned()),
        }
    }
    String::from_utf8(bytes).map_err(|_| "the user name or password is not UTF-8 once decoded".to_owned())
}

/// A URL for people: without user, password and options. What does not look like an address is left out, since it
/// may be a password in the wrong place.
pub(super) fn shown(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => match text.strip_prefix("unix:") {
            Some(rest) => ("unix:".to_owned(), rest),
            None => (String::new(), text),
        },
    };
    if !scheme
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | ':' | '/'))
    {
        return "…".to_owned();
    }
    let (identity, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("***@", rest),
        None => ("", rest),
    };
    let plain = if scheme.starts_with("unix:") {
        rest.chars().all(|c| !c.is_control() && c != '?')
    } else {
        is_plain_address(rest)
    };
    let rest = if plain { rest } else { "…" };
    format!("{scheme}{identity}{rest}")
}

/// `host`, `host:port`, `[v6]:port`, each perhaps with `/digits`.
fn is_plain_address(text: &str) -> bool {
    let (host_port, path) = text.split_once('/').unwrap_or((text, ""));
    let (host, port) = match host_port.strip_prefix('[') {
        Some(rest) => {
            let Some((host, port)) = rest.split_once(']') else {
                return false;
            };
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port.strip_prefix(':').unwrap_or(port))
        }
        None => host_port.split_once(':').unwrap_or((host_port, "")),
    };
    !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        && port.chars().all(|c| c.is_ascii_digit())
        && path.chars().all(|c| c.is_ascii_digit())
}
