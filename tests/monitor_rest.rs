//! The REST check against a stand-in for a cluster's API: every documented answer, and what else a server can do.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::decision::{Input, RestOutcome, RestState};
use pulsegate::dial::Dialer;
use pulsegate::monitor::{Identity, Monitor, Patience, RestCheck, Settings, Target};
use pulsegate::replica::{
    Address, Credentials, Database as Uid, Endpoint, ReplicaId, Rest, Secret, Tls, Topology,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

#[path = "support/authority.rs"]
mod authority;
#[path = "support/rest_server.rs"]
mod rest_server;

use authority::Authority;
use rest_server::{Behaviour, Database, PASSWORD, RestServer, Seen, USER};

/// Long enough for a busy machine; what is answered is answered at once.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(10),
    answer: Duration::from_secs(10),
};
/// For what never comes.
const SHORT: Patience = Patience {
    connect: Duration::from_millis(200),
    answer: Duration::from_millis(100),
};

/// Where the replica is said to be; nobody connects to it.
fn replica() -> SocketAddr {
    "127.0.0.1:12000".parse().unwrap()
}

fn at(addr: SocketAddr) -> Address {
    Address::Tcp {
        host: addr.ip().to_string(),
        port: addr.port(),
    }
}

/// A cluster with two databases, of which number 5 is the replica; and the authority behind its certificate.
struct World {
    dir: TempDir,
    own: Authority,
    server: RestServer,
}

impl World {
    async fn start() -> World {
        let dir = TempDir::new().unwrap();
        let own = Authority::new(dir.path(), "own", &["127.0.0.1", "localhost"]);
        let server = RestServer::start(Some(&own), databases()).await;
        World { dir, own, server }
    }

    fn trusting(&self) -> Tls {
        Tls {
            ca: Some(self.own.ca.clone()),
            ..Tls::default()
        }
    }

    /// As most are configured.
    fn rest(&self) -> Rest {
        rest(self.server.addr, Some(self.trusting()))
    }

    fn check(&self) -> RestCheck {
        check(self.rest())
    }

    async fn ask(&self) -> RestOutcome {
        self.check().ask(PATIENCE).await
    }
}

fn databases() -> Vec<Database> {
    let mut other = Database::at(1, replica());
    other.port += 1;
    vec![other, Database::at(5, replica())]
}

fn rest(server: SocketAddr, tls: Option<Tls>) -> Rest {
    Rest {
        endpoint: Arc::new(Endpoint {
            address: at(server),
            tls,
            credentials: Some(Credentials {
                username: Some(USER.to_owned()),
                password: Secret::new(PASSWORD),
            }),
        }),
        database: Uid::Auto,
        local: false,
        lag_tolerance: Duration::from_millis(100),
        interval: Duration::from_millis(50),
    }
}

fn check(rest: Rest) -> RestCheck {
    RestCheck::new(Arc::new(rest), at(replica())).unwrap()
}

/// The words of an outcome in this state.
#[track_caller]
fn words(outcome: RestOutcome, state: RestState) -> String {
    assert_eq!(outcome.state(), state, "{outcome:?}");
    match outcome {
        RestOutcome::Available => String::new(),
        RestOutcome::Unavailable(words) | RestOutcome::Unknown(words) => words,
    }
}

#[tokio::test]
async fn every_documented_answer_is_told_apart() {
    let world = World::start().await;
    assert_eq!(world.ask().await, RestOutcome::Available);
    world.server.cluster().databases[1].fault = Some(("no_quorum", "Master healthcheck failed"));
    assert_eq!(
        world.ask().await,
        RestOutcome::Unavailable("503 no_quorum: Master healthcheck failed".to_owned())
    );
    world.server.cluster().databases[1].fault = None;
    // The other database's trouble is not this one's.
    world.server.cluster().databases[0].fault = Some(("no_quorum", ""));
    assert_eq!(world.ask().await, RestOutcome::Available);

    let fixed = Rest {
        database: Uid::Uid(5),
        ..world.rest()
    };
    for (status, body, state, want) in [
        (500, "", RestState::Unavailable, "500 Internal Server Error"),
        (503, "<html>", RestState::Unavailable, "503 Service Unavailable"),
        (
            401,
            "",
            RestState::Unknown,
            "401 Unauthorized: the user name or password is not accepted",
        ),
        (
            403,
            "",
            RestState::Unknown,
            "403 Forbidden: the user may not ask this",
        ),
        (406, "", RestState::Unknown, "406 Not Acceptable"),
        (307, "", RestState::Unknown, "307 without a Location"),
        (
            404,
            r#"{"error_code": "db_not_found"}"#,
            RestState::Unknown,
            "the cluster does not know the database: 404 db_not_found",
        ),
    ] {
        world.server.behave(Behaviour::Always(status, body));
        let said = words(check(fixed.clone()).ask(PATIENCE).await, state);
        assert!(said.starts_with(want), "{status}: {said}");
    }
}

