//! Slots of a cluster that change hands under load.

use std::collections::BTreeSet;

use redis::Value;
use rig::{Rig, RigOptions, SlotRange, SyncerState};

use crate::counting::{Counter, Follower, KEYS, counted_once, key, keys_are_at_home, more_counts};
use crate::support::{PATIENCE, Raw, SILENCE, converged, frame, name_in, start};

/// The lower half of a shard's slots, less the first few: both of its ends are inside.
fn part(rig: &Rig, region: &str, shard: usize) -> SlotRange {
    let own = rig.region(region).slots(shard)[0];
    SlotRange {
        first: own.first + 10,
        last: own.first + (own.last - own.first) / 2,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_under_load_lose_and_double_nothing() {
    let rig = start(RigOptions::count(2).cluster([3])).await;
    let counters = ["local", "remote"].map(|region| Counter::start(&rig, region));
    more_counts(&rig, "remote", 3).await;
    let moved = part(&rig, "local", 0);
    let inside = (0..KEYS)
        .filter(|&n| moved.contains(rig::slot(key(n).as_bytes())))
        .count();
    assert!(inside > 5, "{inside} keys move");
    rig.move_slots("local", moved, 2).await.unwrap();
    assert!(rig.region("local").slots(2).contains(&moved));
    assert!(
        !rig.region("remote").slots(2).contains(&moved),
        "the other region stays as it is"
    );
    more_counts(&rig, "local", 3).await;
    // The same there, and once more elsewhere here.
    rig.move_slots("remote", moved, 2).await.unwrap();
    let upper = part(&rig, "local", 1);
    rig.move_slots("local", upper, 0).await.unwrap();
    // And back, where it now is in one piece with what it came from.
    rig.move_slots("local", moved, 0).await.unwrap();
    more_counts(&rig, "remote", 3).await;
    let mut counted = Vec::new();
    for counter in counters {
        counted.push(counter.stop().await);
    }
    converged(&rig).await;
    let counted: Vec<_> = counted.iter().collect();
    assert!(
        counted.iter().all(|one| one.unknown.is_empty()),
        "nobody was disturbed"
    );
    counted_once(&rig, &counted).await;
    keys_are_at_home(&rig).await;
    for (from, to) in [("local", "remote"), ("remote", "local")] {
        for link in rig.links(from, to).unwrap() {
            assert_eq!((link.failed, link.full_resyncs), (0, 0), "{link:?}");
        }
    }
    let places: BTreeSet<_> = rig
        .links("local", "remote")
        .unwrap()
        .iter()
        .map(|link| link.slots)
        .collect();
    assert_eq!(
        places.into_iter().collect::<Vec<_>>(),
        rig.cells(),
        "one link a cell"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlike_division_keeps_the_order_of_writes() {
    let rig = start(RigOptions::count(2).cluster([3, 2])).await;
    let moved = part(&rig, "local", 1);
    let key = name_in(moved);
    let (mut app, other) = (Follower::new(&rig, "local"), key.clone());
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        let mut last = 0_u64;
        while !*stopped.borrow_and_update() {
            last += 1;
            app.ask(&["RPUSH", &other, &last.to_string()])
                .await
                .expect("takes it");
        }
        last
    });
    for to in [2, 0, 1] {
        rig.move_slots("local", moved, to).await.unwrap();
    }
    stop.send_replace(true);
    let last = writing.await.unwrap();
    converged(&rig).await;
    let all: Vec<u64> = (1..=last).collect();
    for region in ["local", "remote"] {
        let list = rig
            .region(region)
            .command(&["LRANGE", &key, "0", "-1"])
            .await
            .unwrap();
        assert_eq!(
            redis::from_redis_value::<Vec<u64>>(list).unwrap(),
            all,
            "{region}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_on_after_a_move() {
    let rig = start(RigOptions::count(2).cluster([2])).await;
    let moved = part(&rig, "local", 0);
    rig.move_slots("local", moved, 1).await.unwrap();
    let channel = name_in(moved);
    for (from, to) in [("local", "remote"), ("remote", "local")] {
        let there = rig.region(to);
        let mut ear = Raw::connect(there.shard(there.shard_of(&channel)).direct_addr())
            .await
            .unwrap();
        ear.say(&format!("SSUBSCRIBE {channel}")).await;
        assert_eq!(frame(&mut ear).await[2], ":1");
        for n in 0..5 {
            rig.region(from)
                .command(&["SPUBLISH", &channel, &n.to_string()])
                .await
                .unwrap();
        }
        for n in 0..5 {
            assert_eq!(frame(&mut ear).await[2], n.to_string(), "{from} to {to}");
        }
        assert_eq!(ear.line(SILENCE).await.unwrap(), None, "once each");
    }
    // The pair of shards is another one now.
    assert!(rig.links(("local", 1), ("remote", 0)).is_ok());
    rig.cut_link(("local", 1), ("remote", 0)).await.unwrap();
    rig.region("local")
        .command(&["SET", &channel, "cut"])
        .await
        .unwrap();
    let behind = rig.wait_converged(SILENCE).await.expect_err("it is cut");
    assert!(behind.to_string().contains(&moved.to_string()), "{behind}");
    let error = rig
        .move_slots("local", moved, 0)
        .await
        .expect_err("its link is cut");
    assert!(error.to_string().contains("does not stream"), "{error}");
    rig.heal_link(("local", 1), ("remote", 0)).unwrap();
    rig.wait_converged(PATIENCE).await.unwrap();
    let there = rig.region("remote").command(&["GET", &channel]).await;
    assert_eq!(there, Ok(Value::BulkString(b"cut".into())));
    let links = rig.links("local", "remote").unwrap();
    assert!(links.iter().all(|link| link.state == SyncerState::Streaming));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_moved_is_told() {
    let rig = start(RigOptions::count(1).cluster([2])).await;
    let own = rig.region("local").slots(0)[0];
    for (slots, to, hint) in [
        (own, 0, "already"),
        (own, 2, "no shard 2"),
        (SlotRange::ALL, 1, "several owners"),
    ] {
        let error = rig.move_slots("local", slots, to).await.expect_err("refused");
        assert!(error.to_string().contains(hint), "{error}");
    }
    // All of a shard's slots may go.
    rig.move_slots("local", own, 1).await.unwrap();
    assert!(rig.region("local").slots(0).is_empty());
    let plain = start(RigOptions::count(1)).await;
    let error = plain.move_slots("local", own, 0).await.expect_err("refused");
    assert!(error.to_string().contains("no cluster"), "{error}");
}
