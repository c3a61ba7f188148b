//! Moves that an operator asks for: no error, hardly a pause; a pin stays, through restarts.

use std::time::Duration;

use crate::support::{App, Load, Sidecar, tokens_once, two_regions};

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_switch_costs_no_error() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    let load = Load::start(sidecar.addr, 20);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let told = sidecar
        .verb(&["switch", "remote", "--reason", "maintenance"])
        .await
        .expect("it is done");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let seen = load.stop().await;
    let status = sidecar.status().await;
    let switch = status["last_switches"].as_array().unwrap().last().unwrap();
    println!(
        "planned switch: {told}{switch}\nlongest gap {:?}, {} replies",
        seen.gap, seen.replies
    );
    assert_eq!(status["active"], "remote");
    assert_eq!(switch["reason"], "operator");
    assert!(switch["fence_ms"].is_number());
    assert!(
        seen.errors.is_empty() && seen.closed == 0,
        "no error at all: {seen:?}"
    );
    assert!(
        seen.gap < Duration::from_millis(100),
        "longest gap {:?}",
        seen.gap
    );
    rig.wait_converged(Duration::from_secs(10)).await.unwrap();
    let there = tokens_once(&rig, "remote", 20).await;
    assert_eq!(
        there,
        seen.acked.len(),
        "every acknowledged write is there: the move was fenced"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_stays_through_a_restart_and_a_better_choice() {
    let rig = two_regions().await;
    let mut sidecar = Sidecar::start(
        &rig,
        "fast",
        "[failback]\nmode = \"immediate\"\ngrace = \"500ms\"\n",
    )
    .await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    sidecar.verb(&["pin", "remote"]).await.expect("pinned");
    assert_eq!(sidecar.status().await["pinned"], "remote");
    sidecar.restart().await;
    let status = sidecar.status().await;
    assert_eq!(
        (&status["active"], &status["pinned"]),
        (&"remote".into(), &"remote".into()),
        "{status:#}"
    );
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(
        sidecar.status().await["active"],
        "remote",
        "no failback while pinned"
    );
    sidecar.verb(&["unpin"]).await.expect("unpinned");
    sidecar.wait_active("local").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_mistakes_are_told() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let unknown = sidecar.verb(&["switch", "nowhere"]).await.unwrap_err();
    assert!(
        unknown.contains("local") && unknown.contains("remote"),
        "names the known ones: {unknown}"
    );
    rig.kill("remote").await.unwrap();
    sidecar
        .wait("remote down", |s| s["replicas"][1]["health"] == "down")
        .await;
    let down = sidecar.verb(&["switch", "remote"]).await.unwrap_err();
    assert!(down.contains("down"), "{down}");
    assert_eq!(sidecar.status().await["active"], "local");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_hold_waits_and_resumes() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "[hold]\ntimeout = \"5s\"\n").await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "1"]).await, "+OK\r\n");
    sidecar.verb(&["hold"]).await.expect("holds");
    app.say(&["INCR", "k"]).await;
    assert_eq!(
        app.try_hear(Duration::from_millis(300)).await,
        Err("silence".into()),
        "held"
    );
    sidecar.verb(&["resume"]).await.expect("resumes");
    assert_eq!(app.hear().await, ":2\r\n");
}
