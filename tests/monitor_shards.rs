//! Sharded replicas: where heartbeats go, what they prove, and how layouts are read and change.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pulsegate::control::status::Status;
use pulsegate::decision::Policy;
use pulsegate::replica::{Layout, ReplicaId, Topology, TopologyKind};
use pulsegate::resp::slot;
use rig::{Rig, RigOptions};
use tokio::time::Instant;

#[path = "monitor_shards/answers.rs"]
mod answers;
#[path = "monitor_shards/cluster.rs"]
mod cluster;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/sidecar.rs"]
mod sidecar;

use sidecar::{PATIENCE, Place, Sidecar};

/// As elsewhere, with heartbeats enough for a close look.
fn policy() -> Policy {
    Policy {
        heartbeat_interval: Duration::from_millis(100),
        ..sidecar::policy()
    }
}

/// From shard, to shard, of links that are down, by replica names.
type Down = BTreeSet<(String, u16, String, u16)>;

fn down(status: &Status) -> Down {
    let links = status.replicas.iter().flat_map(|replica| {
        replica.links.iter().map(|link| {
            (
                replica.name.clone(),
                link.shard,
                link.to.clone(),
                link.to_shard,
                link.up,
            )
        })
    });
    links
        .filter(|(.., up)| !up)
        .map(|(from, shard, to, to_shard, _)| (from, shard, to, to_shard))
        .collect()
}

async fn front(shards: [usize; 2]) -> (Rig, Sidecar) {
    let rig = Rig::start(RigOptions::count(2).front(shards)).await.unwrap();
    let port = |region| rig.region(region).addr().port();
    let places = vec![
        Place::new("local", port("local")),
        Place::new("remote", port("remote")),
    ];
    let sidecar = Sidecar::start(places, policy());
    (rig, sidecar)
}

/// Pairs of shards, of regions with so many, that have a slot in common.
fn pairs(local: u16, remote: u16) -> BTreeSet<(u16, u16)> {
    let (local, remote) = (Layout::even(local), Layout::even(remote));
    (0..16384)
        .map(|slot| (local.owner(slot).unwrap().0, remote.owner(slot).unwrap().0))
        .collect()
}

