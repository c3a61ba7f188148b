//! The binary: what it prints, its HTTP control, and that nothing is left of it.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::{PATIENCE, Raw, eventually, regions};

struct Binary {
    child: Child,
    /// Its line of JSON.
    said: Value,
}

impl Binary {
    async fn run(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rig"))
            .args(["run", "--json"])
            .args(args)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        tokio::time::timeout(Duration::from_secs(20), out.read_line(&mut line))
            .await
            .expect("it says where it is")
            .expect("readable");
        let said = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self { child, said }
    }

    fn pids(&self) -> Vec<u64> {
        let regions = self.said["regions"].as_array().expect("regions");
        regions
            .iter()
            .map(|region| region["pid"].as_u64().expect("a pid"))
            .collect()
    }

    /// Status code and body.
    async fn http(&self, method: &str, path: &str) -> (u16, Value) {
        let host = self.said["control"]
            .as_str()
            .unwrap()
            .trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).await.expect("the control listens");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("asks");
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.expect("answers in time").expect("answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        let code = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .expect("a status");
        let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {body:?}"));
        (code, body)
    }

    async fn post(&self, path: &str) {
        let (code, body) = self.http("POST", path).await;
        assert_eq!(code, 200, "{path}: {body}");
    }

    async fn region(&self, at: usize) -> Raw {
        let addr = self.said["regions"][at]["addr"]
            .as_str()
            .unwrap()
            .parse()
            .expect("an address");
        Raw::connect(addr).await.expect("connects")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_made_over_http() {
    let rig = Binary::run(&["--names", "eu,us"]).await;
    let mut eu = rig.region(0).await;
    assert_eq!(eu.ask("SET k v").await, "+OK");
    assert_eq!(rig.http("GET", "/converged?timeout_ms=5000").await.0, 200);
    assert_eq!(rig.region(1).await.ask("GET k").await, "$1");

    rig.post("/links/eu/us/cut").await;
    assert_eq!(eu.ask("SET k w").await, "+OK");
    let (code, behind) = rig.http("GET", "/converged?timeout_ms=100").await;
    assert_eq!(code, 504);
    assert!(
        behind["error"].as_str().unwrap().contains("eu to us is Cut"),
        "{behind}"
    );
    let (_, status) = rig.http("GET", "/status").await;
    let link = |status: &Value| {
        status["links"]
            .as_array()
            .unwrap()
            .iter()
            .find(|link| link["from"] == "eu")
            .unwrap()
            .clone()
    };
    assert_eq!(link(&status)["state"], "cut");
    assert!(link(&status)["lag_bytes"].as_u64() > Some(0), "{status}");
    rig.post("/links/eu/us/heal").await;
    assert_eq!(rig.http("GET", "/converged").await.0, 200);
    rig.post("/links/eu/us/delay?ms=5").await;
    rig.post("/links/eu/us/flap?period_ms=50").await;
    rig.post("/links/eu/us/heal").await;

    // Each verb of a region, each ended by its opposite; what they do is the library's tests' business.
    for (on, off) in [
        ("hang", "unhang"),
        ("stale?kind=min-replicas", "unstale"),
        ("stale?kind=outbound", "unstale"),
        ("out-of-memory", "free-memory"),
        ("pause-writes?ms=5000", "unpause"),
        ("cut", "heal-network"),
        ("stall", "heal-network"),
        ("delay?to_server_ms=1", "heal-network"),
        ("dribble?bytes=9&interval_ms=1", "heal-network"),
        ("half-open?dead=to-client", "heal-network"),
        ("loading?ms=50", "heal"),
        ("restart?keep=true", "heal"),
        ("kill", "restart"),
        ("kill", "heal"),
    ] {
        rig.post(&format!("/regions/us/{on}")).await;
        rig.post(&format!("/regions/us/{off}")).await;
        assert_eq!(
            rig.region(1).await.ask("SET works 1").await,
            "+OK",
            "after {on} and {off}"
        );
    }
    rig.post("/heal").await;
    assert_eq!(rig.http("GET", "/converged").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_one_shard_are_made_over_http() {
    let rig = Binary::run(&["--form", "front", "--shards", "3,2"]).await;
    let (_, status) = rig.http("GET", "/status").await;
    let local = &status["regions"][0];
    assert_eq!(local["form"], "front");
    let shards = local["shards"].as_array().expect("shards");
    assert_eq!(shards.len(), 3);
    assert_eq!(shards[0]["slots"][0], "0-5460");
    for shard in shards {
        let distinct = [
            &shard["addr"],
            &shard["direct_addr"],
            &local["addr"],
            &local["direct_addr"],
        ];
        let distinct: std::collections::BTreeSet<_> = distinct.iter().map(|addr| addr.as_str()).collect();
        assert_eq!(distinct.len(), 4, "{shard}");
    }
    // The slot of foo is in the last shard of both.
    let mut app = rig.region(0).await;
    rig.post("/links/local/remote/cut?from_shard=2&to_shard=1").await;
    assert_eq!(app.ask("SET foo held").await, "+OK");
    assert_eq!(app.ask("SET bar passes").await, "+OK");
    eventually("what is not cut arrives", || async {
        rig.region(1).await.ask("GET bar").await == "$6"
    })
    .await;
    assert_eq!(rig.region(1).await.ask("GET foo").await, "$-1");
    rig.post("/links/local/remote/heal?from_shard=2").await;
    assert_eq!(rig.http("GET", "/converged").await.0, 200);
    rig.post("/regions/remote/kill?shard=1").await;
    assert!(
        rig.region(1)
            .await
            .ask("GET foo")
            .await
            .starts_with("-CLUSTERDOWN")
    );
    assert_eq!(rig.region(1).await.ask("GET bar").await, "$6");
    rig.post("/regions/remote/restart?shard=1").await;
    assert_eq!(rig.http("GET", "/converged").await.0, 200);
    assert_eq!(rig.region(1).await.ask("GET foo").await, "$4");
    for (path, code, hint) in [
        ("/regions/local/kill?shard=3", 404, "no shard 3"),
        (
            "/links/local/remote/cut?from_shard=0&to_shard=1",
            404,
            "local/0 to remote/1",
        ),
        ("/regions/local/move-slots?slots=9-3&to_shard=1", 400, "slots"),
        (
            "/regions/local/move-slots?slots=0-9&to_shard=1",
            500,
            "no cluster",
        ),
    ] {
        let (found, body) = rig.http("POST", path).await;
        assert_eq!(found, code, "{path}: {body}");
        assert!(
            body["error"].as_str().is_some_and(|error| error.contains(hint)),
            "{path}: {body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_moved_over_http() {
    let rig = Binary::run(&[
        "--regions",
        "1",
        "--form",
        "cluster",
        "--shards",
        "2",
        "--announce-servers",
    ])
    .await;
    rig.post("/regions/local/move-slots?slots=0-9&to_shard=1").await;
    let (_, status) = rig.http("GET", "/status").await;
    let shards = &status["regions"][0]["shards"];
    assert_eq!(shards[1]["slots"][0], "0-9", "{shards}");
    let server = shards[1]["direct_addr"].as_str().expect("an address");
    let mut app = rig.region(0).await;
    // A key of slot 9, found by trial.
    let key = (0..)
        .map(|n| n.to_string())
        .find(|key| rig::slot(key.as_bytes()) == 9)
        .expect("there is one");
    assert_eq!(app.ask(&format!("GET {key}")).await, format!("-MOVED 9 {server}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_answered_clearly() {
    let rig = Binary::run(&["--regions", "2"]).await;
    for (path, code, hint) in [
        ("/regions/nowhere/kill", 404, "local, remote"),
        ("/regions/local/explode", 404, "explode"),
        ("/links/local/local/cut", 404, "itself"),
        ("/links/local/remote/stall", 404, "stall"),
        ("/regions/local/loading", 400, "ms"),
        ("/regions/local/dribble?bytes=0&interval_ms=1", 400, "bytes"),
        ("/regions/local/half-open", 400, "dead"),
        ("/regions/local/half-open?dead=sideways", 400, "sideways"),
        ("/regions/local/loading?seconds=1", 400, "seconds"),
        ("/links/local/remote/flap?period_ms=1", 400, "period_ms"),
        ("/nothing", 404, "/status"),
    ] {
        let (found, body) = rig.http("POST", path).await;
        assert_eq!(found, code, "{path}: {body}");
        let error = body["error"].as_str().unwrap_or_else(|| panic!("{path}: {body}"));
        assert!(error.contains(hint), "{path}: {error}");
    }
    assert_eq!(rig.region(0).await.ask("PING").await, "+PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_after_its_end() {
    let gone = async |pids: Vec<u64>| {
        eventually("the servers end", || async {
            !pids.iter().any(|pid| {
                // A zombie has ended: whoever adopted it has yet to look.
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
                stat.is_ok_and(|stat| !stat.contains(") Z "))
            })
        })
        .await;
    };
    let mut rig = Binary::run(&["--regions", "3"]).await;
    let pids = rig.pids();
    // A hung server ends as well, and so does one whose application is connected.
    rig.post("/regions/remote/hang").await;
    let _app = rig.region(0).await;
    let pid = rig.child.id().expect("runs").to_string();
    let sent = std::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status()
        .expect("kill runs");
    assert!(sent.success());
    let ended = tokio::time::timeout(PATIENCE, rig.child.wait())
        .await
        .expect("it ends")
        .expect("waits");
    assert!(ended.success(), "{ended}");
    gone(pids).await;

    // SIGKILL leaves it no time: the kernel ends the servers with it, where `setpriv` exists.
    let mut rig = Binary::run(&[]).await;
    rig.child.kill().await.expect("killed");
    gone(rig.pids()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_syncer_from_the_command_line() {
    let (a, b) = (regions(1).await, regions(1).await);
    let (from, to) = (a.region("local").direct_url(), b.region("local").direct_url());
    let mut syncer = Command::new(env!("CARGO_BIN_EXE_rig"))
        .args(["syncer", "--from", &from, "--to", &to])
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary starts");
    a.region("local").command(&["SET", "k", "v"]).await.unwrap();
    eventually("it crosses", || async {
        b.region("local").command(&["GET", "k"]).await == Ok(redis::Value::BulkString(b"v".into()))
    })
    .await;
    syncer.kill().await.expect("killed");
    let same = Command::new(env!("CARGO_BIN_EXE_rig"))
        .args(["syncer", "--from", &from, "--to", &from])
        .output()
        .await
        .unwrap();
    assert!(!same.status.success() && String::from_utf8_lossy(&same.stderr).contains("both sides"));
}