#[tokio::test]
async fn the_questions_are_as_documented() {
    let world = World::start().await;
    let rest = Rest {
        lag_tolerance: Duration::from_millis(250),
        ..world.rest()
    };
    assert_eq!(check(rest.clone()).ask(PATIENCE).await, RestOutcome::Available);
    let local = Rest { local: true, ..rest };
    assert_eq!(check(local).ask(PATIENCE).await, RestOutcome::Available);
    let seen = |path: &str| Seen {
        path: path.to_owned(),
        login: Some(format!("{USER}:{PASSWORD}")),
    };
    assert_eq!(
        world.server.cluster().seen,
        [
            seen("/v1/bdbs?fields=uid,name,endpoints"),
            seen("/v1/bdbs/5/availability?extend_check=lag&availability_lag_tolerance_ms=250"),
            seen("/v1/bdbs?fields=uid,name,endpoints"),
            seen("/v1/local/bdbs/5/endpoint/availability?extend_check=lag&availability_lag_tolerance_ms=250"),
        ]
    );
}

#[tokio::test]
async fn lag_beyond_the_tolerance_is_unavailable() {
    let world = World::start().await;
    world.server.cluster().databases[1].lag = Duration::from_millis(200);
    let said = words(world.ask().await, RestState::Unavailable);
    assert!(said.contains("lag"), "{said}");
    let tolerant = Rest {
        lag_tolerance: Duration::from_millis(200),
        ..world.rest()
    };
    assert_eq!(check(tolerant).ask(PATIENCE).await, RestOutcome::Available);
}

#[tokio::test]
async fn the_database_is_found_by_its_name_and_by_its_address() {
    let world = World::start().await;
    let named = Address::Tcp {
        host: "Redis-12000.cluster.example".to_owned(),
        port: 12000,
    };
    for replica in [named, at(replica())] {
        let mut check = RestCheck::new(Arc::new(world.rest()), replica).unwrap();
        assert_eq!(check.uid(), None);
        assert_eq!(check.ask(PATIENCE).await, RestOutcome::Available);
        assert_eq!(check.uid(), Some(5));
    }
    let elsewhere = Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port: 12_002,
    };
    let mut check = RestCheck::new(Arc::new(world.rest()), elsewhere).unwrap();
    assert_eq!(
        words(check.ask(PATIENCE).await, RestState::Unknown),
        "none of the cluster's 2 databases has an endpoint at 127.0.0.1:12002; write rest.bdb"
    );
}

#[tokio::test]
async fn a_database_is_looked_for_again_only_when_its_number_is_gone() {
    let world = World::start().await;
    let mut check = world.check();
    for _ in 0..2 {
        assert_eq!(check.ask(PATIENCE).await, RestOutcome::Available);
    }
    world.server.cluster().databases[1].uid = 6;
    assert_eq!(check.ask(PATIENCE).await, RestOutcome::Available, "made anew");
    assert_eq!(check.uid(), Some(6));
    let (list, five, six) = ("/v1/bdbs", "/v1/bdbs/5/availability", "/v1/bdbs/6/availability");
    assert_eq!(world.server.paths(), [list, five, five, five, list, six]);

    world.server.cluster().databases.remove(1);
    let said = words(check.ask(PATIENCE).await, RestState::Unknown);
    assert!(said.starts_with("none of the cluster's 1 databases"), "{said}");
    world.server.cluster().databases.push(Database::at(7, replica()));
    assert_eq!(check.ask(PATIENCE).await, RestOutcome::Available, "back");

    // A number that was written is not doubted.
    world.server.cluster().seen.clear();
    let fixed = Rest {
        database: Uid::Uid(5),
        ..world.rest()
    };
    let said = words(self::check(fixed).ask(PATIENCE).await, RestState::Unknown);
    assert!(said.contains("404 db_not_found"), "{said}");
    assert_eq!(world.server.paths(), [five]);
}

