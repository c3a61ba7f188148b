//! Replication between regions of several shards, alike or not: each effect once, each link by itself.

use redis::Value;
use rig::{Data, Rig, RigOptions, SyncerState};

use crate::counting::{Counter, KEYS, counts_survive_cuts, key, more_counts};
use crate::support::{Ear, PATIENCE, SILENCE, converged, eventually, name_in, start};

#[tokio::test(flavor = "multi_thread")]
async fn like_divisions_count_once() {
    let rig = start(RigOptions::count(2).front([3])).await;
    assert_eq!(
        rig.links("local", "remote").unwrap().len(),
        3,
        "one for each shard"
    );
    counts_survive_cuts(rig, &["local", "remote"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_and_four_shards_count_once() {
    let rig = start(RigOptions::count(2).front([6, 4])).await;
    let links = rig.links("local", "remote").unwrap();
    let pairs: Vec<_> = links
        .iter()
        .map(|link| (link.from_shard, link.to_shard))
        .collect();
    assert_eq!(
        pairs,
        [(0, 0), (1, 0), (1, 1), (2, 1), (3, 2), (4, 2), (4, 3), (5, 3)]
    );
    counts_survive_cuts(rig, &["local", "remote"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_unlike_regions_agree() {
    let rig = start(RigOptions::count(3).front([3, 2, 1])).await;
    counts_survive_cuts(rig, &["local", "remote", "third"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_cuts_are_of_one_pair_of_shards() {
    let rig = start(RigOptions::count(2).front([6, 4])).await;
    let cells = rig.cells();
    let mut ears = Vec::new();
    for &cell in &cells {
        let remote = rig.region("remote");
        let shard = remote.shard(remote.shard_of(&name_in(cell)));
        ears.push(Ear::open_at(shard.direct_addr(), &name_in(cell)).await);
    }
    // Shard 1 there has slots of two shards here; only what of it goes to shard 0 is cut.
    rig.cut_link(("local", 1), ("remote", 0)).await.unwrap();
    let cut = rig.links("local", "remote").unwrap();
    let cut: Vec<bool> = cut.iter().map(|link| link.state == SyncerState::Cut).collect();
    assert_eq!(cut.iter().filter(|&&cut| cut).count(), 1);
    for &cell in &cells {
        let said = rig
            .region("local")
            .command(&["PUBLISH", &name_in(cell), "beat"])
            .await;
        said.unwrap();
    }
    for (ear, &cut) in ears.iter_mut().zip(&cut) {
        if !cut {
            assert_eq!(ear.next(PATIENCE).await.as_deref(), Some("beat"));
        }
    }
    for (ear, &cut) in ears.iter_mut().zip(&cut) {
        if cut {
            assert_eq!(ear.next(SILENCE).await, None);
        }
    }
    let error = rig
        .cut_link(("local", 0), ("remote", 3))
        .await
        .expect_err("nothing in common");
    assert!(error.to_string().contains("local/0 to remote/3"), "{error}");
    let error = rig.link("local", "remote").expect_err("eight of them");
    assert!(error.to_string().contains("8 links"), "{error}");
    rig.heal_link(("local", 1), "remote").unwrap();
    for (ear, &cut) in ears.iter_mut().zip(&cut) {
        if cut {
            assert_eq!(ear.next(PATIENCE).await.as_deref(), Some("beat"), "late");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_lost_all_is_made_anew_from_the_shards_that_have_it() {
    let rig = start(RigOptions::count(2).front([3, 2])).await;
    let counters = ["local", "remote"].map(|region| Counter::start(&rig, region));
    for _ in 0..2 {
        for (region, shard) in [("local", 1), ("remote", 0)] {
            more_counts(&rig, "local", 2).await;
            converged_or_busy(&rig).await;
            rig.kill((region, shard)).await.unwrap();
            rig.restart((region, shard), Data::Fresh).await.unwrap();
        }
    }
    let mut counted = Vec::new();
    for counter in counters {
        counted.push(counter.stop().await);
    }
    converged(&rig).await;
    for n in 0..KEYS {
        let here = rig.region("local").command(&["GET", &key(n)]).await.unwrap();
        let there = rig.region("remote").command(&["GET", &key(n)]).await.unwrap();
        assert_eq!(here, there, "{}", key(n));
        // SIGKILL takes with it what had not left; nothing is counted twice.
        let value: Option<u64> = redis::from_redis_value(here).unwrap();
        let most: u64 = counted
            .iter()
            .flat_map(|one| [one.sure.get(&key(n)), one.unknown.get(&key(n))])
            .flatten()
            .sum();
        assert!(value.unwrap_or(0) <= most, "{} is {value:?} of {most}", key(n));
    }
}

/// Every link streams: nothing is being copied.
async fn converged_or_busy(rig: &Rig) {
    eventually("all links stream", || async {
        let all = [("local", "remote"), ("remote", "local")].map(|(from, to)| rig.links(from, to).unwrap());
        all.iter()
            .flatten()
            .all(|link| link.state == SyncerState::Streaming)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_of_one_shard_empties_its_slots_everywhere_and_no_others() {
    let rig = start(RigOptions::count(2).front([2, 3])).await;
    for n in 0..KEYS {
        rig.region("local").command(&["SET", &key(n), "1"]).await.unwrap();
    }
    converged(&rig).await;
    rig.region("local").shard(0).command(&["FLUSHALL"]).await.unwrap();
    converged(&rig).await;
    for n in 0..KEYS {
        let flushed = rig.region("local").shard_of(&key(n)) == 0;
        for region in rig.regions() {
            let there = region.command(&["EXISTS", &key(n)]).await;
            assert_eq!(
                there,
                Ok(Value::Int(i64::from(!flushed))),
                "{}: {}",
                region.name(),
                key(n)
            );
        }
    }
    // The books went with the rest: what follows is counted once all the same.
    let counter = Counter::start(&rig, "remote");
    rig.cut_link("remote", "local").await.unwrap();
    more_counts(&rig, "remote", 3).await;
    rig.heal_link("remote", "local").unwrap();
    counter.stop().await;
    converged(&rig).await;
    for n in 0..KEYS {
        let [here, there] = ["local", "remote"].map(|region| rig.region(region));
        let (words, name) = (key(n), key(n));
        assert_eq!(
            here.command(&["GET", &words]).await,
            there.command(&["GET", &words]).await,
            "{name}"
        );
    }
}
