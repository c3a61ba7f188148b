//! Who may come in: the bearer token, and two refusals that keep web pages out.
//!
//! A browser on this host reaches a loopback listener too, and a page from anywhere can make it send requests:
//! - **Cross-site requests** carry the page's `Origin` on every POST. One that is not this server's own is refused.
//! - **DNS rebinding** makes a page's own name resolve to 127.0.0.1, so that origin and host agree. Without a token,
//!   `Host` must therefore be an address or `localhost`; with one, the page cannot know the token.
//!
//! The token guards the verbs, not the reads: what `/status` tells is what `/metrics` tells.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::verbs::Answer;

/// The middleware of all guarded routes.
pub(super) async fn check(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let token = shared.token.as_ref().map(|token| token.expose());
    match refusal(request.method(), request.headers(), token) {
        None => next.run(request).await,
        Some(refusal) => refusal.into_response(),
    }
}

/// Why a request is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refusal {
    /// No token, or a wrong one.
    Token,
    /// A web page of another site.
    Origin,
    /// A name that may be a web page's.
    Host,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Refusal::Token => {
                let answer = Answer::refused("a bearer token is needed, and this is not it");
                (
                    StatusCode::UNAUTHORIZED,
                    [(header::WWW_AUTHENTICATE, "Bearer")],
                    answer,
                )
                    .into_response()
            }
            Refusal::Origin => {
                let answer = Answer::refused("requests of other web sites are refused");
                (StatusCode::FORBIDDEN, answer).into_response()
            }
            Refusal::Host => {
                let answer = Answer::refused("without a token, ask by an address or by localhost");
                (StatusCode::FORBIDDEN, answer).into_response()
            }
        }
    }
}

fn refusal(method: &Method, headers: &HeaderMap, token: Option<&str>) -> Option<Refusal> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("\0"));
    // HTTP/1.0 clients may leave it out; browsers never do.
    let host = text(header::HOST);
    if token.is_none() && host.is_some_and(|host| !is_address_or_localhost(host)) {
        return Some(Refusal::Host);
    }
    if method != Method::POST {
        return None;
    }
    // `null`, the origin of a page that hides where it is from, has no authority.
    let is_own = |origin: &str| {
        origin
            .split_once("://")
            .is_some_and(|(_, authority)| Some(authority) == host)
    };
    if text(header::ORIGIN).is_some_and(|origin| !is_own(origin)) {
        return Some(Refusal::Origin);
    }
    let bearer = text(header::AUTHORIZATION).and_then(bearer).unwrap_or_default();
    match token {
        Some(token) if !same(bearer.as_bytes(), token.as_bytes()) => Some(Refusal::Token),
        _ => None,
    }
}

/// The token of an `Authorization` header; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares in a time that tells nothing but the length.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let difference = given
        .iter()
        .zip(expected)
        .fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    given.len() == expected.len() && difference == 0
}

/// Of a `Host` header, with or without a port.
fn is_address_or_localhost(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        // The last colon of a bare IPv6 address is not a port's, but there it does not matter.
        Some((name, port)) if is_port(port) => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    address.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn hosts() {
        for host in [
            "127.0.0.1:9379",
            "127.0.0.1",
            "[::1]:9379",
            "[::1]",
            "localhost",
            "LOCALHOST:80",
            "10.1.2.3:9379",
        ] {
            assert!(is_address_or_localhost(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9379",
            "localhost.evil.example",
            "127.0.0.1.evil.example:1",
            "",
            ":80",
            "\0",
        ] {
            assert!(!is_address_or_localhost(host), "{host}");
        }
    }

    #[test]
    fn without_a_token() {
        let host = |host| (header::HOST, host);
        let origin = |origin| (header::ORIGIN, origin);
        let check = |method, pairs: &[_]| refusal(&method, &headers(pairs), None);
        let local = "127.0.0.1:9379";
        assert_eq!(check(Method::POST, &[host(local)]), None);
        assert_eq!(check(Method::POST, &[]), None);
        assert_eq!(check(Method::GET, &[host("evil.example")]), Some(Refusal::Host));
        assert_eq!(
            check(
                Method::POST,
                &[host("evil.example"), origin("http://evil.example")]
            ),
            Some(Refusal::Host)
        );
        assert_eq!(
            check(Method::POST, &[host(local), origin("http://evil.example")]),
            Some(Refusal::Origin)
        );
        // Another port is another site, and `null` is any page that hides where it is from.
        assert_eq!(
            check(Method::POST, &[host(local), origin("http://127.0.0.1:80")]),
            Some(Refusal::Origin)
        );
        assert_eq!(
            check(Method::POST, &[host(local), origin("null")]),
            Some(Refusal::Origin)
        );
        assert_eq!(check(Method::POST, &[origin("null")]), Some(Refusal::Origin));
        assert_eq!(
            check(Method::POST, &[host(local), origin("http://127.0.0.1:9379")]),
            None
        );
    }

    #[test]
    fn with_a_token() {
        let check = |method, value: &str| {
            let pairs = [(header::HOST, "pulsegate:9379"), (header::AUTHORIZATION, value)];
            refusal(&method, &headers(&pairs), Some("s3cret"))
        };
        for good in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret"] {
            assert_eq!(check(Method::POST, good), None, "{good}");
        }
        for bad in [
            "Bearer s3cre",
            "Bearer s3cret1",
            "Bearer S3CRET",
            "Basic s3cret",
            "s3cret",
            "Bearer",
            "",
        ] {
            assert_eq!(check(Method::POST, bad), Some(Refusal::Token), "{bad}");
        }
        assert_eq!(check(Method::GET, ""), None);
        assert_eq!(
            refusal(&Method::POST, &HeaderMap::new(), Some("s3cret")),
            Some(Refusal::Token)
        );
    }
}
