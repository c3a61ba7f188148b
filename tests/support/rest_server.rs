//! A stand-in for the REST API of a Redis Enterprise cluster: the list of databases and both availability questions, with the
//! documented codes, over HTTPS or HTTP; and ways to misbehave.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

use crate::authority::Authority;

/// The user that may ask.
pub const USER: &str = "viewer@cluster.example";
/// Their password.
pub const PASSWORD: &str = "pa:ss wörd";

/// What the cluster is, and how it behaves.
pub struct Cluster {
    /// Its databases.
    pub databases: Vec<Database>,
    /// How it answers.
    pub behaviour: Behaviour,
    /// Every request so far.
    pub seen: Vec<Seen>,
}

/// One database of the cluster.
#[derive(Clone)]
pub struct Database {
    /// Its number.
    pub uid: u64,
    /// The name in its endpoint.
    pub dns_name: String,
    /// The addresses of its endpoint.
    pub addr: Vec<String>,
    /// The port of its endpoint.
    pub port: u16,
    /// Why it is unavailable: `error_code` and `description`.
    pub fault: Option<(&'static str, &'static str)>,
    /// How far it is behind the other clusters.
    pub lag: Duration,
}

impl Database {
    /// An available one at `addr`.
    pub fn at(uid: u64, addr: SocketAddr) -> Database {
        Database {
            uid,
            dns_name: format!("redis-{}.cluster.example", addr.port()),
            addr: vec!["10.1.2.3".to_owned(), addr.ip().to_string()],
            port: addr.port(),
            fault: None,
            lag: Duration::ZERO,
        }
    }
}

/// How the cluster answers.
#[derive(Clone)]
pub enum Behaviour {
    /// As documented.
    Documented,
    /// As documented, after this long.
    Slow(Duration),
    /// From a node that is not the primary one: all but the local question is redirected to this server.
    Redirect(String),
    /// Always with this status and body.
    Always(u16, &'static str),
    /// Never.
    Hang,
    /// With the head of an answer, and then never.
    HalfAnswer,
    /// With a body of as many bytes.
    Huge(usize),
}

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its path and query.
    pub path: String,
    /// The user and password it came with.
    pub login: Option<String>,
}

/// A running server that ends with its owner.
pub struct RestServer {
    /// Where it listens.
    pub addr: SocketAddr,
    cluster: Arc<Mutex<Cluster>>,
    task: JoinHandle<()>,
}

impl Drop for RestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RestServer {
    /// Over TLS with the certificate of `authority`, or over plain HTTP.
    pub async fn start(authority: Option<&Authority>, databases: Vec<Database>) -> RestServer {
        RestServer::listen("127.0.0.1:0".parse().unwrap(), authority, databases).await
    }

    /// As [`RestServer::start`], at this address.
    pub async fn listen(
        addr: SocketAddr,
        authority: Option<&Authority>,
        databases: Vec<Database>,
    ) -> RestServer {
        let acceptor = authority.map(acceptor);
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cluster = Arc::new(Mutex::new(Cluster {
            databases,
            behaviour: Behaviour::Documented,
            seen: Vec::new(),
        }));
        let task = tokio::spawn(accept(listener, acceptor, Arc::clone(&cluster)));
        RestServer { addr, cluster, task }
    }

    /// The cluster, to look at or to change.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// From now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.cluster().behaviour = behaviour;
    }

    /// The paths of all requests so far, without their queries.
    pub fn paths(&self) -> Vec<String> {
        let cluster = self.cluster();
        let path = |seen: &Seen| seen.path.split('?').next().unwrap_or_default().to_owned();
        cluster.seen.iter().map(path).collect()
    }
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let provider = Arc::new(crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_file(&authority.cert).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&authority.key).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, cluster: Arc<Mutex<Cluster>>) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        connections.spawn(serve(tcp, acceptor.clone(), Arc::clone(&cluster)));
    }
}

