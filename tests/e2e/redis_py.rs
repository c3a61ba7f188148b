//! redis-py, unmodified, through Pulsegate while replicas die, hang, restart and return: plain commands, pipelines,
//! transactions with WATCH, subscriptions and blocking commands, in RESP2 and RESP3.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::time::Duration;

use rig::{Data, Rig};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::python;
use crate::support::{Sidecar, two_regions};

/// The program's own deadlines are shorter.
const PATIENCE: Duration = Duration::from_secs(40);

const PROGRAM: &str = "tests/e2e/redis_py.py";

/// Failback soon, so that a test sees it.
const SOON: &str = "[failback]\nmode = \"immediate\"\ngrace = \"1s\"\n[failover]\ndwell = \"1s\"\n";

/// The running program: ten clients.
struct Applications {
    _child: Child,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    /// Tokens acknowledged since each move, by client.
    acknowledged: HashMap<String, Vec<String>>,
}

impl Applications {
    async fn start(sidecar: &Sidecar) -> Self {
        let mut command = tokio::process::Command::from(python::run(PROGRAM));
        let mut child = command
            .args(["--port", &sidecar.addr.port().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python starts");
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut applications = Self {
            orders: child.stdin.take().unwrap(),
            _child: child,
            said,
            acknowledged: HashMap::new(),
        };
        assert_eq!(applications.hear().await["ready"], true);
        applications
    }

    async fn hear(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.said.next_line()).await;
        let line = line.expect("the program answers in time").unwrap();
        serde_json::from_str(&line.expect("the program does not end")).expect("JSON")
    }

    async fn order(&mut self, order: &str) -> Value {
        self.orders
            .write_all(format!("{order}\n").as_bytes())
            .await
            .unwrap();
        self.hear().await
    }

    /// All listeners hear again, all blocked clients are served again, all writers write again.
    async fn served_again(&mut self, name: &str) {
        let told = self.order(&format!("moved {name}")).await;
        println!(
            "{name}: all received again after {} ms",
            told["received_after_ms"]
        );
        assert_eq!(
            told["deaf"],
            serde_json::json!([]),
            "{name}: these receive nothing any more"
        );
        let acknowledged: HashMap<String, Vec<String>> =
            serde_json::from_value(told["acknowledged"].clone()).unwrap();
        for (client, tokens) in acknowledged {
            assert!(
                tokens.len() >= 10,
                "{name}: {client} writes again: {} writes",
                tokens.len()
            );
            self.acknowledged.entry(client).or_default().extend(tokens);
        }
    }

    /// Stops all; no connection was closed and no error seen that is not documented for that use.
    async fn stop(mut self) -> Self {
        let told = self.order("stop").await;
        println!("errors: {}\nsteps: {}", told["errors"], told["steps"]);
        assert_eq!(told["stuck"], serde_json::json!([]), "these wait for ever");
        for (client, closed) in told["closed"].as_object().unwrap() {
            assert_eq!(closed, 0, "{client}: its connection was closed");
        }
        for (client, errors) in told["errors"].as_object().unwrap() {
            let documented: &[&str] = match client.split(':').next().unwrap() {
                "plain" | "pipelined" => &["OUTCOMEUNKNOWN"],
                "transaction" => &["OUTCOMEUNKNOWN", "ExecAbortError", "WatchError"],
                "blocked" => &["UNBLOCKED"],
                _ => &[],
            };
            for code in errors.as_object().unwrap().keys() {
                assert!(documented.contains(&code.as_str()), "{client}: {errors}");
            }
        }
        self
    }

    /// On each replica no token is there twice, and each is there that was acknowledged after a move; transactions are
    /// whole.
    async fn exactly_once(&self, rig: &Rig) {
        rig.wait_converged(Duration::from_secs(10)).await.unwrap();
        for region in rig.regions() {
            for (client, acknowledged) in &self.acknowledged {
                let ask = async |words: &[&str]| region.command(words).await.expect("the replica answers");
                let tokens = ask(&["LRANGE", &format!("tokens:{client}"), "0", "-1"]).await;
                let tokens: Vec<String> = redis::from_redis_value(tokens).unwrap();
                let once: HashSet<&String> = tokens.iter().collect();
                let at = region.name();
                assert_eq!(once.len(), tokens.len(), "{client}: a token twice on {at}");
                let lost: Vec<&String> = acknowledged
                    .iter()
                    .filter(|token| !once.contains(token))
                    .collect();
                assert!(
                    lost.is_empty(),
                    "{client}: acknowledged after the move and not on {at}: {lost:?}"
                );
                if client.starts_with("transaction") {
                    let count = ask(&["GET", &format!("count:{client}")]).await;
                    let count: usize = redis::from_redis_value(count).unwrap();
                    assert_eq!(count, tokens.len(), "{client}: half a transaction on {at}");
                }
            }
        }
    }
}

async fn in_sync(sidecar: &Sidecar) {
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_lives_through_a_kill_and_the_return() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", SOON).await;
    in_sync(&sidecar).await;
    let mut applications = Applications::start(&sidecar).await;
    rig.kill("local").await.unwrap();
    sidecar.wait_active("remote").await;
    applications.served_again("failover").await;
    rig.restart("local", Data::Fresh).await.unwrap();
    sidecar.wait_active("local").await;
    applications.served_again("failback").await;
    applications.stop().await.exactly_once(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_lives_through_a_hang_and_the_return() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", SOON).await;
    in_sync(&sidecar).await;
    let mut applications = Applications::start(&sidecar).await;
    rig.hang("local").await.unwrap();
    sidecar.wait_active("remote").await;
    applications.served_again("failover").await;
    rig.unhang("local").await.unwrap();
    sidecar.wait_active("local").await;
    applications.served_again("failback").await;
    applications.stop().await.exactly_once(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_lives_through_a_restart() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", SOON).await;
    in_sync(&sidecar).await;
    let mut applications = Applications::start(&sidecar).await;
    rig.restart("local", Data::Keep).await.unwrap();
    // Whether it was left meanwhile is not this test's business.
    in_sync(&sidecar).await;
    sidecar.wait_active("local").await;
    applications.served_again("restart").await;
    applications.stop().await.exactly_once(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_hardly_notices_a_planned_switch() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    in_sync(&sidecar).await;
    let mut applications = Applications::start(&sidecar).await;
    for to in ["remote", "local"] {
        sidecar.verb(&["switch", to]).await.expect("it is done");
        applications.served_again(to).await;
    }
    applications.stop().await.exactly_once(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_connection_would_be_noticed() {
    let rig = two_regions().await;
    let port = rig.region("local").direct_addr().port().to_string();
    let mut command = tokio::process::Command::from(python::run(PROGRAM));
    let out = command
        .args(["--self-check", "--port", &port])
        .output()
        .await
        .unwrap();
    let told: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&out.stderr)));
    assert_eq!(told, serde_json::json!({ "before": 0, "after": 1 }));
}
