//! The admin server over real TCP, with the test in control's place.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::admin::{Limits, Readiness, Server};
use pulsegate::control::status::{EventRecord, LinkStatus, ReplicaStatus, ShardStatus, Status, SwitchStatus};
use pulsegate::control::{Ask, Handle};
use pulsegate::decision::Request;
use pulsegate::metrics::Metrics;
use pulsegate::replica::{Address, Endpoint, Replica, ReplicaId, Secret, Topology};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Longest wait for anything that should happen.
const SOON: Duration = Duration::from_secs(10);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

/// A server, with control's ends of the channels.
struct Admin {
    address: SocketAddr,
    status: watch::Sender<Arc<Status>>,
    events: broadcast::Sender<Arc<EventRecord>>,
    asks: mpsc::Receiver<Ask>,
    readiness: Readiness,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Admin {
    async fn start() -> Admin {
        Admin::start_with(None, Limits::default()).await
    }

    async fn start_with(token: Option<&str>, limits: Limits) -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (status, status_seen) = watch::channel(Arc::new(status(None)));
        let (events, _) = broadcast::channel(64);
        let (requests, asks) = mpsc::channel(4);
        let readiness = Readiness::default();
        let replicas = [replica(0, "local"), replica(1, "remote")];
        let server = Server {
            listener,
            control: Handle {
                status: status_seen,
                events: events.clone(),
                requests,
            },
            metrics: Metrics::new(&replicas, 1).unwrap(),
            readiness: readiness.clone(),
            token: token.map(Secret::new),
            replicas: replicas.map(|replica| replica.name).to_vec(),
            limits,
        };
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server.serve(async move { stopped.await.unwrap_or_default() }));
        Admin {
            address,
            status,
            events,
            asks,
            readiness,
            stop,
            server,
        }
    }

    async fn send(&self, request: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Reply::read(stream).await
    }

    async fn get(&self, path: &str) -> Reply {
        // HTTP/1.0: the answer ends with the connection and comes in one piece.
        self.send(&format!("GET {path} HTTP/1.0\r\n\r\n")).await
    }

    async fn post(&self, path: &str, body: &str) -> Reply {
        self.post_with(path, "", body).await
    }

    /// `headers`: whole lines.
    async fn post_with(&self, path: &str, headers: &str, body: &str) -> Reply {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.0\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    /// Posts, and answers in control's place; the request that control got, and the reply.
    async fn asked(&mut self, path: &str, body: &str, answer: Result<&str, &str>) -> (Request, Reply) {
        let answer = answer.map(str::to_owned).map_err(str::to_owned);
        let length = body.len();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let ask = soon("the request at control", self.asks.recv()).await.unwrap();
        ask.answer.send(answer).unwrap();
        (ask.request, Reply::read(stream).await)
    }

    async fn follow(&self, request: &str) -> Following {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Following::begin(stream, request).await
    }

    fn event(&self, id: u64) {
        // Without a subscriber it would be an error: the server is always one.
        self.events.send(event(id)).unwrap();
    }

    /// Waits until the journal has recorded `id`.
    async fn recorded(&self, id: u64) {
        let last = format!("id: {id}\n");
        let recorded = async {
            while !self.get("/events?follow=false").await.body.contains(&last) {
                tokio::task::yield_now().await;
            }
        };
        soon("the event in the journal", recorded).await;
    }
}

/// An answer in full.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    async fn read(mut stream: TcpStream) -> Reply {
        let mut text = String::new();
        soon("the whole answer", stream.read_to_string(&mut text))
            .await
            .unwrap();
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no head: {text:?}"));
        Reply {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// The `error` of a refusal with `status`.
    #[track_caller]
    fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let json = self.json();
        assert_eq!(json["ok"], json!(false), "{self:?}");
        json["error"].as_str().unwrap().to_owned()
    }
}

/// An event stream, read block by block.
struct Following {
    stream: TcpStream,
    text: String,
}

impl Following {
    async fn begin(mut stream: TcpStream, request: &str) -> Following {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut following = Following {
            stream,
            text: String::new(),
        };
        let head = following.until("\r\n\r\n").await.unwrap();
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        following
    }

