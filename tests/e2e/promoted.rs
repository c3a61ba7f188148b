//! A cluster that mends itself: another node takes the place of one that failed, at another address.

use std::time::Duration;

use pulsegate::resp::slot;

use crate::cluster::Cluster;
use crate::sharded::{KEYS, wait_heard};
use crate::support::{App, PATIENCE, Sidecar, now};

/// The replica's own address is that of the node that fails: what is known of the others has to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_is_found_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let lost = cluster.owner(slot(KEYS[1].as_bytes())).await;
    cluster.add_standby(lost).await;
    let url = format!("redis://127.0.0.1:{}", cluster.nodes[lost].port);
    let replicas = format!("[[replica]]\nname = \"only\"\nurl = \"{url}\"\n");
    let sidecar = Sidecar::with_replicas(&replicas, "fast", "[hold]\ntimeout = \"20s\"\n").await;
    sidecar
        .wait("three shards", |s| {
            let shards = s["replicas"][0]["shards"].as_array();
            s["active"] == "only" && shards.is_some_and(|shards| shards.len() == 3)
        })
        .await;
    let mut app = App::connect(sidecar.addr).await;
    let mut others = App::connect(sidecar.addr).await;
    let mut listener = App::connect(sidecar.addr).await;
    for key in KEYS {
        assert_eq!(app.ask(&["INCR", key]).await, ":1\r\n");
        assert!(listener.ask(&["SSUBSCRIBE", key]).await.contains("ssubscribe"));
    }
    // The standby has what was written: WAIT speaks of its own connection's writes, and of all before them.
    let mut direct = cluster.nodes[lost].connect().await;
    let tagged = format!("{{{}}}", KEYS[1]);
    let mut both = redis::pipe();
    both.cmd("SET").arg(tagged).arg(1).ignore();
    both.cmd("WAIT").arg(1).arg(5000);
    let (there,): (usize,) = both.query_async(&mut direct).await.unwrap();
    assert_eq!(there, 1);
    cluster.nodes[lost].kill();
    let began = now();
    app.say(&["INCR", KEYS[1]]).await;
    for key in [KEYS[0], KEYS[2]] {
        assert_eq!(others.ask(&["INCR", key]).await, ":2\r\n");
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let reply = app.try_hear(PATIENCE).await.expect("it was held");
    println!("promoted and found within {:?}", began.elapsed());
    // It was said after the node had gone, so that nothing about it is unknown.
    assert_eq!(reply, ":2\r\n");
    let mut speaker = App::connect(sidecar.addr).await;
    for key in KEYS {
        wait_heard(&mut speaker, "SPUBLISH", key, &mut listener).await;
    }
}
