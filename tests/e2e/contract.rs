//! The outside interfaces that others build on: names in `/status` and of the metrics, as the design has them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{App, Sidecar, now, two_regions};

/// The keys of an object.
fn keys(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().unwrap_or_else(|| panic!("an object: {value}"));
    object.keys().map(String::as_str).collect()
}

fn has(value: &Value, names: &[&str]) {
    for name in names {
        assert!(keys(value).contains(name), "{name} in {value:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_has_the_names_of_the_design() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    let before = sidecar.status().await;
    assert_eq!(before["pinned"], Value::Null);
    sidecar.verb(&["switch", "remote"]).await.expect("it is done");
    let status = sidecar.status().await;
    has(
        &status,
        &[
            "epoch",
            "active",
            "read",
            "holding",
            "pinned",
            "replicas",
            "last_switches",
        ],
    );
    assert_eq!(status["active"], "remote");
    assert_eq!(status["read"], serde_json::json!({"remote": 100}));
    assert_eq!(status["holding"], false);
    let epoch = |status: &Value| status["epoch"].as_u64().unwrap();
    assert_eq!(
        epoch(&status),
        epoch(&before) + 2,
        "one change to hold, one to the new replica"
    );

    let replicas = status["replicas"].as_array().unwrap();
    for replica in replicas {
        let names = [
            "name", "health", "fitness", "reason", "since", "rtt_ms", "shards", "links",
        ];
        has(replica, &names);
        assert_eq!(replica["health"], "healthy");
        assert_eq!(replica["fitness"], "in_sync");
        assert!(
            replica["since"].as_u64().unwrap() > 1_600_000_000_000,
            "milliseconds"
        );
        assert!(replica["rtt_ms"].is_number());
        assert_eq!(replica["shards"].as_array().unwrap().len(), 1);
        let links = replica["links"].as_array().unwrap();
        let to: Vec<&str> = links.iter().map(|link| link["to"].as_str().unwrap()).collect();
        assert_eq!(to, ["local", "remote"], "its own echo among them");
        for link in links {
            has(link, &["to", "shard", "lag_ms", "last_heard_ms", "up"]);
            assert_eq!(
                (&link["shard"], &link["up"]),
                (&Value::from(0), &Value::from(true))
            );
            assert!(link["last_heard_ms"].as_u64().unwrap() > 1_600_000_000_000);
        }
    }

    let switches = status["last_switches"].as_array().unwrap();
    assert_eq!(switches.len(), 2, "the start and the switch");
    for switch in switches {
        let names = [
            "epoch",
            "from",
            "to",
            "reason",
            "at",
            "detect_ms",
            "fence_ms",
            "switch_ms",
        ];
        has(switch, &names);
    }
    assert_eq!(switches[1]["epoch"], status["epoch"]);
    assert_eq!(
        (&switches[1]["from"], &switches[1]["to"]),
        (&Value::from("local"), &Value::from("remote"))
    );
}

/// A name of the design with its labels.
const METRICS: &[(&str, &[&str])] = &[
    ("build_info", &["version"]),
    ("active", &["replica"]),
    ("replica_health", &["replica", "state"]),
    ("replica_fitness", &["replica", "state"]),
    ("heartbeats_sent_total", &["replica"]),
    ("heartbeats_received_total", &["from", "to", "shard"]),
    ("replication_lag_seconds_bucket", &["from", "to", "shard"]),
    ("link_up", &["from", "to", "shard"]),
    ("probe_duration_seconds_bucket", &["replica", "probe"]),
    ("switches_total", &["from", "to", "reason"]),
    ("switch_duration_seconds_bucket", &[]),
    ("detection_seconds_bucket", &[]),
    ("hold_duration_seconds_bucket", &[]),
    ("sessions", &["kind"]),
    ("commands_total", &["class", "replica"]),
    ("command_duration_seconds_bucket", &["replica"]),
    ("replies_error_total", &["replica", "code"]),
    ("commands_unknown_outcome_total", &[]),
    ("commands_retried_total", &[]),
    ("upstream_connections", &["replica", "kind"]),
    ("bytes_total", &["direction"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_of_the_design_and_of_the_readme() {
    let rig = two_regions().await;
    // With a REST check, whose metrics are there only where one is configured. Nobody answers it.
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "secret").unwrap();
    let [local, remote] = ["local", "remote"].map(|name| {
        let url = rig.region(name).url();
        format!("[[replica]]\nname = \"{name}\"\nurl = \"{url}\"\n")
    });
    let rest = format!(
        "[replica.rest]\nurl = \"https://127.0.0.1:9\"\nusername = \"u\"\npassword_file = \"{}\"\n",
        password.display()
    );
    let sidecar = Sidecar::with_replicas(&format!("{local}{rest}{remote}"), "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "v"]).await, "+OK\r\n");
    let scrape = sidecar.get("/metrics").await;
    let series = |name: &str| {
        let found = scrape.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        found.unwrap_or_else(|| panic!("no series {name} in\n{scrape}"))
    };
    for (name, labels) in METRICS {
        let line = series(&format!("pulsegate_{name}"));
        for label in *labels {
            assert!(line.contains(&format!("{label}=\"")), "label {label} in {line}");
        }
    }
    // A document that names what is not there would send people looking for it in the night.
    let readme = include_str!("../../README.md");
    let names: BTreeSet<&str> = readme
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("pulsegate_"))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(
            scrape.contains(&format!("# TYPE {name} ")),
            "{name} of README.md is in the scrape"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_over_http() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "[failback]\nmode = \"manual\"\n").await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    assert_eq!(sidecar.get("/livez").await, "ok\n");
    assert_eq!(sidecar.get("/readyz").await, "ok\n");
    let wait = async |what: &str, key: &str, value: Value| {
        let began = now();
        sidecar.wait(what, |s| s[key] == value).await;
        began.elapsed()
    };
    sidecar
        .post("/switch", "{\"to\":\"remote\",\"reason\":\"a drill\"}")
        .await
        .expect("switched");
    wait("the switch", "active", "remote".into()).await;
    sidecar.post("/failback", "").await.expect("back");
    wait("the failback", "active", "local".into()).await;
    sidecar
        .post("/pin", "{\"replica\":\"remote\"}")
        .await
        .expect("pinned");
    wait("the pin", "pinned", "remote".into()).await;
    sidecar.post("/unpin", "").await.expect("unpinned");
    wait("no pin", "pinned", Value::Null).await;
    sidecar.post("/hold", "").await.expect("holds");
    wait("the hold", "holding", true.into()).await;
    sidecar.post("/resume", "").await.expect("resumes");
    wait("its end", "holding", false.into()).await;
    let refused = sidecar.post("/switch", "{\"to\":\"nowhere\"}").await.unwrap_err();
    assert!(refused.contains("local, remote"), "{refused}");
    let events = sidecar.get("/events?recent=200&follow=false").await;
    assert!(
        events.contains("event: switch") && events.contains("a drill"),
        "{events}"
    );
}
