//! `promtool` has nothing to say about a scrape, nor about the configuration that ships with `docker/`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pulsegate::decision::{Health, ProbeKind, RestState, SwitchReason, Switched};
use pulsegate::metrics::{Class, Metrics};
use pulsegate::replica::{Address, Endpoint, Replica, ReplicaId, ShardId, Topology};

/// Runs promtool on `scrape`: whether it was content, and all that it said.
fn promtool(scrape: &str) -> (bool, String) {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| panic!("promtool: {error}: apt-get install prometheus"));
    // Dropped at once, so that promtool sees the end.
    child.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
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

#[test]
fn promtool_is_content() {
    // Names with every character that the text format must escape.
    let replicas = [
        replica(0, "local"),
        replica(1, "eu-west \"1\" \\ ü"),
        replica(2, "third"),
    ];
    let metrics = Metrics::new(&replicas, 2).unwrap();
    let fresh = metrics.render();
    assert_eq!(promtool(&fresh), (true, String::new()), "{fresh}");

    let (a, b) = (ReplicaId(0), ReplicaId(1));
    metrics.worker(1).commands[Class::Read][b].add(3);
    metrics.worker(0).command_duration[b].observe(Duration::from_micros(300));
    metrics.control.health(a, Health::Healthy);
    metrics
        .control
        .heartbeat_heard(a, b, ShardId(7), Duration::from_millis(3));
    metrics
        .control
        .probe(a, ProbeKind::Ping, Duration::from_millis(1));
    metrics.control.rest_check(a, RestState::Unavailable);
    metrics.control.rest(a, RestState::Unavailable);
    metrics.control.switched(&Switched {
        epoch: 2,
        from: Some(a),
        to: b,
        reason: SwitchReason::Refused,
        why: String::new(),
        detect: Duration::from_millis(120),
        fence: None,
        switch: Duration::from_micros(90),
    });
    let used = metrics.render();
    assert_eq!(promtool(&used), (true, String::new()), "{used}");
}

/// The test above would notice: promtool does complain, and we see it.
#[test]
fn promtool_complains_where_it_should() {
    let (content, said) = promtool("# TYPE pulsegate_things counter\npulsegate_things 1\n");
    assert!(!content);
    assert!(said.contains("_total"), "{said}");
}

#[test]
fn the_prometheus_of_docker_is_configured_well() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/prometheus.yml");
    let checked = Command::new("promtool")
        .args(["check", "config", "--lint-fatal", file])
        .output();
    let checked = checked.unwrap_or_else(|error| panic!("promtool: {error}: apt-get install prometheus"));
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}
