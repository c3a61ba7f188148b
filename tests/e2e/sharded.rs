//! Sharded regions, each a cluster of its own: one plain endpoint in front of them, whatever fails or moves.

use std::time::Duration;

use rig::{Rig, RigOptions};

use crate::support::{App, Load, PATIENCE, Sidecar, now, tokens_once};

pub(crate) const CLIENTS: usize = 20;

/// How long the load runs before and after.
pub(crate) const SETTLE: Duration = Duration::from_millis(700);

/// Keys of three shards.
pub(crate) const KEYS: [&str; 3] = ["c", "foo", "hello"];

/// Two regions of three nodes each, in sync.
async fn two_clusters() -> (Rig, Sidecar) {
    let rig = Rig::start(RigOptions::count(2).cluster([3, 3]))
        .await
        .expect("the rig starts");
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    sidecar
        .wait("both in sync, with three shards", |s| {
            (0..2).all(|r| {
                let replica = &s["replicas"][r];
                replica["fitness"] == "in_sync"
                    && replica["shards"].as_array().is_some_and(|all| all.len() == 3)
            })
        })
        .await;
    (rig, sidecar)
}

/// Publishes until the listener hears it.
pub(crate) async fn wait_heard(speaker: &mut App, publish: &str, channel: &str, listener: &mut App) {
    let deadline = now() + PATIENCE;
    loop {
        speaker.ask(&[publish, channel, "after"]).await;
        let said = listener.try_hear(Duration::from_millis(50)).await;
        if said.is_ok_and(|said| said.contains("after") && said.contains(channel)) {
            return;
        }
        assert!(now() < deadline, "{channel}: nothing is heard");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_region_dies_under_load() {
    let (rig, sidecar) = two_clusters().await;
    let mut listeners = Vec::new();
    for (subscribe, publish, channel) in [
        ("SUBSCRIBE", "PUBLISH", "news"),
        ("SSUBSCRIBE", "SPUBLISH", KEYS[0]),
        ("SSUBSCRIBE", "SPUBLISH", KEYS[1]),
    ] {
        let mut listener = App::connect(sidecar.addr).await;
        listener.ask(&[subscribe, channel]).await;
        listeners.push((publish, channel, listener));
    }
    let load = Load::start(sidecar.addr, CLIENTS);
    tokio::time::sleep(SETTLE).await;
    rig.kill("local").await.unwrap();
    sidecar.wait_active("remote").await;
    tokio::time::sleep(SETTLE).await;
    let seen = load.stop().await;
    println!(
        "longest gap {:?}, {} replies, errors {:?}",
        seen.gap, seen.replies, seen.errors
    );
    assert_eq!(seen.closed, 0, "no application connection is closed: {seen:?}");
    assert!(
        seen.errors
            .iter()
            .all(|(code, n)| code == "OUTCOMEUNKNOWN" && *n <= CLIENTS),
        "{:?}",
        seen.errors
    );
    assert!(tokens_once(&rig, "remote", CLIENTS).await > 0);
    let mut speaker = App::connect(sidecar.addr).await;
    for (publish, channel, listener) in &mut listeners {
        wait_heard(&mut speaker, publish, channel, listener).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_move_between_clusters_costs_no_error() {
    let (rig, sidecar) = two_clusters().await;
    let load = Load::start(sidecar.addr, CLIENTS);
    tokio::time::sleep(SETTLE).await;
    sidecar.verb(&["switch", "remote"]).await.expect("it is done");
    tokio::time::sleep(SETTLE).await;
    let seen = load.stop().await;
    println!("longest gap {:?}, {} replies", seen.gap, seen.replies);
    assert!(seen.errors.is_empty() && seen.closed == 0, "{seen:?}");
    rig.wait_converged(PATIENCE).await.unwrap();
    let there = tokens_once(&rig, "remote", CLIENTS).await;
    assert_eq!(there, seen.acked.len(), "every acknowledged write is there");
}
