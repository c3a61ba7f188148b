//! The heartbeat matrix of divided replicas: whatever pair of shards stops replicating, in one direction, exactly that is
//! named, everywhere it can be read, within the heartbeat time-out and an interval.

use std::collections::BTreeSet;
use std::time::Duration;

use rig::{Data, Rig, RigOptions};
use serde_json::Value;

use crate::support::Sidecar;
use crate::witness::{Link, events, link, links, links_down, replica, switches, text, unix_ms, wait_well};

/// The heartbeat time-out of the profile `fast`, and one interval.
const TIMEOUT: Duration = Duration::from_millis(1100);

/// For so long a cut is looked at: more than another time-out.
const WATCH: Duration = Duration::from_millis(1200);

async fn divided(shards: &[usize]) -> (Rig, Sidecar) {
    let options = RigOptions::count(shards.len()).front(shards.iter().copied());
    let rig = Rig::start(options).await.expect("the rig starts");
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    wait_well(&sidecar, shards).await;
    (rig, sidecar)
}

/// The events of links that went down, and when, in milliseconds since 1970.
async fn downs(sidecar: &Sidecar) -> Vec<(Link, u64)> {
    let down = |event: &Value| {
        let details = &event["details"];
        let shard = |key: &str| details[key].as_u64().expect("a shard");
        let (from, to) = (text(&details["from"]), text(&details["to"]));
        let at = event["at"].as_u64().expect("a time");
        (link(from, shard("shard"), to, shard("to_shard")), at)
    };
    let all = events(sidecar).await;
    let links = all
        .iter()
        .filter(|event| event["kind"] == "link" && event["details"]["up"] == false);
    links.map(down).collect()
}

