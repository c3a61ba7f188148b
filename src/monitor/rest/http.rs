//! One question to a cluster's REST API: a GET over a connection of its own, redirects followed, all bounded.
//!
//! Where the credentials go: to the configured server, and after a redirect to another host only over TLS that the
//! configured `rest.ca` vouches for, since only then it is known to be a node of the same cluster. Never from TLS to plain
//! HTTP.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::pending;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;

use crate::dial::{self, Dialer, Stream};
use crate::replica::{Address, Credentials};

/// Redirects that are followed; a cluster needs one, to its primary node.
const REDIRECTS: usize = 3;
/// Longest head of an answer.
const HEAD_MAX: usize = 64 * 1024;

/// How long an exchange may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the answer, after that.
    pub answer: Duration,
}

/// An answer, whatever it says.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Asks for `path` (with its query) and reads at most `body_max` bytes of the answer. Everything, redirects too, has
/// to happen within `patience`. The error says in words why there is no answer.
pub(super) async fn get(
    dialer: &Dialer,
    path: &str,
    body_max: usize,
    patience: Patience,
) -> Result<Answer, String> {
    let limit = patience.connect + patience.answer;
    match tokio::time::timeout(limit, follow(dialer, path, body_max, patience.connect)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

async fn follow(dialer: &Dialer, path: &str, body_max: usize, connect: Duration) -> Result<Answer, String> {
    let (mut at, mut path) = (dialer.clone(), path.to_owned());
    for _ in 0..=REDIRECTS {
        let stream = at.connect(connect).await.map_err(|error| error.to_string())?;
        let (answer, location) = ask(&at, stream, &path, body_max).await?;
        if answer.status != StatusCode::TEMPORARY_REDIRECT {
            return Ok(answer);
        }
        let location = location.ok_or("307 without a Location")?;
        (at, path) = redirected(dialer, &at, &location)?;
    }
    Err(format!(
        "redirected more than {REDIRECTS} times, last to {}",
        at.endpoint().address
    ))
}

/// One request and its answer; the connection ends with it.
async fn ask(
    dialer: &Dialer,
    stream: Stream,
    path: &str,
    body_max: usize,
) -> Result<(Answer, Option<HeaderValue>), String> {
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| words(&error))?;
    let exchange = async {
        let response = sender
            .send_request(request(dialer, path)?)
            .await
            .map_err(|error| words(&error))?;
        read(response, body_max).await
    };
    // What the connection ends with reaches the exchange as well.
    let driven = async {
        let _ = connection.await;
        pending::<Infallible>().await
    };
    tokio::select! {
        answer = exchange => answer,
        never = driven => match never {},
    }
}

fn request(dialer: &Dialer, path: &str) -> Result<Request<Empty<Bytes>>, String> {
    let endpoint = dialer.endpoint();
    let mut request = Request::builder()
        .uri(path)
        .header(header::HOST, endpoint.address.to_string())
        .header(header::ACCEPT, "application/json")
        .header(
            header::USER_AGENT,
            concat!("pulsegate/", env!("CARGO_PKG_VERSION")),
        );
    if let Some(credentials) = &endpoint.credentials {
        request = request.header(header::AUTHORIZATION, basic(credentials)?);
    }
    request
        .body(Empty::new())
        .map_err(|error| format!("cannot ask for {path}: {error}"))
}

/// RFC 7617.
fn basic(credentials: &Credentials) -> Result<HeaderValue, String> {
    let user = credentials.username.as_deref().unwrap_or_default();
    let token = BASE64_STANDARD.encode(format!("{user}:{}", credentials.password.expose()));
    let mut value = HeaderValue::try_from(format!("Basic {token}"))
        .map_err(|_| "the credentials do not fit into a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read(
    response: Response<hyper::body::Incoming>,
    body_max: usize,
) -> Result<(Answer, Option<HeaderValue>), String> {
    let status = response.status();
    let location = response.headers().get(header::LOCATION).cloned();
    let body = match Limited::new(response.into_body(), body_max).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(format!("{status}, with more than {} KiB", body_max / 1024));
        }
        Err(error) => {
            let why = error.downcast_ref().map_or_else(|| error.to_string(), words);
            return Err(format!("{status}, and then the answer broke off: {why}"));
        }
    };
    Ok((Answer { status, body }, location))
}

/// Where `location`, in an answer of `from`, leads; `first` is the configured server. The error says why it is not followed.
fn redirected(first: &Dialer, from: &Dialer, location: &HeaderValue) -> Result<(Dialer, String), String> {
    let unusable = || "307 with a Location that is no URL".to_owned();
    let text = location.to_str().map_err(|_| unusable())?;
    let uri: Uri = text.parse().map_err(|_| unusable())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let Some(host) = uri.host() else {
        // Without a host it is another path of the same server.
        return Ok((from.clone(), path));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let endpoint = first.endpoint();
    let (scheme, default) = match endpoint.tls {
        Some(_) => ("https", 443),
        None => ("http", 80),
    };
    let port = uri.port_u16().unwrap_or(default);
    let address = Address::Tcp { host, port };
    if uri.scheme_str() != Some(scheme) {
        let other = uri.scheme_str().unwrap_or("no scheme");
        return Err(format!(
            "redirected from {scheme} to {other} at {address}, where the password is not sent; name that server in rest.url"
        ));
    }
    let is_vouched_for = endpoint.tls.as_ref().is_some_and(|tls| tls.ca.is_some());
    if !is_vouched_for && !is_same_host(&endpoint.address, &address) {
        return Err(format!(
            "redirected to another host, {address}, where the password is sent only over https with rest.ca; set it, or \
             name that server in rest.url"
        ));
    }
    let dialer = first.towards(address).map_err(|error| error.to_string())?;
    Ok((dialer, path))
}

fn is_same_host(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Tcp { host: a, .. }, Address::Tcp { host: b, .. }) => a.eq_ignore_ascii_case(b),
        _ => false,
    }
}

/// Hyper's error with its cause, which it leaves out.
fn words(error: &hyper::Error) -> String {
    let Some(cause) = error.source() else {
        return format!("not HTTP as expected: {error}");
    };
    match dial::tls_alert(cause) {
        Some(alert) => format!("TLS failed after the handshake: {alert}"),
        None => format!("{error}: {cause}"),
    }
}