#[tokio::test]
async fn only_the_own_authority_and_the_right_name_are_trusted() {
    let world = World::start().await;
    let other = Authority::new(world.dir.path(), "other", &["127.0.0.1"]);
    let tls = |ca: &Authority, name: Option<&str>, insecure: bool| Tls {
        ca: (!insecure).then(|| ca.ca.clone()),
        server_name: name.map(str::to_owned),
        insecure_skip_verify: insecure,
        ..Tls::default()
    };
    let addr = world.server.addr;
    for (tls, want) in [
        (tls(&other, None, false), "UnknownIssuer"),
        (
            tls(&world.own, Some("elsewhere.example"), false),
            "not valid for name",
        ),
        (Tls::default(), "UnknownIssuer"),
    ] {
        let said = words(
            check(rest(addr, Some(tls))).ask(PATIENCE).await,
            RestState::Unknown,
        );
        assert!(
            said.contains("TLS with 127.0.0.1") && said.contains(want),
            "{said}"
        );
    }
    assert_eq!(world.server.cluster().seen, [], "no credentials were shown");
    for tls in [
        tls(&world.own, Some("localhost"), false),
        tls(&world.own, None, true),
    ] {
        assert_eq!(
            check(rest(addr, Some(tls))).ask(PATIENCE).await,
            RestOutcome::Available
        );
    }
    let plain = RestServer::start(None, databases()).await;
    let said = words(
        check(rest(plain.addr, Some(world.trusting())))
            .ask(PATIENCE)
            .await,
        RestState::Unknown,
    );
    assert!(said.contains("does not speak TLS"), "{said}");
    assert_eq!(
        check(rest(plain.addr, None)).ask(PATIENCE).await,
        RestOutcome::Available,
        "plain HTTP where it is wished for"
    );
    let said = words(check(rest(addr, None)).ask(PATIENCE).await, RestState::Unknown);
    println!("HTTP to a TLS server: {said}");
}

#[tokio::test]
async fn a_redirect_to_another_node_is_followed_under_the_own_authority() {
    let world = World::start().await;
    let primary = RestServer::start(Some(&world.own), databases()).await;
    let port = primary.addr.port();
    for to in [
        format!("https://127.0.0.1:{port}"),
        format!("https://localhost:{port}"),
    ] {
        primary.cluster().seen.clear();
        world.server.behave(Behaviour::Redirect(to.clone()));
        assert_eq!(world.ask().await, RestOutcome::Available, "{to}");
        assert_eq!(primary.paths(), ["/v1/bdbs", "/v1/bdbs/5/availability"], "{to}");
    }
    primary.cluster().databases[1].fault = Some(("no_quorum", "x"));
    words(world.ask().await, RestState::Unavailable);
    // The local question is about this node, and stays here.
    let local = Rest {
        local: true,
        database: Uid::Uid(5),
        ..world.rest()
    };
    assert_eq!(check(local).ask(PATIENCE).await, RestOutcome::Available);

    // A path of the same server.
    world.server.behave(Behaviour::Redirect(String::new()));
    let said = words(world.ask().await, RestState::Unknown);
    assert!(said.starts_with("redirected more than 3 times"), "{said}");
    world.server.cluster().seen.clear();
    world
        .server
        .behave(Behaviour::Redirect(format!("https://{}", world.server.addr)));
    let said = words(world.ask().await, RestState::Unknown);
    assert!(
        said.starts_with("redirected more than 3 times, last to 127.0.0.1:"),
        "{said}"
    );
    assert_eq!(world.server.paths().len(), 4, "asked, and three times redirected");
}

