//! Monitor, engine and control together on real servers that are idle: from a fault to the new route.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::time::Duration;

use pulsegate::replica::ReplicaId;
use tokio::time::Instant;

#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/sidecar.rs"]
mod sidecar;

use redis_server::Server;
use sidecar::{PATIENCE, Place, Sidecar, policy};

const LOCAL: ReplicaId = ReplicaId(0);
const REMOTE: ReplicaId = ReplicaId(1);

fn start(local: &Server, remote: &Server) -> Sidecar {
    let places = vec![Place::new("local", local.port), Place::new("remote", remote.port)];
    Sidecar::start(places, policy())
}

/// Until `local` is active and both are known to be well; nothing replicates between them.
async fn settled(sidecar: &mut Sidecar) {
    let well = |status: &pulsegate::control::status::Status| {
        status.active.as_deref() == Some("local")
            && status
                .replicas
                .iter()
                .all(|replica| replica.health == "healthy" && replica.shards[0].writable == Some(true))
    };
    sidecar.until("both are well", well).await;
}

#[tokio::test]
async fn a_killed_active_is_left_within_300_ms() {
    let mut local = Server::start(&[]).await;
    let remote = Server::start(&[]).await;
    let mut sidecar = start(&local, &remote);
    settled(&mut sidecar).await;
    let killed = Instant::now();
    local.kill();
    let route = sidecar.route_to(REMOTE).await;
    let took = killed.elapsed();
    println!("SIGKILL while idle: new route after {took:?}");
    assert!(took < Duration::from_millis(300), "{took:?}");
    assert!(route.abandon_others);
    let (health, reason) = sidecar.health(LOCAL);
    assert_eq!(health, "down", "{reason}");

    local.restart(&[]).await;
    let back = Instant::now();
    let healthy = sidecar
        .handle
        .status
        .wait_for(|status| status.replicas[0].health == "healthy");
    tokio::time::timeout(PATIENCE, healthy)
        .await
        .expect("it recovers")
        .unwrap();
    println!("restart: healthy again after {:?}", back.elapsed());
}

#[tokio::test]
async fn a_hung_active_is_left_within_two_seconds() {
    let local = Server::start(&[]).await;
    let remote = Server::start(&[]).await;
    let mut sidecar = start(&local, &remote);
    settled(&mut sidecar).await;
    let stopped = Instant::now();
    local.signal("-STOP");
    sidecar.route_to(REMOTE).await;
    let took = stopped.elapsed();
    println!("SIGSTOP while idle: new route after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn with_nobody_left_the_first_to_return_is_taken_at_once() {
    let mut local = Server::start(&[]).await;
    let mut remote = Server::start(&[]).await;
    let mut sidecar = start(&local, &remote);
    settled(&mut sidecar).await;
    local.kill();
    sidecar.route_to(REMOTE).await;
    remote.kill();
    let down = sidecar
        .handle
        .status
        .wait_for(|status| status.replicas.iter().all(|replica| replica.health == "down"));
    tokio::time::timeout(PATIENCE, down)
        .await
        .expect("both are down")
        .unwrap();
    let back = Instant::now();
    local.restart(&[]).await;
    sidecar.route_to(LOCAL).await;
    let took = back.elapsed();
    println!("both down, one back: new route after {took:?}, in spite of a dwell of 10 s");
    assert!(took < Duration::from_secs(1), "{took:?}");
}