/// The heartbeats' channels that somebody listens for on a server.
async fn channels(command: impl Future<Output = redis::RedisResult<redis::Value>>) -> BTreeSet<String> {
    redis::from_redis_value(command.await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_channel_is_on_its_shard_and_there_is_one_for_each_intersection() {
    let (rig, mut sidecar) = front([6, 4]).await;
    let status = sidecar.settled().await;
    let shards = |replica: usize| status.replicas[replica].shards.len();
    assert_eq!((shards(0), shards(1)), (6, 4));
    assert_eq!(status.replicas[1].shards[0].slots, "0-4095");

    // By region: the cells' tags of either replica's channels, wherever they were found.
    let mut found: BTreeMap<(&str, String), BTreeSet<(u16, u16)>> = BTreeMap::new();
    for name in ["local", "remote"] {
        let region = rig.region(name);
        for (number, shard) in region.shards().iter().enumerate() {
            let here = channels(shard.command(&["PUBSUB", "CHANNELS", "pulsegate:hb:*"])).await;
            assert!(!here.is_empty(), "{name}/{number}");
            for channel in here {
                assert_eq!(region.shard_of(&channel), number, "{channel} on {name}/{number}");
                let pair = ["local", "remote"].map(|region| rig.region(region).shard_of(&channel) as u16);
                let publisher = channel.split(':').nth(3).unwrap().to_owned();
                let new = found.entry((name, publisher)).or_default().insert(pair.into());
                assert!(new, "a second channel of one pair: {channel}");
            }
        }
    }
    let wanted = pairs(6, 4);
    assert_eq!(wanted.len(), 8);
    assert_eq!(found.len(), 4, "{found:?}");
    for (place, pairs) in found {
        assert_eq!(pairs, wanted, "{place:?}");
    }

    // The write probe leaves one key on each shard.
    for name in ["local", "remote"] {
        for (number, shard) in rig.region(name).shards().iter().enumerate() {
            let keys = channels(shard.command(&["KEYS", "pulsegate:probe:*"])).await;
            let own = keys.iter().filter(|key| rig.region(name).shard_of(key) == number);
            assert!(own.count() >= 1, "{name}/{number}: {keys:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cut_of_one_pair_of_shards_is_named_in_time() {
    let (rig, mut sidecar) = front([6, 4]).await;
    sidecar.settled().await;
    let limit = policy().heartbeat_timeout + policy().heartbeat_interval;
    let mut slowest = Duration::ZERO;
    for (from, to) in [("local", "remote"), ("remote", "local")] {
        for (local, remote) in pairs(6, 4) {
            let (from_shard, to_shard) = match from {
                "local" => (local, remote),
                _ => (remote, local),
            };
            let at = |name: &'static str, shard: u16| (name, usize::from(shard));
            rig.cut_link(at(from, from_shard), at(to, to_shard))
                .await
                .unwrap();
            let cut = Instant::now();
            let wanted = Down::from([(from.to_owned(), from_shard, to.to_owned(), to_shard)]);
            let status = sidecar
                .until("the link is down", |status| !down(status).is_empty())
                .await;
            let took = cut.elapsed();
            assert_eq!(down(&status), wanted);
            // A busy machine may be late to look; the verdict is bounded all the same.
            assert!(took < limit + Duration::from_millis(500), "{took:?}");
            slowest = slowest.max(took);
            for replica in &status.replicas {
                assert_eq!(replica.health, "healthy", "{}", replica.reason);
            }
            assert_eq!(status.active.as_deref(), Some("local"));
            rig.heal_link(at(from, from_shard), at(to, to_shard)).unwrap();
            sidecar.until("it is up", |status| down(status).is_empty()).await;
        }
    }
    println!("16 cuts, each named alone, the slowest after {slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_move_is_fenced_on_every_pair_of_shards() {
    let (rig, mut sidecar) = front([6, 4]).await;
    sidecar.settled().await;
    let done = sidecar.switch(ReplicaId(1)).await.unwrap();
    assert!(done.contains("moved to remote behind a fence"), "{done}");
    // With one of eight cut, the fence cannot have crossed.
    rig.cut_link(("remote", 2), ("local", 3)).await.unwrap();
    let refused = sidecar.switch(ReplicaId(0)).await.unwrap_err();
    assert!(
        refused.contains("the fence was heard in 7 of 8 cells"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_refuses_writes_is_named() {
    let (rig, mut sidecar) = front([3, 3]).await;
    sidecar.settled().await;
    rig.stale_min_replicas(("remote", 1)).await.unwrap();
    let status = sidecar
        .until("it is stale", |status| status.replicas[1].fitness == "stale")
        .await;
    let writable: Vec<_> = status.replicas[1]
        .shards
        .iter()
        .map(|shard| shard.writable)
        .collect();
    assert_eq!(writable, [Some(true), Some(false), Some(true)]);
    assert!(
        status.replicas[1].reason.contains("shard 1"),
        "{}",
        status.replicas[1].reason
    );
    rig.unstale(("remote", 1)).await.unwrap();
    sidecar.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cluster_api_what_is_configured_counts() {
    let rig = Rig::start(RigOptions::count(2).front([3, 3]).cluster_api(false))
        .await
        .unwrap();
    let port = |region| rig.region(region).addr().port();
    let mut local = Place::new("local", port("local"));
    local.topology.shards = Some(3);
    let mut sidecar = Sidecar::start(vec![local, Place::new("remote", port("remote"))], policy());
    let status = sidecar.settled().await;
    let shards: Vec<usize> = status
        .replicas
        .iter()
        .map(|replica| replica.shards.len())
        .collect();
    assert_eq!(shards, [3, 1]);
    let status = sidecar.handle.status.borrow().clone();
    assert_eq!(down(&status), Down::new());
    assert_eq!(
        status.replicas[0].links.len(),
        6,
        "each of three to itself and to the other"
    );
}