    async fn until(&mut self, end: &str) -> Option<String> {
        let mut chunk = vec![0; 64 * 1024];
        let mut searched = 0;
        loop {
            if let Some(found) = self.text[searched..].find(end) {
                let block = self.text[..searched + found].to_owned();
                self.text.drain(..searched + found + end.len());
                return Some(block);
            }
            searched = self.text.len().saturating_sub(end.len());
            let read = soon("more of the stream", self.stream.read(&mut chunk))
                .await
                .unwrap();
            if read == 0 {
                assert_eq!(self.text, "", "broken off");
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
        }
    }

    /// The next block that is not a comment, as its lines; `None` at the end.
    async fn next(&mut self) -> Option<BTreeMap<String, String>> {
        loop {
            let block = self.until("\n\n").await?;
            if !block.starts_with(':') {
                let pairs = block.lines().map(|line| line.split_once(": ").unwrap());
                return Some(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
            }
        }
    }
}

fn replica(id: u8, name: &str) -> Replica {
    Replica {
        id: ReplicaId(id),
        name: Arc::from(name),
        weight: 1,
        topology: Topology::default(),
        endpoint: Arc::new(Endpoint {
            address: Address::Unix("/nowhere".into()),
            tls: None,
            credentials: None,
        }),
        rest: None,
    }
}

fn status(active: Option<&str>) -> Status {
    Status {
        epoch: u64::from(active.is_some()),
        active: active.map(str::to_owned),
        read: active.map(|name| (name.to_owned(), 100)).into_iter().collect(),
        holding: false,
        pinned: None,
        tilt: false,
        replicas: vec![ReplicaStatus {
            name: "local".into(),
            health: "healthy".into(),
            fitness: "in_sync".into(),
            reason: "all well".into(),
            since: 1_700_000_000_000,
            rtt_ms: Some(0.25),
            rest: None,
            shards: vec![ShardStatus {
                id: 0,
                slots: "0-16383".into(),
                node: None,
                echo: true,
                writable: None,
            }],
            links: vec![LinkStatus {
                to: "remote".into(),
                shard: 0,
                to_shard: 0,
                lag_ms: None,
                lag_p99_ms: None,
                last_heard_ms: Some(1_700_000_000_001),
                up: false,
            }],
        }],
        faults: Vec::new(),
        last_switches: vec![SwitchStatus {
            epoch: 1,
            from: None,
            to: "local".into(),
            reason: "startup".into(),
            why: "first choice".into(),
            at: 1_700_000_000_000,
            detect_ms: 0.0,
            fence_ms: None,
            switch_ms: 0.5,
        }],
    }
}

fn event(id: u64) -> Arc<EventRecord> {
    Arc::new(EventRecord {
        id,
        at: 1_700_000_000_000 + id,
        kind: "health".into(),
        message: format!("event\n{id}"),
        details: json!({"replica": "local"}),
    })
}

#[tokio::test]
async fn probes() {
    let admin = Admin::start().await;
    let (livez, readyz) = (admin.get("/livez").await, admin.get("/readyz").await);
    assert_eq!((livez.status, livez.body.as_str()), (200, "ok\n"));
    assert_eq!(
        (readyz.status, readyz.body.as_str()),
        (503, "the listener is not bound yet\n")
    );

    admin.readiness.listener_bound();
    let readyz = admin.get("/readyz").await;
    assert_eq!((readyz.status, readyz.body.as_str()), (503, "no route yet\n"));

    admin.status.send_replace(Arc::new(status(Some("local"))));
    let readyz = admin.get("/readyz").await;
    assert_eq!((readyz.status, readyz.body.as_str()), (200, "ok\n"));

    admin.readiness.draining();
    let readyz = admin.get("/readyz").await;
    assert_eq!((readyz.status, readyz.body.as_str()), (503, "draining\n"));
    assert_eq!(admin.get("/livez").await.status, 200);
}

#[tokio::test]
async fn metrics_and_index() {
    let admin = Admin::start().await;
    let metrics = admin.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert_eq!(
        metrics.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(
        metrics
            .body
            .contains("\npulsegate_active{replica=\"remote\"} 0\n"),
        "{}",
        metrics.body
    );
    assert!(
        metrics.body.contains("\npulsegate_build_info{"),
        "{}",
        metrics.body
    );

    let index = admin.get("/").await;
    assert_eq!(index.status, 200);
    for path in ["/livez", "/readyz", "/metrics", "/status", "/events"] {
        assert!(index.body.contains(path), "{path}");
        let head = admin.send(&format!("HEAD {path} HTTP/1.0\r\n\r\n")).await;
        assert!(
            [200, 503].contains(&head.status) && head.body.is_empty(),
            "{path}: {head:?}"
        );
        let deleted = admin.send(&format!("DELETE {path} HTTP/1.0\r\n\r\n")).await;
        assert!(deleted.error(405).contains("method"), "{path}");
        assert_eq!(deleted.header("allow"), Some("GET,HEAD"), "{path}");
    }
    for path in ["/switch", "/pin", "/unpin", "/failback", "/hold", "/resume"] {
        assert!(index.body.contains(path), "{path}");
        let read = admin.get(path).await;
        assert!(read.error(405).contains("method"), "{path}");
        assert_eq!(read.header("allow"), Some("POST"), "{path}");
    }
    assert!(admin.get("/nothing").await.error(404).contains("no such path"));
}

#[tokio::test]
async fn status_is_the_newest_snapshot() {
    let admin = Admin::start().await;
    let before = admin.get("/status").await;
    assert_eq!((before.status, &before.json()["active"]), (200, &Value::Null));

    let newest = status(Some("local"));
    admin.status.send_replace(Arc::new(newest.clone()));
    let reply = admin.get("/status").await;
    assert_eq!(serde_json::from_str::<Status>(&reply.body).unwrap(), newest);
    // The published words, not only what our own types agree on.
    let json = reply.json();
    assert_eq!(
        json["replicas"][0]["links"][0]["last_heard_ms"],
        json!(1_700_000_000_001_u64)
    );
    assert_eq!(json["last_switches"][0]["detect_ms"], json!(0.0));
    assert_eq!(json["read"], json!({"local": 100}));
}

#[tokio::test]
async fn recent_events() {
    let admin = Admin::start().await;
    let none = admin.get("/events?recent=5&follow=false").await;
    assert_eq!((none.status, none.body.as_str()), (200, ""));

    for id in 1..=5 {
        admin.event(id);
    }
    admin.recorded(5).await;
    let ids = |reply: Reply| -> Vec<String> {
        assert_eq!(reply.status, 200);
        reply
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("id: "))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(ids(admin.get("/events?recent=2&follow=false").await), ["4", "5"]);
    assert_eq!(ids(admin.get("/events?recent=0&follow=false").await), [""; 0]);
    assert_eq!(
        ids(admin.get("/events?follow=false").await),
        ["1", "2", "3", "4", "5"]
    );

    for query in ["recent=x", "recent=-1", "follow=maybe", "replay=5"] {
        let error = admin.get(&format!("/events?{query}")).await.error(400);
        assert!(
            error.contains(query.split('=').next().unwrap()),
            "{query}: {error}"
        );
    }
}

#[tokio::test]
async fn following_events() {
    let admin = Admin::start().await;
    admin.event(1);
    admin.event(2);
    admin.recorded(2).await;
    let mut live = admin.follow("GET /events HTTP/1.0\r\n\r\n").await;
    let mut replayed = admin.follow("GET /events?recent=1 HTTP/1.0\r\n\r\n").await;
    let mut resumed = admin
        .follow("GET /events HTTP/1.0\r\nLast-Event-ID: 1\r\n\r\n")
        .await;
    admin.event(3);

    let block = live.next().await.unwrap();
    assert_eq!((block["id"].as_str(), block["event"].as_str()), ("3", "health"));
    assert_eq!(
        serde_json::from_str::<EventRecord>(&block["data"]).unwrap(),
        *event(3)
    );
    for following in [&mut replayed, &mut resumed] {
        assert_eq!(following.next().await.unwrap()["id"], "2");
        assert_eq!(following.next().await.unwrap()["id"], "3");
    }

    // The streams end when the server does, and do not hold it up.
    admin.stop.send(()).unwrap();
    soon("the server's end", admin.server).await.unwrap();
    assert_eq!(live.next().await, None);
    assert_eq!(replayed.next().await, None);
}

#[tokio::test]
async fn quiet_streams_are_kept_alive() {
    let limits = Limits {
        keep_alive: Duration::from_millis(20),
        ..Limits::default()
    };
    let admin = Admin::start_with(None, limits).await;
    let mut following = admin.follow("GET /events HTTP/1.0\r\n\r\n").await;
    for _ in 0..2 {
        let comment = following.until("\n\n").await.unwrap();
        assert!(comment.starts_with(':'), "{comment}");
    }
}

#[tokio::test]
async fn event_streams_are_limited_and_their_places_freed() {
    let limits = Limits {
        streams: 1,
        keep_alive: Duration::from_millis(20),
        ..Limits::default()
    };
    let admin = Admin::start_with(None, limits).await;
    let first = admin.follow("GET /events HTTP/1.0\r\n\r\n").await;
    assert!(admin.get("/events").await.error(503).contains("too many"));
    // What only replays needs no place.
    assert_eq!(admin.get("/events?follow=false").await.status, 200);

    drop(first);
    let place_again = async {
        loop {
            let stream = TcpStream::connect(admin.address).await.unwrap();
            let mut following = Following {
                stream,
                text: String::new(),
            };
            following
                .stream
                .write_all(b"GET /events HTTP/1.0\r\n\r\n")
                .await
                .unwrap();
            if following
                .until("\r\n\r\n")
                .await
                .unwrap()
                .starts_with("HTTP/1.0 200")
            {
                break;
            }
        }
    };
    soon("a place for another stream", place_again).await;
}

/// A reader that does not read costs no memory; when it reads again it is told how much it missed.
#[tokio::test]
async fn a_slow_reader_is_told_what_it_missed() {
    const EVENTS: u64 = 4_000;
    let admin = Admin::start().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let stream = socket.connect(admin.address).await.unwrap();
    let mut slow = Following::begin(stream, "GET /events HTTP/1.0\r\n\r\n").await;

    // Far more than the socket buffers take.
    let ballast = "x".repeat(8 * 1024);
    let mut weak = Vec::new();
    for id in 1..=EVENTS {
        let record = Arc::new(EventRecord {
            message: ballast.clone(),
            ..(*event(id)).clone()
        });
        weak.push(Arc::downgrade(&record));
        admin.events.send(record).unwrap();
        if id % 16 == 0 {
            // Lets the server work: the ring must come round because the reader is slow, not because the journal is.
            while !admin.events.is_empty() {
                tokio::task::yield_now().await;
            }
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
    }
    admin.recorded(EVENTS).await;
    let alive = weak.iter().filter(|event| event.strong_count() > 0).count();
    // The ring, and the last few in the channel's own.
    assert!(alive <= 256 + 64, "{alive} events in memory");

    let (mut got, mut missed, mut last) = (0, 0, 0);
    while last < EVENTS {
        let block = slow.next().await.unwrap();
        if block["event"] == "gap" {
            let gap: EventRecord = serde_json::from_str(&block["data"]).unwrap();
            let lost = gap.details["missed"].as_u64().unwrap();
            (missed, last) = (missed + lost, last + lost);
            assert_eq!(block["id"], last.to_string());
        } else {
            assert_eq!(block["id"], (last + 1).to_string(), "a gap without a notice");
            (got, last) = (got + 1, last + 1);
        }
    }
    assert_eq!(got + missed, EVENTS);
    assert!(missed > 0 && got >= 256, "got {got}, missed {missed}");

    // And it follows again.
    admin.event(EVENTS + 1);
    assert_eq!(slow.next().await.unwrap()["id"], (EVENTS + 1).to_string());
}

#[tokio::test]
async fn verbs_reach_control() {
    let mut admin = Admin::start().await;
    let remote = ReplicaId(1);
    for (path, body, expected) in [
        (
            "/switch",
            r#"{"to":"remote","reason":" maintenance\nof the rack "}"#,
            Request::Switch {
                to: remote,
                reason: "maintenance of the rack".into(),
            },
        ),
        (
            "/switch",
            r#"{"to":"remote"}"#,
            Request::Switch {
                to: remote,
                reason: String::new(),
            },
        ),
        (
            "/pin",
            r#"{"replica":"remote"}"#,
            Request::Pin { replica: remote },
        ),
        ("/unpin", "", Request::Unpin),
        ("/unpin", "{}", Request::Unpin),
        ("/failback", "", Request::Failback),
        ("/hold", " \n", Request::Hold),
        ("/resume", "{ }", Request::Resume),
    ] {
        let (request, reply) = admin.asked(path, body, Ok("moved to remote")).await;
        assert_eq!(request, expected);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json(), json!({"ok": true, "message": "moved to remote"}));

        let (_, reply) = admin.asked(path, body, Err("remote is down")).await;
        assert_eq!(reply.status, 409);
        assert_eq!(reply.json(), json!({"ok": false, "error": "remote is down"}));
    }
}

#[tokio::test]
async fn bad_verbs_never_reach_control() {
    let mut admin = Admin::start().await;
    for (path, body, named) in [
        ("/switch", "", "`to`"),
        ("/switch", "{}", "`to`"),
        ("/switch", r#"{"reason":"x"}"#, "`to`"),
        ("/switch", r#"{"to":7}"#, "string"),
        ("/switch", r#"{"to":"remote","force":true}"#, "`force`"),
        ("/switch", r#"{"to":"remote""#, "EOF"),
        ("/switch", "to=remote", "expected"),
        ("/switch", r#"{"to":"remote"} {}"#, "trailing"),
        ("/pin", r#"{"to":"remote"}"#, "`replica`"),
        ("/unpin", r#"{"replica":"remote"}"#, "`replica`"),
        ("/hold", "now", "expected"),
    ] {
        let error = admin.post(path, body).await.error(400);
        assert!(error.contains(named), "{path} {body}: {error}");
    }
    for (path, body) in [
        ("/switch", r#"{"to":"remot"}"#),
        ("/pin", r#"{"replica":"remot"}"#),
    ] {
        let error = admin.post(path, body).await.error(404);
        assert_eq!(error, "unknown replica `remot`; known: local, remote");
    }
    let long = format!(r#"{{"to":"remote","reason":"{}"}}"#, "x".repeat(20_000));
    assert!(admin.post("/switch", &long).await.error(413).contains("16384"));
    // The same without a length to refuse by.
    let size = long.len();
    let chunked = format!(
        "POST /switch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
         {size:x}\r\n{long}\r\n0\r\n\r\n"
    );
    assert_eq!(
        admin.send(&chunked).await.error(413),
        "the request's body is longer than 16384 bytes"
    );
    assert!(admin.asks.try_recv().is_err(), "control was asked");
}

#[tokio::test]
async fn waits_are_bounded() {
    let limits = Limits {
        answer_within: Duration::from_millis(100),
        request_within: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut admin = Admin::start_with(None, limits).await;
    // Control has the request but does not answer.
    assert!(
        admin
            .post("/failback", "")
            .await
            .error(504)
            .contains("may still happen")
    );
    let ask = admin.asks.try_recv().unwrap();
    assert_eq!(ask.request, Request::Failback);
    // Control drops it.
    drop(ask);
    // Control takes nothing any more: its queue fills up, and the wait for a place in it is bounded too.
    for _ in 0..6 {
        assert_eq!(admin.post("/failback", "").await.status, 504);
    }
    // The body never comes.
    let stalled = admin
        .send("POST /switch HTTP/1.0\r\nContent-Length: 10\r\n\r\n{")
        .await;
    assert!(stalled.error(408).contains("in time"));
    // Control has ended.
    admin.asks.close();
    while admin.asks.try_recv().is_ok() {}
    assert!(admin.post("/failback", "").await.error(503).contains("ending"));
    assert_eq!(admin.get("/livez").await.status, 200);
}

#[tokio::test]
async fn idle_and_stalled_connections_end() {
    let limits = Limits {
        request_within: Duration::from_millis(100),
        connections: 1,
        ..Limits::default()
    };
    let admin = Admin::start_with(None, limits).await;
    for begun in ["", "GET /livez HT", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut idle = TcpStream::connect(admin.address).await.unwrap();
        idle.write_all(begun.as_bytes()).await.unwrap();
        // There is one place: this is answered only after the idle connection was closed.
        assert_eq!(admin.get("/livez").await.status, 200);
        let mut rest = Vec::new();
        soon("the end of the idle connection", idle.read_to_end(&mut rest))
            .await
            .unwrap();
    }
}

/// A client that asks and never reads is cut, and its place freed.
#[tokio::test]
async fn clients_that_never_read_are_cut() {
    let limits = Limits {
        read_within: Duration::from_millis(300),
        connections: 1,
        ..Limits::default()
    };
    let admin = Admin::start_with(None, limits).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    let mut deaf = socket.connect(admin.address).await.unwrap();
    // Pipelined, and never read: more than all buffers between.
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let pour = async { while deaf.write_all(ask.as_bytes()).await.is_ok() {} };
    let (_, reply) = tokio::join!(soon("the cut", pour), admin.get("/livez"));
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn garbage_disturbs_nothing() {
    let admin = Admin::start().await;
    let endless = format!("GET /livez HTTP/1.1\r\n{}\r\n", "X-Filler: yes\r\n".repeat(200));
    let long = format!("GET /livez HTTP/1.1\r\nX-Filler: {}\r\n\r\n", "x".repeat(1 << 20));
    for garbage in [
        "*1\r\n$4\r\nPING\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\r\n\r\n",
        &endless,
        &long,
    ] {
        let mut stream = TcpStream::connect(admin.address).await.unwrap();
        // The server may close before it has all of it.
        let _ = stream.write_all(garbage.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert_eq!(admin.get("/livez").await.status, 200);
    }
}

#[tokio::test]
async fn the_token_guards_the_verbs() {
    let mut admin = Admin::start_with(Some("s3cret"), Limits::default()).await;
    for headers in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Basic s3cret\r\n",
    ] {
        for path in ["/switch", "/pin", "/unpin", "/failback", "/hold", "/resume"] {
            // Refused before the body is looked at.
            let reply = admin.post_with(path, headers, "no json").await;
            assert!(reply.error(401).contains("token"), "{path}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            assert!(!reply.head.contains("s3cret") && !reply.body.contains("s3cret"));
        }
    }
    assert!(admin.asks.try_recv().is_err(), "control was asked");
    for path in ["/livez", "/metrics", "/status", "/events?follow=false"] {
        assert_eq!(admin.get(path).await.status, 200, "{path}");
    }
    let headers = "Host: pulsegate:9379\r\nAuthorization: Bearer s3cret\r\n";
    let reply = admin.post_with("/switch", headers, "{}").await;
    assert!(reply.error(400).contains("`to`"));
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let mut admin = Admin::start().await;
    let cross = "Host: 127.0.0.1:9379\r\nOrigin: http://evil.example\r\n";
    assert!(
        admin
            .post_with("/failback", cross, "")
            .await
            .error(403)
            .contains("web sites")
    );
    let rebound = "Host: evil.example:9379\r\nOrigin: http://evil.example:9379\r\n";
    assert!(
        admin
            .post_with("/failback", rebound, "")
            .await
            .error(403)
            .contains("localhost")
    );
    for path in ["/status", "/events"] {
        let reply = admin
            .send(&format!("GET {path} HTTP/1.0\r\nHost: evil.example\r\n\r\n"))
            .await;
        assert!(reply.error(403).contains("localhost"), "{path}");
    }
    assert!(admin.asks.try_recv().is_err(), "control was asked");
    // Probes and scrapers come by any name.
    for path in ["/livez", "/metrics"] {
        let reply = admin
            .send(&format!("GET {path} HTTP/1.0\r\nHost: pulsegate:9379\r\n\r\n"))
            .await;
        assert_eq!(reply.status, 200, "{path}");
    }
}

#[tokio::test]
async fn requests_under_way_are_answered_at_shutdown() {
    let mut admin = Admin::start().await;
    let mut stream = TcpStream::connect(admin.address).await.unwrap();
    stream
        .write_all(b"POST /failback HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let ask = soon("the request at control", admin.asks.recv()).await.unwrap();
    admin.stop.send(()).unwrap();
    let refused = async { while TcpStream::connect(admin.address).await.is_ok() {} };
    soon("the listener's end", refused).await;
    ask.answer.send(Ok("done".into())).unwrap();
    assert_eq!(
        Reply::read(stream).await.json(),
        json!({"ok": true, "message": "done"})
    );
    soon("the server's end", admin.server).await.unwrap();
}

/// A client that never lets go does not hold up the end for long.
#[tokio::test]
async fn shutdown_is_bounded() {
    let mut admin = Admin::start().await;
    let mut stream = TcpStream::connect(admin.address).await.unwrap();
    stream
        .write_all(b"POST /failback HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let _unanswered = soon("the request at control", admin.asks.recv()).await.unwrap();
    admin.stop.send(()).unwrap();
    soon("the server's end", admin.server).await.unwrap();
}