async fn serve(tcp: TcpStream, acceptor: Option<TlsAcceptor>, cluster: Arc<Mutex<Cluster>>) {
    match acceptor {
        None => speak(tcp, cluster).await,
        // A client that does not like the certificate is its own affair.
        Some(acceptor) => {
            if let Ok(tls) = acceptor.accept(tcp).await {
                speak(tls, cluster).await;
            }
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, cluster: Arc<Mutex<Cluster>>) {
    let service = service_fn(|request| answer(request, Arc::clone(&cluster)));
    // A client that goes away in the middle is its own affair too.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn reply(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn error(status: u16, code: &str, description: &str) -> Answer {
    let body = json!({"error_code": code, "description": description});
    reply(status, body.to_string())
}

async fn answer(request: Request<Incoming>, cluster: Arc<Mutex<Cluster>>) -> Result<Answer, Infallible> {
    let path = request.uri().path_and_query().unwrap().to_string();
    let login = request.headers().get(header::AUTHORIZATION).map(|value| {
        let token = value.to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
        String::from_utf8(BASE64_STANDARD.decode(token).unwrap()).unwrap()
    });
    let is_local = path.starts_with("/v1/local/");
    let behaviour = {
        let mut cluster = cluster.lock().unwrap();
        let (path, login) = (path.clone(), login.clone());
        cluster.seen.push(Seen { path, login });
        cluster.behaviour.clone()
    };
    match behaviour {
        Behaviour::Documented => {}
        Behaviour::Slow(delay) => tokio::time::sleep(delay).await,
        Behaviour::Redirect(_) if is_local => {}
        Behaviour::Redirect(to) => {
            let mut redirect = reply(307, "");
            let location = format!("{to}{path}").parse().unwrap();
            redirect.headers_mut().insert(header::LOCATION, location);
            return Ok(redirect);
        }
        Behaviour::Always(status, body) => return Ok(reply(status, body)),
        Behaviour::Hang => std::future::pending::<()>().await,
        Behaviour::HalfAnswer => {
            let begun = stream::iter([Ok(Frame::data(Bytes::from_static(b"[{\"uid\": ")))]);
            let body = StreamBody::new(begun.chain(stream::pending()));
            return Ok(Response::new(BodyExt::boxed(body)));
        }
        Behaviour::Huge(size) => return Ok(reply(200, vec![b' '; size])),
    }
    if login != Some(format!("{USER}:{PASSWORD}")) {
        return Ok(error(401, "unauthorized", "Wrong user name or password"));
    }
    if request.method() != Method::GET {
        return Ok(error(405, "method_not_allowed", "GET only"));
    }
    let cluster = cluster.lock().unwrap();
    let query = request.uri().query().unwrap_or_default();
    Ok(documented(&cluster.databases, request.uri().path(), query))
}

/// <https://redis.io/docs/latest/operate/rs/references/rest-api/requests/bdbs/availability/>
fn documented(databases: &[Database], path: &str, query: &str) -> Answer {
    let given = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    };
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let uid = match parts[..] {
        ["v1", "bdbs"] => return list(databases, given("fields")),
        ["v1", "bdbs", uid, "availability"] => uid,
        ["v1", "local", "bdbs", uid, "endpoint", "availability"] => uid,
        _ => return error(404, "not_found", "No such path"),
    };
    let Some(database) = databases.iter().find(|database| database.uid.to_string() == uid) else {
        return error(404, "db_not_found", "Database uid does not exist");
    };
    if let Some((code, description)) = database.fault {
        return error(503, code, description);
    }
    let tolerance = given("availability_lag_tolerance_ms").map_or(100, |ms| ms.parse().unwrap());
    if given("extend_check") == Some("lag") && database.lag > Duration::from_millis(tolerance) {
        return error(503, "bdb_unavailable", "Replication lag is beyond the tolerance");
    }
    reply(200, "")
}

fn list(databases: &[Database], fields: Option<&str>) -> Answer {
    let whole = |database: &Database| {
        json!({
            "uid": database.uid, "name": format!("db-{}", database.uid), "memory_size": 1_073_741_824_u64, "crdt": true,
            "endpoints": [{
                "addr": database.addr, "addr_type": "external", "dns_name": database.dns_name,
                "oss_cluster_api_preferred_ip_type": "internal", "port": database.port, "proxy_policy": "single",
                "uid": format!("{}:1", database.uid),
            }],
        })
    };
    let cut = |mut whole: Value| {
        if let (Some(fields), Value::Object(map)) = (fields, &mut whole) {
            map.retain(|name, _| fields.split(',').any(|field| field == name));
        }
        whole
    };
    let all: Vec<Value> = databases.iter().map(whole).map(cut).collect();
    reply(200, Value::from(all).to_string())
}