/// Redirects of a server under `tls` to `to`, which must not be asked; why not.
async fn not_followed(from: &RestServer, tls: Option<Tls>, to: &RestServer, location: String) -> String {
    from.behave(Behaviour::Redirect(location));
    let said = words(
        check(rest(from.addr, tls)).ask(PATIENCE).await,
        RestState::Unknown,
    );
    assert_eq!(to.cluster().seen, [], "{said}");
    said
}

#[tokio::test]
async fn the_password_is_not_redirected_to_strangers() {
    let world = World::start().await;
    let other = Authority::new(world.dir.path(), "other", &["127.0.0.1", "localhost"]);
    let stranger = RestServer::start(Some(&other), databases()).await;
    let location = format!("https://localhost:{}", stranger.addr.port());
    let said = not_followed(&world.server, Some(world.trusting()), &stranger, location.clone()).await;
    assert!(said.contains("UnknownIssuer"), "{said}");

    let careless = Tls {
        insecure_skip_verify: true,
        ..Tls::default()
    };
    let said = not_followed(&world.server, Some(careless), &stranger, location).await;
    assert!(said.contains("only over https with rest.ca"), "{said}");

    let plain = RestServer::start(None, databases()).await;
    let location = format!("http://127.0.0.1:{}", plain.addr.port());
    let said = not_followed(&world.server, Some(world.trusting()), &plain, location).await;
    assert!(said.contains("from https to http"), "{said}");

    let first = RestServer::start(None, databases()).await;
    let location = format!("http://localhost:{}", plain.addr.port());
    let said = not_followed(&first, None, &plain, location).await;
    assert!(said.contains("another host, localhost:"), "{said}");

    let said = not_followed(&first, None, &plain, "http://[".to_owned()).await;
    assert!(said.contains("no URL"), "{said}");
    // The same host over HTTP: the password crosses that network unencrypted anyway.
    first.behave(Behaviour::Redirect(format!("http://{}", plain.addr)));
    assert_eq!(
        check(rest(first.addr, None)).ask(PATIENCE).await,
        RestOutcome::Available
    );
}

#[tokio::test]
async fn what_never_ends_is_given_up() {
    let world = World::start().await;
    world.server.behave(Behaviour::Slow(Duration::from_millis(30)));
    assert_eq!(world.ask().await, RestOutcome::Available, "slow is no fault");
    for behaviour in [Behaviour::Hang, Behaviour::HalfAnswer] {
        world.server.behave(behaviour);
        let began = Instant::now();
        let said = words(world.check().ask(SHORT).await, RestState::Unknown);
        assert_eq!(said, "no answer within 300ms");
        assert!(began.elapsed() >= Duration::from_millis(300));
    }
    world.server.behave(Behaviour::Huge(2 * 1024 * 1024));
    assert_eq!(
        words(world.ask().await, RestState::Unknown),
        "200 OK, with more than 1024 KiB"
    );
    let fixed = Rest {
        database: Uid::Uid(5),
        ..world.rest()
    };
    world.server.behave(Behaviour::Huge(65 * 1024));
    assert_eq!(
        words(check(fixed).ask(PATIENCE).await, RestState::Unknown),
        "200 OK, with more than 64 KiB"
    );
    // A server that accepts and says nothing, before TLS and after.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = silent.local_addr().unwrap();
    let said = words(
        check(rest(addr, Some(world.trusting()))).ask(SHORT).await,
        RestState::Unknown,
    );
    assert!(
        said.contains("no connection and TLS handshake within 200ms"),
        "{said}"
    );
    let said = words(check(rest(addr, None)).ask(SHORT).await, RestState::Unknown);
    assert_eq!(said, "no answer within 300ms");
}

/// What a server that answers every request with `bytes`, and then closes, is taken for.
async fn answered_with(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = tcp.read(&mut request).await;
        let _ = tcp.write_all(bytes).await;
        let _ = tcp.shutdown().await;
    });
    let said = words(check(rest(addr, None)).ask(PATIENCE).await, RestState::Unknown);
    server.await.unwrap();
    println!("{said}");
    said
}

