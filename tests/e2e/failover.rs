//! The active replica fails in every way of the fault table; the application's connections live on.

use std::time::Duration;

use rig::{Data, Rig, RigOptions};
use serde_json::Value;

use crate::support::{App, Load, Seen, Sidecar, now, tokens_once, two_regions};

const CLIENTS: usize = 20;

/// How long the load runs before a fault, and after traffic has moved.
const SETTLE: Duration = Duration::from_millis(700);

/// Runs `fault` under load; what the load saw, and how long until `remote` was active.
async fn under_load(rig: &Rig, sidecar: &Sidecar, fault: impl AsyncFnOnce()) -> (Seen, Duration) {
    let load = Load::start(sidecar.addr, CLIENTS);
    tokio::time::sleep(SETTLE).await;
    let began = now();
    fault().await;
    sidecar.wait_active("remote").await;
    let moved = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    let seen = load.stop().await;
    assert_eq!(seen.closed, 0, "no application connection is closed: {seen:?}");
    assert!(
        seen.errors.keys().all(|code| code == "OUTCOMEUNKNOWN"),
        "only unknown outcomes: {:?}",
        seen.errors
    );
    assert!(
        seen.errors.get("OUTCOMEUNKNOWN").is_none_or(|n| *n <= CLIENTS),
        "one a client at most: {:?}",
        seen.errors
    );
    assert!(seen.replies > CLIENTS * 20, "the load ran: {seen:?}");
    tokens_once(rig, "remote", CLIENTS).await;
    (seen, moved)
}

fn last_switch(status: &Value) -> &Value {
    status["last_switches"]
        .as_array()
        .and_then(|s| s.last())
        .expect("a switch")
}