/// Waits until exactly these are down.
async fn wait_down(sidecar: &Sidecar, wished: &BTreeSet<Link>) {
    sidecar
        .wait(&format!("cut of {wished:?}"), |status| {
            links_down(status) == *wished
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shards_direction_is_named_and_nothing_else() {
    let (rig, sidecar) = divided(&[3, 3]).await;
    let lines = sidecar.get("/metrics").await;
    let up = |line: &&str| line.starts_with("pulsegate_link_up{");
    let ups: Vec<&str> = lines.lines().filter(up).collect();
    assert_eq!(ups.len(), 12, "three shards, two replicas, two ears: {ups:#?}");
    assert!(ups.iter().all(|line| line.ends_with(" 1")), "{ups:#?}");

    rig.cut_link(("local", 1), "remote").await.unwrap();
    let cut = unix_ms();
    let wished = BTreeSet::from([link("local", 1, "remote", 1)]);
    wait_down(&sidecar, &wished).await;
    let end = tokio::time::Instant::now() + WATCH;
    while tokio::time::Instant::now() < end {
        let status = sidecar.status().await;
        assert_eq!(links_down(&status), wished, "{status:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = downs(&sidecar).await;
    let [(named, at)] = &told[..] else {
        panic!("one link went down, told: {told:?}");
    };
    let took = Duration::from_millis(at.saturating_sub(cut));
    println!("one shard's direction cut: named after {took:?}");
    assert_eq!(*named, link("local", 1, "remote", 1));
    assert!(took <= TIMEOUT, "named after {took:?}");
    assert!(sidecar.log_contains("link local → remote (shard 1) is down: "));
    let metrics = sidecar.get("/metrics").await;
    let down: Vec<&str> = metrics
        .lines()
        .filter(up)
        .filter(|line| !line.ends_with(" 1"))
        .collect();
    assert_eq!(
        down,
        ["pulsegate_link_up{from=\"local\",shard=\"1\",to=\"remote\"} 0"]
    );
    let status = sidecar.status().await;
    for name in ["local", "remote"] {
        let said = replica(&status, name);
        assert_eq!(
            (&said["health"], &said["fitness"]),
            (&"healthy".into(), &"lagging".into()),
            "{said:#}"
        );
        assert!(
            text(&said["reason"]).contains("heartbeats from local to remote (shard 1)"),
            "{said:#}"
        );
    }
    assert_eq!(status["active"], "local");
    assert!(switches(&status).is_empty(), "{status:#}");

    rig.heal_link(("local", 1), "remote").unwrap();
    wait_well(&sidecar, &[3, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_shard_is_named_and_the_others_are_heard() {
    let (rig, sidecar) = divided(&[3, 3]).await;
    rig.kill(("local", 1)).await.unwrap();
    sidecar.wait_active("remote").await;
    let dead = |(from, shard, to, to_shard): &Link| {
        (from == "local" && *shard == 1) || (to == "local" && *to_shard == 1)
    };
    sidecar
        .wait("every link of the shard down", |status| {
            let of_shard = links(status).filter(|(link, _)| dead(link));
            of_shard.into_iter().all(|(_, up)| !up)
        })
        .await;
    let end = tokio::time::Instant::now() + WATCH;
    while tokio::time::Instant::now() < end {
        let status = sidecar.status().await;
        let down = links_down(&status);
        assert!(down.iter().all(dead), "{down:?}");
        let said = replica(&status, "local");
        assert_ne!(said["health"], "down", "its other shards work: {said:#}");
        assert_eq!(said["fitness"], "stale", "{said:#}");
        assert!(
            text(&said["reason"]).contains("writes refused: shard 1"),
            "{said:#}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = sidecar.status().await;
    assert_eq!(switches(&status)[0]["reason"], "unwritable", "{status:#}");
    rig.restart(("local", 1), Data::Fresh).await.unwrap();
    wait_well(&sidecar, &[3, 3]).await;
}

/// The names of the heartbeat channels that `region`'s shards have subscribers to.
async fn channels(rig: &Rig, region: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for shard in rig.region(region).shards() {
        let answer = shard.command(&["PUBSUB", "CHANNELS", "pulsegate:hb:*"]).await;
        let names: Vec<String> = redis::from_redis_value(answer.unwrap()).unwrap();
        for name in names {
            assert!(
                all.insert(name.clone()),
                "{name} is heard on two shards of {region}"
            );
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn six_shards_and_four_every_cut_of_a_pair_is_found() {
    let (rig, sidecar) = divided(&[6, 4]).await;
    // What the divisions have in common, counted by the servers' own slots.
    let mut pairs = BTreeSet::new();
    for here in 0..6 {
        for there in 0..4 {
            let meet = rig.region("local").slots(here).into_iter().any(|slots| {
                let theirs = rig.region("remote").slots(there);
                theirs.into_iter().any(|other| slots.meets(other))
            });
            if meet {
                pairs.insert((here, there));
            }
        }
    }
    assert_eq!(pairs.len(), 8, "{pairs:?}");
    for region in ["local", "remote"] {
        let heard = channels(&rig, region).await;
        for publisher in [":0-local:", ":1-remote:"] {
            let of = heard.iter().filter(|name| name.contains(publisher)).count();
            assert_eq!(
                of,
                pairs.len(),
                "heartbeats of {publisher} on {region}: {heard:#?}"
            );
        }
    }

    // One cut in each direction at a time, of different pairs.
    let there = pairs.iter();
    let back = pairs.iter().cycle().skip(3);
    for (&(here, far), &(home, from)) in there.zip(back) {
        let number = |shard: usize| u64::try_from(shard).unwrap();
        rig.cut_link(("local", here), ("remote", far)).await.unwrap();
        rig.cut_link(("remote", from), ("local", home)).await.unwrap();
        let cut = unix_ms();
        let wished = BTreeSet::from([
            link("local", number(here), "remote", number(far)),
            link("remote", number(from), "local", number(home)),
        ]);
        let known = downs(&sidecar).await.len();
        wait_down(&sidecar, &wished).await;
        let told = downs(&sidecar).await.split_off(known);
        let named: BTreeSet<Link> = told.iter().map(|(link, _)| link.clone()).collect();
        assert_eq!(named, wished, "told: {told:?}");
        for (link, at) in told {
            let took = Duration::from_millis(at.saturating_sub(cut));
            assert!(took <= TIMEOUT, "{link:?} is named after {took:?}");
        }
        rig.heal_link(("local", here), ("remote", far)).unwrap();
        rig.heal_link(("remote", from), ("local", home)).unwrap();
        wait_well(&sidecar, &[6, 4]).await;
    }
    let status = sidecar.status().await;
    assert_eq!(status["active"], "local");
    assert!(switches(&status).is_empty(), "{status:#}");
}