#[tokio::test]
async fn what_is_no_api_is_said_to_be_none() {
    let said = answered_with(b"-ERR wrong number of arguments\r\n").await;
    assert!(said.contains("not HTTP"), "{said}");
    let said = answered_with(b"").await;
    assert!(said.contains("connection"), "{said}");
    let said = answered_with(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[").await;
    assert!(
        said.starts_with("200 OK, and then the answer broke off"),
        "{said}"
    );
    let said = answered_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]").await;
    assert!(said.contains("not as Redis Enterprise writes it"), "{said}");
    let said = answered_with(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    assert!(said.starts_with("the list of databases: 401"), "{said}");
}

#[tokio::test]
async fn a_wrong_password_is_said_and_never_shown() {
    let world = World::start().await;
    let mut rest = world.rest();
    let endpoint = Endpoint {
        credentials: Some(Credentials {
            username: Some(USER.to_owned()),
            password: Secret::new("hush"),
        }),
        ..Endpoint::clone(&rest.endpoint)
    };
    rest.endpoint = Arc::new(endpoint);
    let mut check = check(rest);
    let said = words(check.ask(PATIENCE).await, RestState::Unknown);
    assert_eq!(
        said,
        "the list of databases: 401 unauthorized: Wrong user name or password: the user name or password is not accepted"
    );
    assert!(!format!("{check:?}").contains("hush"));
}

/// The monitor of one replica that is not there, and its cluster.
fn monitor(rest: Rest) -> (Monitor, mpsc::Receiver<Input>) {
    let endpoint = Endpoint {
        address: Address::Unix("/nowhere".into()),
        tls: None,
        credentials: None,
    };
    let target = Target {
        id: ReplicaId(3),
        name: "watched".into(),
        dialer: Dialer::new(Arc::new(endpoint)).unwrap(),
        topology: Topology::default(),
        rest: Some(check(rest)),
    };
    let settings = Settings {
        prefix: "pg".to_owned(),
        identity: Identity::named("test"),
        heartbeat_interval: Duration::from_secs(1),
        probe_interval: Duration::from_secs(1),
        connect_timeout: PATIENCE.connect,
        answer_timeout: PATIENCE.answer,
    };
    let (sender, inputs) = mpsc::channel(1024);
    (Monitor::spawn(&[target], settings, sender), inputs)
}

/// Until the cluster is in `state`; the words.
async fn until(inputs: &mut mpsc::Receiver<Input>, state: RestState) -> String {
    let deadline = Instant::now() + PATIENCE.connect;
    loop {
        match tokio::time::timeout_at(deadline, inputs.recv()).await {
            Ok(Some(Input::Rest { replica, outcome })) => {
                assert_eq!(replica, ReplicaId(3));
                if outcome.state() == state {
                    return words(outcome, state);
                }
            }
            Ok(Some(_)) => {}
            other => panic!("never {state}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_monitor_asks_again_and_again_whatever_comes() {
    let World {
        dir: _dir,
        own,
        server,
    } = World::start().await;
    let tls = Tls {
        ca: Some(own.ca.clone()),
        ..Tls::default()
    };
    let (_monitor, mut inputs) = monitor(rest(server.addr, Some(tls)));
    until(&mut inputs, RestState::Available).await;
    server.cluster().databases[1].fault = Some(("no_quorum", "x"));
    assert_eq!(
        until(&mut inputs, RestState::Unavailable).await,
        "503 no_quorum: x"
    );
    server.cluster().databases[1].fault = None;
    until(&mut inputs, RestState::Available).await;
    let addr = server.addr;
    drop(server);
    let said = until(&mut inputs, RestState::Unknown).await;
    println!("the server is gone: {said}");
    let mut databases = databases();
    databases[1].uid = 77;
    let server = RestServer::listen(addr, Some(&own), databases).await;
    until(&mut inputs, RestState::Available).await;
    assert!(server.paths().contains(&"/v1/bdbs/77/availability".to_owned()));
    let first = server.paths().len();
    let deadline = Instant::now() + PATIENCE.connect;
    while server.paths().len() < first + 3 {
        assert!(Instant::now() < deadline, "it asks at each interval");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