async fn kill_under_load(profile: &str, limit: Duration) {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, profile, "").await;
    let (seen, moved) = under_load(&rig, &sidecar, async || rig.kill("local").await.unwrap()).await;
    let status = sidecar.status().await;
    println!(
        "{profile}: SIGKILL: moved in {moved:?}, longest gap {:?}, errors {:?}",
        seen.gap, seen.errors
    );
    println!("{}", last_switch(&status));
    assert_eq!(last_switch(&status)["reason"], "refused");
    assert!(moved < limit, "moved in {moved:?}, at most {limit:?}");
    assert!(
        seen.gap < limit + Duration::from_millis(200),
        "longest gap {:?}",
        seen.gap
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_fast() {
    kill_under_load("fast", Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_balanced() {
    kill_under_load("balanced", Duration::from_secs(1)).await;
}

async fn hang(profile: &str, load: bool, limit: Duration) {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, profile, "").await;
    let moved = if load {
        let (seen, moved) = under_load(&rig, &sidecar, async || rig.hang("local").await.unwrap()).await;
        println!(
            "{profile}: SIGSTOP under load: moved in {moved:?}, gap {:?}, errors {:?}",
            seen.gap, seen.errors
        );
        moved
    } else {
        sidecar
            .wait("health", |s| {
                s["replicas"][0]["health"] == "healthy" && s["replicas"][1]["health"] == "healthy"
            })
            .await;
        let began = now();
        rig.hang("local").await.unwrap();
        sidecar.wait_active("remote").await;
        println!("{profile}: SIGSTOP idle: moved in {:?}", began.elapsed());
        began.elapsed()
    };
    assert!(moved < limit, "moved in {moved:?}, at most {limit:?}");
    rig.unhang("local").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_under_load_fast() {
    hang("fast", true, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_idle_fast() {
    hang("fast", false, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_under_load_balanced() {
    hang("balanced", true, Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_after_a_restart_is_no_health() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "before", "x"]).await, "+OK\r\n");
    rig.loading("local", Duration::from_secs(4)).await.unwrap();
    sidecar.wait_active("remote").await;
    let status = sidecar.status().await;
    assert_ne!(
        status["replicas"][0]["health"], "healthy",
        "a replica that loads is not healthy: {status:#}"
    );
    // The command that met the fault, if any, was answered; the connection lives.
    assert_eq!(app.ask(&["SET", "after", "y"]).await, "+OK\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_writes_move_the_traffic() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "1"]).await, "+OK\r\n");
    let began = now();
    rig.stale_min_replicas("local").await.unwrap();
    sidecar.wait_active("remote").await;
    println!("stale: moved in {:?}", began.elapsed());
    assert_eq!(last_switch(&sidecar.status().await)["reason"], "unwritable");
    assert_eq!(app.ask(&["SET", "k", "2"]).await, "+OK\r\n");
    assert_eq!(sidecar.status().await["replicas"][0]["fitness"], "stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_way_cut_is_named_and_moves_nothing() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let link = |s: &Value, from: usize, to: &str| {
        s["replicas"][from]["links"]
            .as_array()
            .and_then(|l| l.iter().find(|l| l["to"] == to))
            .map(|l| l["up"].clone())
    };
    sidecar
        .wait("both links", |s| {
            link(s, 0, "remote") == Some(true.into()) && link(s, 1, "local") == Some(true.into())
        })
        .await;
    rig.cut_link("local", "remote").await.unwrap();
    let named = sidecar
        .wait("the cut named", |s| link(s, 0, "remote") == Some(false.into()))
        .await;
    println!("one-way cut: named after {named:?}");
    let status = sidecar.status().await;
    assert_eq!(
        link(&status, 1, "local"),
        Some(true.into()),
        "the other direction still stands: {status:#}"
    );
    assert_eq!(status["active"], "local");
    assert_eq!(
        status["last_switches"].as_array().unwrap().len(),
        1,
        "only the start: {status:#}"
    );
    rig.heal_link("local", "remote").unwrap();
    sidecar
        .wait("the link mended", |s| link(s, 0, "remote") == Some(true.into()))
        .await;
    assert_eq!(sidecar.status().await["active"], "local");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flapping_replica_does_not_flap_the_traffic() {
    let rig = two_regions().await;
    let toml = "[failback]\nmode = \"immediate\"\ngrace = \"1500ms\"\n[failover]\ndwell = \"2s\"\n";
    let sidecar = Sidecar::start(&rig, "fast", toml).await;
    let load = Load::start(sidecar.addr, 5);
    let began = now();
    for _ in 0..4 {
        rig.kill("local").await.unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        rig.restart("local", Data::Fresh).await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    let took = began.elapsed();
    let seen = load.stop().await;
    assert_eq!(seen.closed, 0, "{seen:?}");
    let status = sidecar.status().await;
    let switches = status["last_switches"].as_array().unwrap().len() - 1;
    println!(
        "flapping for {took:?}: {switches} switches, gap {:?}, errors {:?}",
        seen.gap, seen.errors
    );
    assert!(switches >= 1, "the kill moved the traffic");
    assert!(
        switches as f64 <= took.as_secs_f64() / 2.0 + 1.0,
        "{switches} switches in {took:?} with a dwell of 2 s"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn both_down_then_one_back_serves_within_a_second() {
    let rig = two_regions().await;
    let toml = "[hold]\ntimeout = \"500ms\"\n[failback]\nmode = \"immediate\"\ngrace = \"60s\"\n[failover]\ndwell = \"60s\"\n";
    let sidecar = Sidecar::start(&rig, "fast", toml).await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "1"]).await, "+OK\r\n");
    rig.kill("remote").await.unwrap();
    rig.kill("local").await.unwrap();
    sidecar
        .wait("both down", |s| {
            s["replicas"]
                .as_array()
                .unwrap()
                .iter()
                .all(|r| r["health"] == "down")
        })
        .await;
    // A command that was on its way may have been lost with the link; from here on none is sent anywhere.
    let began = now();
    let reply = app.ask(&["SET", "k", "2"]).await;
    assert!(reply.starts_with("-UNAVAILABLE"), "{reply}");
    assert!(
        began.elapsed() < Duration::from_millis(900),
        "answered within the hold: {:?}",
        began.elapsed()
    );
    rig.restart("remote", Data::Fresh).await.unwrap();
    let began = now();
    loop {
        let reply = app.ask(&["SET", "k", "3"]).await;
        if reply == "+OK\r\n" {
            break;
        }
        assert!(reply.starts_with("-UNAVAILABLE"), "{reply}");
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "service again within 1 s"
        );
    }
    println!("both down, one back: served after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn failback_waits_for_its_grace_and_is_planned() {
    let rig = Rig::start(RigOptions::count(3)).await.expect("the rig starts");
    let grace = Duration::from_secs(3);
    let sidecar = Sidecar::start(
        &rig,
        "fast",
        "[failback]\nmode = \"immediate\"\ngrace = \"3s\"\n[failover]\ndwell = \"1s\"\n",
    )
    .await;
    let load = Load::start(sidecar.addr, 5);
    rig.kill("local").await.unwrap();
    sidecar.wait("failover", |s| s["active"] != "local").await;
    rig.restart("local", Data::Fresh).await.unwrap();
    rig.wait_converged(Duration::from_secs(10)).await.unwrap();
    let healthy = now();
    sidecar.wait_active("local").await;
    let took = healthy.elapsed();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = load.stop().await;
    let status = sidecar.status().await;
    println!(
        "failback: {took:?} after recovery (grace {grace:?}); {}; gap {:?}, errors {:?}",
        last_switch(&status),
        seen.gap,
        seen.errors
    );
    assert_eq!(last_switch(&status)["reason"], "failback");
    assert!(last_switch(&status)["fence_ms"].is_number(), "it was fenced");
    // `restart` and `wait_converged` took a part of the grace at most as long as they took themselves.
    let events = sidecar.get("/events?recent=200&follow=false").await;
    assert!(events.contains("grace"), "the grace is told: {events}");
    assert_eq!(seen.closed, 0);
    assert!(
        seen.errors.keys().all(|code| code == "OUTCOMEUNKNOWN"),
        "{:?}",
        seen.errors
    );
    rig.wait_converged(Duration::from_secs(10)).await.unwrap();
    tokens_once(&rig, "local", 5).await;
}
