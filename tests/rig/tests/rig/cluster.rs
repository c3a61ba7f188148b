//! Regions that are clusters: what their nodes announce, and that effects and messages cross once.

use std::time::Duration;

use redis::Value;
use rig::{Data, Rig, RigOptions, SyncerState};

use crate::counting::{Counter, KEYS, counts_survive_cuts, key, more_counts};
use crate::support::{PATIENCE, Raw, SILENCE, application, ask, converged, frame, name_in, start};

/// A channel of each shard of the region, in their order.
fn channels(rig: &Rig, region: &str) -> Vec<String> {
    let region = rig.region(region);
    let own = (0..region.shards().len()).map(|shard| region.slots(shard));
    own.map(|slots| name_in(slots[0])).collect()
}

/// A subscriber at the server that owns the channel; `verb` is SUBSCRIBE or SSUBSCRIBE.
async fn ear(rig: &Rig, region: &str, verb: &str, channel: &str) -> Raw {
    let region = rig.region(region);
    let shard = region.shard(region.shard_of(channel));
    let mut raw = Raw::connect(shard.direct_addr()).await.expect("connects");
    raw.say(&format!("{verb} {channel}")).await;
    assert_eq!(frame(&mut raw).await[1..], [channel, ":1"]);
    raw
}

async fn publish(rig: &Rig, region: &str, verb: &str, channel: &str, message: &str) {
    let said = rig.region(region).command(&[verb, channel, message]).await;
    said.unwrap_or_else(|error| panic!("{region}: {verb} {channel}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_announce_their_relays_or_themselves() {
    for announces_servers in [false, true] {
        let mut options = RigOptions::count(1).cluster([3]);
        options.announce_servers = announces_servers;
        let rig = start(options).await;
        let region = rig.region("local");
        let mut app = application(&rig, "local").await;
        let slots = ask(&mut app, &["CLUSTER", "SLOTS"]).await.unwrap();
        type Node = (String, u16, String, Vec<Value>);
        let mut slots: Vec<(u16, u16, Node)> = redis::from_redis_value(slots).unwrap();
        slots.sort_by_key(|(first, ..)| *first);
        assert_eq!(slots.len(), 3);
        for ((first, last, (ip, port, ..)), (number, shard)) in
            slots.iter().zip(region.shards().iter().enumerate())
        {
            let addr = if announces_servers {
                shard.direct_addr()
            } else {
                shard.addr()
            };
            assert_eq!((ip.as_str(), *port), ("127.0.0.1", addr.port()));
            assert_ne!(shard.addr(), shard.direct_addr());
            let own = region.slots(number);
            assert_eq!((own[0].first, own[0].last), (*first, *last));
        }
        let shards = ask(&mut app, &["CLUSTER", "SHARDS"]).await.unwrap();
        let shards = format!("{shards:?}");
        for shard in region.shards() {
            let addr = if announces_servers {
                shard.direct_addr()
            } else {
                shard.addr()
            };
            assert!(shards.contains(&addr.port().to_string()), "{addr} in {shards}");
        }
        // A key of another node is answered with that node's announced address.
        let other = channels(&rig, "local")[2].clone();
        let moved = ask(&mut app, &["GET", &other])
            .await
            .expect_err("it is elsewhere");
        let addr = slots[2].2.1;
        assert_eq!(
            moved.redirect_node().map(|(node, _)| node),
            Some(&*format!("127.0.0.1:{addr}"))
        );
        let status = rig.status().await;
        assert_eq!(status.regions[0].shards.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn like_clusters_count_once() {
    let rig = start(RigOptions::count(2).cluster([3])).await;
    counts_survive_cuts(rig, &["local", "remote"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unlike_clusters_count_once() {
    let rig = start(RigOptions::count(2).cluster([4, 3])).await;
    counts_survive_cuts(rig, &["local", "remote"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_cross_once_in_order_and_do_not_come_back() {
    const EACH: usize = 60;
    let rig = start(RigOptions::count(2).cluster([3])).await;
    let mut all = Vec::new();
    for verb in ["PUBLISH", "SPUBLISH"] {
        let subscribe = if verb == "PUBLISH" {
            "SUBSCRIBE"
        } else {
            "SSUBSCRIBE"
        };
        for channel in channels(&rig, "local") {
            let mut ears = [
                ear(&rig, "local", subscribe, &channel).await,
                ear(&rig, "remote", subscribe, &channel).await,
            ];
            for n in 0..EACH {
                for region in ["local", "remote"] {
                    publish(&rig, region, verb, &channel, &format!("{region}:{n}")).await;
                }
            }
            for (ear, here) in ears.iter_mut().zip(["local", "remote"]) {
                let mut heard = Vec::new();
                for _ in 0..2 * EACH {
                    heard.push(frame(ear).await[2].clone());
                }
                for from in ["local", "remote"] {
                    let of_one: Vec<&String> = heard.iter().filter(|one| one.starts_with(from)).collect();
                    let said: Vec<String> = (0..EACH).map(|n| format!("{from}:{n}")).collect();
                    assert_eq!(
                        of_one,
                        said.iter().collect::<Vec<_>>(),
                        "{verb} on {here}, of {from}"
                    );
                }
            }
            all.extend(ears);
        }
    }
    // Any node takes PUBLISH, not the channel's alone, and every node there hears it.
    let channel = "any-nodes";
    let mut ears = Vec::new();
    for shard in rig.region("remote").shards() {
        let mut raw = Raw::connect(shard.direct_addr()).await.unwrap();
        raw.say(&format!("SUBSCRIBE {channel}")).await;
        frame(&mut raw).await;
        ears.push(raw);
    }
    for (number, shard) in rig.region("local").shards().iter().enumerate() {
        shard
            .command(&["PUBLISH", channel, &number.to_string()])
            .await
            .unwrap();
        for ear in &mut ears {
            assert_eq!(frame(ear).await[2], number.to_string());
        }
    }
    all.extend(ears);
    tokio::time::sleep(SILENCE).await;
    for ear in &mut all {
        let more = ear.line(Duration::from_millis(1)).await.unwrap();
        assert_eq!(more, None, "nothing is heard twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_does_not_overtake_what_was_written_before_it() {
    const MEMBERS: usize = 1_000;
    let rig = start(RigOptions::count(2).cluster([2])).await;
    let channel = channels(&rig, "local")[1].clone();
    let key = format!("{{{channel}}}:set");
    let mut ear = ear(&rig, "remote", "SSUBSCRIBE", &channel).await;
    let local = rig.region("local");
    let mut app = local.shard(local.shard_of(&channel)).connection().await.unwrap();
    for round in 0..2 {
        let mut members = redis::cmd("SADD");
        members.arg(&key);
        for n in 0..MEMBERS {
            members.arg(format!("{n:02000}"));
        }
        members.query_async::<()>(&mut app).await.unwrap();
        converged(&rig).await;
        // A short command with a long effect: the message may be overheard before the stream has brought that.
        let mut both = redis::pipe();
        both.cmd("SPOP").arg(&key).arg(MEMBERS - 10).ignore();
        both.cmd("SPUBLISH").arg(&channel).arg(round).ignore();
        both.query_async::<()>(&mut app).await.unwrap();
        assert_eq!(frame(&mut ear).await[2], round.to_string());
        let left = rig.region("remote").command(&["SCARD", &key]).await;
        assert_eq!(
            left,
            Ok(Value::Int(10)),
            "what was written before the message is there"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_of_one_pair_of_nodes() {
    let rig = start(RigOptions::count(2).cluster([3, 2])).await;
    let cells = rig.cells();
    let mut ears = Vec::new();
    for &cell in &cells {
        ears.push(ear(&rig, "remote", "SSUBSCRIBE", &name_in(cell)).await);
    }
    rig.cut_link(("local", 1), ("remote", 1)).await.unwrap();
    let links = rig.links("local", "remote").unwrap();
    let cut: Vec<bool> = links.iter().map(|link| link.state == SyncerState::Cut).collect();
    assert_eq!(cut, [false, false, true, false]);
    for &cell in &cells {
        publish(&rig, "local", "SPUBLISH", &name_in(cell), "beat").await;
    }
    for (ear, _) in ears.iter_mut().zip(&cut).filter(|(_, cut)| !**cut) {
        assert_eq!(frame(ear).await[2], "beat");
    }
    assert_eq!(ears[2].line(SILENCE).await.unwrap(), None);
    rig.heal_link(("local", 1), ("remote", 1)).unwrap();
    assert_eq!(frame(&mut ears[2]).await[2], "beat", "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_all_comes_back_and_is_made_anew() {
    let rig = start(RigOptions::count(2).cluster([3])).await;
    let counters = ["local", "remote"].map(|region| Counter::start(&rig, region));
    more_counts(&rig, "remote", 2).await;
    rig.kill(("local", 2)).await.unwrap();
    let mut app = application(&rig, "local").await;
    ask(&mut app, &["SET", &channels(&rig, "local")[0], "1"])
        .await
        .expect("the others go on");
    rig.restart(("local", 2), Data::Fresh).await.unwrap();
    let mut counted = Vec::new();
    for counter in counters {
        counted.push(counter.stop().await);
    }
    rig.wait_converged(PATIENCE).await.unwrap();
    for n in 0..KEYS {
        let here = rig.region("local").command(&["GET", &key(n)]).await.unwrap();
        let there = rig.region("remote").command(&["GET", &key(n)]).await.unwrap();
        assert_eq!(here, there, "{}", key(n));
        let value: Option<u64> = redis::from_redis_value(here).unwrap();
        let all = counted
            .iter()
            .flat_map(|one| [one.sure.get(&key(n)), one.unknown.get(&key(n))]);
        let most: u64 = all.flatten().sum();
        assert!(
            value > Some(0) && value <= Some(most),
            "{} is {value:?} of {most}",
            key(n)
        );
    }
    // Its messages are heard again.
    let channel = channels(&rig, "local")[2].clone();
    let mut ear = ear(&rig, "remote", "SSUBSCRIBE", &channel).await;
    publish(&rig, "local", "SPUBLISH", &channel, "back").await;
    assert_eq!(frame(&mut ear).await[2], "back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_own_faults() {
    let rig = start(RigOptions::count(2).cluster([2]).password("secret")).await;
    let channels = channels(&rig, "local");
    let write = async |at: usize| rig.region("local").command(&["SET", &channels[at], "x"]).await;
    rig.stale_min_replicas(("local", 1)).await.unwrap();
    assert_eq!(write(1).await.expect_err("refused").code(), Some("NOREPLICAS"));
    write(0).await.unwrap();
    // What comes in is applied all the same.
    rig.region("remote")
        .command(&["SET", &channels[1], "there"])
        .await
        .unwrap();
    converged(&rig).await;
    let here = rig.region("local").command(&["GET", &channels[1]]).await;
    assert_eq!(here, Ok(Value::BulkString(b"there".into())));
    rig.unstale("local").await.unwrap();
    rig.out_of_memory(("local", 0)).await.unwrap();
    assert_eq!(write(0).await.expect_err("refused").code(), Some("OOM"));
    write(1).await.unwrap();
    rig.region("remote")
        .command(&["SET", &channels[0], "there"])
        .await
        .unwrap();
    converged(&rig).await;
    let error = rig
        .stale_outbound("local")
        .await
        .expect_err("a node follows nobody");
    assert!(format!("{error:#}").contains("cluster"), "{error:#}");
    rig.loading(("local", 1), Duration::from_secs(20)).await.unwrap();
    let ping = rig
        .region("local")
        .shard(1)
        .command(&["PING"])
        .await
        .expect_err("it loads");
    assert_eq!(ping.code(), Some("LOADING"));
    assert_eq!(
        write(1).await.expect_err("it takes no part yet").code(),
        Some("CLUSTERDOWN")
    );
    rig.restart(("local", 1), Data::Fresh).await.unwrap();
    rig.heal("local").await.unwrap();
    converged(&rig).await;
    write(0).await.unwrap();
    write(1).await.unwrap();
}
