//! SIGHUP, or a changed file: all of it is taken over, or nothing.

use std::time::Duration;

use crate::support::{App, Sidecar, now, two_regions};

/// Replaces `from` by `to` in the sidecar's configuration.
fn edited(sidecar: &Sidecar, from: &str, to: &str) -> String {
    let text = std::fs::read_to_string(sidecar.config()).unwrap();
    assert!(text.contains(from), "{from:?} is in the configuration: {text}");
    text.replace(from, to)
}

async fn reloads(sidecar: &Sidecar, result: &str) -> f64 {
    let name = format!("pulsegate_config_reloads_total{{result=\"{result}\"}}");
    sidecar.counter(&name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_is_noticed_and_new_timing_holds_without_a_false_alarm() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "patient", "").await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "1"]).await, "+OK\r\n");
    let before = sidecar.status().await;

    // As Kubernetes does it: the name becomes a symbolic link to another file.
    let faster = edited(
        &sidecar,
        "profile = \"patient\"",
        "profile = \"patient\"\nheartbeat_interval = \"100ms\"\nheartbeat_timeout = \"1s\"\nprobe_interval = \"200ms\"",
    );
    let other = sidecar.config().with_extension("new");
    std::fs::write(&other, faster).unwrap();
    let link = sidecar.config().with_extension("link");
    std::os::unix::fs::symlink(&other, &link).unwrap();
    std::fs::rename(&link, sidecar.config()).unwrap();

    let line = sidecar.wait_log("the configuration has changed", 0).await;
    let heard = |status: &serde_json::Value| status["replicas"][1]["links"][0]["last_heard_ms"].as_u64();
    let first = heard(&sidecar.status().await);
    sidecar
        .wait("the new pace", |s| {
            heard(s).zip(first).is_some_and(|(now, then)| now > then + 2000)
        })
        .await;
    let after = sidecar.status().await;
    assert_eq!(after["epoch"], before["epoch"], "nothing moved: {after:#}");
    for replica in 0..2 {
        assert_eq!(after["replicas"][replica]["health"], "healthy", "{after:#}");
        assert_eq!(
            after["replicas"][replica]["since"], before["replicas"][replica]["since"],
            "no alarm on the way: {after:#}"
        );
    }
    assert_eq!(reloads(&sidecar, "applied").await, 1.0);

    // By now the narrow windows are in force: the old ones would take 15 s.
    let began = now();
    rig.hang("local").await.unwrap();
    sidecar.wait_active("remote").await;
    println!("new timing: SIGSTOP idle: moved in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    rig.unhang("local").await.unwrap();
    // A read first: a write that crosses the change of the route may have an unknown outcome.
    assert_eq!(app.ask(&["GET", "none"]).await, "$-1\r\n");
    assert_eq!(app.ask(&["SET", "k", "2"]).await, "+OK\r\n");
    assert!(line > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slower_pace_is_not_taken_for_silence() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    let before = sidecar.status().await;
    let slower = edited(
        &sidecar,
        "profile = \"fast\"",
        "profile = \"fast\"\nheartbeat_interval = \"2s\"\nheartbeat_timeout = \"15s\"\nprobe_interval = \"3s\"",
    );
    std::fs::write(sidecar.config(), slower).unwrap();
    sidecar.signal("HUP");
    sidecar.wait_log("the configuration has changed", 0).await;
    // Two beats that are further apart than the old windows are wide.
    let last = std::cell::Cell::new(u64::MAX);
    sidecar
        .wait("the slow pace", |s| {
            let heard = s["replicas"][1]["links"][0]["last_heard_ms"].as_u64().unwrap();
            heard.saturating_sub(last.replace(heard)) > 1500
        })
        .await;
    let after = sidecar.status().await;
    assert_eq!(after["epoch"], before["epoch"], "nothing moved: {after:#}");
    for replica in 0..2 {
        let (now, then) = (&after["replicas"][replica], &before["replicas"][replica]);
        assert_eq!(
            (&now["health"], &now["since"]),
            (&then["health"], &then["since"]),
            "no alarm: {after:#}"
        );
        assert!(
            now["links"]
                .as_array()
                .unwrap()
                .iter()
                .all(|link| link["up"] == true),
            "{after:#}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_over_changes_nothing_and_is_said_at_once() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "balanced", "").await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "1"]).await, "+OK\r\n");
    let good = std::fs::read_to_string(sidecar.config()).unwrap();

    // Every problem, not only the first.
    let bad = edited(
        &sidecar,
        "[detection]",
        "[detection]\nheartbeat_intervall = \"1s\"\nprobe_interval = 5",
    );
    std::fs::write(sidecar.config(), bad).unwrap();
    sidecar.signal("HUP");
    let end = sidecar.wait_log("the configuration stays as it was", 0).await;
    assert!(
        sidecar
            .wait_log("did you mean \\\"heartbeat_interval\\\"?", 0)
            .await
            < end
    );
    assert!(sidecar.wait_log("detection.probe_interval", 0).await < end);
    assert_eq!(reloads(&sidecar, "refused").await, 1.0);

    // One key could change, the other two could not: none does.
    let fixed = good
        .replace(
            "profile = \"balanced\"",
            "profile = \"balanced\"\nheartbeat_timeout = \"9s\"",
        )
        .replace("name = \"remote\"", "name = \"elsewhere\"\nweight = 7");
    std::fs::write(sidecar.config(), fixed).unwrap();
    sidecar.signal("HUP");
    let refused = sidecar.wait_log("cannot change without a restart", end + 1).await;
    let named = sidecar
        .wait_log("replica[1].name, replica[1].weight", end + 1)
        .await;
    assert_eq!(named, refused);
    sidecar
        .wait_log("the configuration stays as it was", refused)
        .await;
    assert_eq!(reloads(&sidecar, "refused").await, 2.0);
    assert_eq!(reloads(&sidecar, "applied").await, 0.0);

    // A profile is more than the keys that can change.
    std::fs::write(sidecar.config(), good.replace("\"balanced\"", "\"fast\"")).unwrap();
    sidecar.signal("HUP");
    let named = "detection.connect_timeout, detection.response_timeout (detection.profile sets";
    let refused = sidecar.wait_log(named, refused + 1).await;
    sidecar
        .wait_log("the configuration stays as it was", refused)
        .await;
    assert_eq!(reloads(&sidecar, "refused").await, 3.0);

    // The file that is in force again: nothing to do, and the log's level can follow.
    std::fs::write(sidecar.config(), &good).unwrap();
    sidecar.signal("HUP");
    let same = sidecar
        .wait_log("the configuration is the same as before", refused)
        .await;
    let louder = edited(&sidecar, "[log]", "[log]\nlevel = \"debug\"");
    std::fs::write(sidecar.config(), louder).unwrap();
    sidecar.signal("HUP");
    let changed = sidecar.wait_log("log.level", same).await;
    sidecar.verb(&["hold"]).await.expect("holds");
    sidecar.verb(&["resume"]).await.expect("resumes");
    sidecar.wait_log("\"level\":\"DEBUG\"", changed).await;
    assert_eq!(reloads(&sidecar, "applied").await, 2.0);
    assert_eq!(app.ask(&["INCR", "k"]).await, ":2\r\n");
}
