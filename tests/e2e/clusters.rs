//! One shard of a cluster fails, hangs, loses a link or gives slots away: what applications see of it, who count exactly,
//! and where the traffic goes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pulsegate::resp::{encode_command, slot};
use rig::{Data, Rig, RigOptions, SlotRange};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::sharded::{CLIENTS, KEYS, SETTLE, wait_heard};
use crate::support::{App, Load, PATIENCE, Seen, Sidecar, replicas, tokens_once};
use crate::witness::{events, link, links_down, switches, text, wait_well};

/// Back as soon as it is proved.
const IMMEDIATE: &str = "[failback]\nmode = \"immediate\"\ngrace = \"1s\"\n[failover]\ndwell = \"1s\"\n";

/// Back in steps, reads first.
const STAGED: &str = "[failback]\nmode = \"staged\"\ngrace = \"1s\"\nread_steps = [50, 100]\nsoak = \"500ms\"\n\
                      [failover]\ndwell = \"1s\"\n";

/// Two regions of three nodes each, all well; a shard that fails is waited for so long.
async fn two_clusters(shard_grace: &str, toml: &str) -> (Rig, Sidecar) {
    let rig = Rig::start(RigOptions::count(2).cluster([3]))
        .await
        .expect("the rig starts");
    let detection = format!("[detection]\nprofile = \"fast\"\nshard_grace = \"{shard_grace}\"\n");
    let sidecar = Sidecar::configured(&(detection + &replicas(&rig)), toml, None).await;
    wait_well(&sidecar, &[3, 3]).await;
    (rig, sidecar)
}

/// The applications' counters, by key.
type Counters = HashMap<String, Counter>;

/// What an application knows of a counter.
#[derive(Clone, Copy, Default, Debug)]
struct Counter {
    /// Increments that were acknowledged.
    acked: u64,
    /// Increments that may have been carried out.
    unknown: u64,
    /// What the last reply said.
    last: u64,
}

/// What applications saw that count on all shards, in pipelines.
#[derive(Default, Debug)]
struct Counted {
    counters: Counters,
    /// Error replies but for unknown outcomes, and connections that were closed.
    errors: Vec<String>,
    /// Replies that did not count on from the one before.
    disorder: Vec<String>,
}

/// Applications that count, until told to stop.
struct Counting {
    stop: Arc<AtomicBool>,
    applications: JoinSet<Counted>,
}

impl Counting {
    fn start(addr: SocketAddr) -> Counting {
        let stop = Arc::new(AtomicBool::new(false));
        let applications = (0..CLIENTS).map(|n| count(addr, n, Arc::clone(&stop))).collect();
        Counting { stop, applications }
    }

    /// The keys that are counted in.
    fn keys(application: usize) -> impl Iterator<Item = String> {
        KEYS.into_iter()
            .map(move |tag| format!("count:{application}:{tag}"))
    }

    async fn stop(self) -> Counted {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Counted::default();
        for seen in self.applications.join_all().await {
            all.counters.extend(seen.counters);
            all.errors.extend(seen.errors);
            all.disorder.extend(seen.disorder);
        }
        all
    }
}

async fn count(addr: SocketAddr, number: usize, stop: Arc<AtomicBool>) -> Counted {
    let mut app = App::connect(addr).await;
    let mut seen = Counted::default();
    while !stop.load(Ordering::Relaxed) && seen.errors.is_empty() {
        // Each twice in one pipeline, so that an order that is not kept shows.
        let keys: Vec<String> = Counting::keys(number).chain(Counting::keys(number)).collect();
        let commands = keys.iter().map(|key| encode_command(&[b"INCR", key.as_bytes()]));
        app.send(&commands.collect::<Vec<_>>().concat()).await;
        for key in keys {
            let counter = seen.counters.entry(key.clone()).or_default();
            let reply = app.try_hear(PATIENCE).await;
            match reply.as_deref().map(|reply| reply.trim_end().split_at(1)) {
                Ok((":", value)) => {
                    let value = value.parse().expect("a number");
                    counter.acked += 1;
                    let expected = counter.last + 1..=counter.acked + counter.unknown;
                    if !expected.contains(&value) {
                        seen.disorder.push(format!("{key}: {value}, not {expected:?}"));
                    }
                    counter.last = value;
                }
                Ok(("-", words)) if words.starts_with("OUTCOMEUNKNOWN") => counter.unknown += 1,
                other => seen.errors.push(format!("{key}: {other:?}")),
            }
        }
        // A steady application, not a saturating one.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    seen
}

impl Counted {
    /// Every increment that was acknowledged is on `region`, and none is there twice.
    async fn is_exact(&self, rig: &Rig, region: &str) {
        assert!(self.errors.is_empty(), "{:?}", self.errors);
        assert_eq!(self.counters.len(), CLIENTS * KEYS.len());
        for (key, counter) in &self.counters {
            let value = rig.region(region).command(&["GET", key]).await;
            let value: u64 = redis::from_redis_value(value.expect("it answers")).expect("a number");
            let possible = counter.acked..=counter.acked + counter.unknown;
            assert!(
                counter.acked > 0 && possible.contains(&value),
                "{key}: {value}, {counter:?}"
            );
        }
    }

    /// As [`is_exact`](Self::is_exact), and nobody noticed anything: no outcome is unknown, and each counter counted on.
    async fn is_undisturbed(&self, rig: &Rig, region: &str) {
        self.is_exact(rig, region).await;
        assert!(self.disorder.is_empty(), "{:?}", self.disorder);
        let unknown: u64 = self.counters.values().map(|counter| counter.unknown).sum();
        assert_eq!(unknown, 0);
    }
}

/// Listeners of every kind, on every shard; and one that listens on all of them.
struct Listeners {
    each: Vec<(&'static str, String, App)>,
    of_all: App,
}

impl Listeners {
    async fn start(addr: SocketAddr) -> Listeners {
        let mut each = Vec::new();
        let mut of_all = App::connect(addr).await;
        for key in KEYS {
            let confirmed = of_all.ask(&["SSUBSCRIBE", key]).await;
            assert!(confirmed.contains("ssubscribe"), "{confirmed}");
            for (subscribe, channel, publish) in [
                ("SUBSCRIBE", key.to_owned(), "PUBLISH"),
                ("PSUBSCRIBE", format!("{key}*"), "PUBLISH"),
                ("SSUBSCRIBE", key.to_owned(), "SPUBLISH"),
            ] {
                let mut app = App::connect(addr).await;
                let confirmed = app.ask(&[subscribe, &channel]).await;
                assert!(confirmed.contains(&subscribe.to_lowercase()), "{confirmed}");
                each.push((publish, key.to_owned(), app));
            }
        }
        Listeners { each, of_all }
    }

    /// All of them hear what is published now, on the connections that they have.
    async fn hear(&mut self, addr: SocketAddr) {
        let mut speaker = App::connect(addr).await;
        for (publish, channel, app) in &mut self.each {
            wait_heard(&mut speaker, publish, channel, app).await;
        }
        for key in KEYS {
            wait_heard(&mut speaker, "SPUBLISH", key, &mut self.of_all).await;
        }
    }
}

/// No connection closed, and so many outcomes unknown at most: one for each connection and loss.
fn survived(seen: &Seen, losses: usize) {
    println!(
        "longest gap {:?}, {} replies, errors {:?}",
        seen.gap, seen.replies, seen.errors
    );
    assert_eq!(seen.closed, 0, "{:?}", seen.errors);
    let only_unknown = |(code, n): (&String, &usize)| code == "OUTCOMEUNKNOWN" && *n <= CLIENTS * losses;
    assert!(seen.errors.iter().all(only_unknown), "{:?}", seen.errors);
}

/// The switches so far, each as where it went and why.
fn moves(status: &Value) -> Vec<(&str, &str)> {
    let moves = switches(status).iter();
    moves
        .map(|switch| (text(&switch["to"]), text(&switch["reason"])))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_back_within_its_grace_is_waited_for() {
    let (rig, sidecar) = two_clusters("20s", "[hold]\ntimeout = \"20s\"\n").await;
    let mut listeners = Listeners::start(sidecar.addr).await;
    let (counting, load) = (Counting::start(sidecar.addr), Load::start(sidecar.addr, CLIENTS));
    tokio::time::sleep(SETTLE).await;
    rig.restart(("local", 1), Data::Keep).await.unwrap();
    wait_well(&sidecar, &[3, 3]).await;
    listeners.hear(sidecar.addr).await;
    let counted = counting.stop().await;
    survived(&load.stop().await, 1);
    assert!(counted.disorder.is_empty(), "{:?}", counted.disorder);
    counted.is_exact(&rig, "local").await;
    tokens_once(&rig, "local", CLIENTS).await;
    let status = sidecar.status().await;
    assert_eq!(moves(&status), [], "it was waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_stays_away_takes_the_whole_replica_with_it_and_brings_it_back() {
    let (rig, sidecar) = two_clusters("1s", IMMEDIATE).await;
    let mut listeners = Listeners::start(sidecar.addr).await;
    let load = Load::start(sidecar.addr, CLIENTS);
    tokio::time::sleep(SETTLE).await;
    rig.kill(("local", 1)).await.unwrap();
    sidecar.wait_active("remote").await;
    listeners.hear(sidecar.addr).await;
    let status = sidecar.status().await;
    assert!(
        matches!(
            moves(&status)[..],
            [("remote", "unwritable" | "refused" | "silent")]
        ),
        "{status:#}"
    );
    rig.restart(("local", 1), Data::Fresh).await.unwrap();
    sidecar.wait_active("local").await;
    tokio::time::sleep(SETTLE).await;
    listeners.hear(sidecar.addr).await;
    survived(&load.stop().await, 1);
    let status = sidecar.status().await;
    assert_eq!(moves(&status).len(), 2, "there and back: {status:#}");
    rig.wait_converged(PATIENCE).await.unwrap();
    for region in ["local", "remote"] {
        assert!(tokens_once(&rig, region, CLIENTS).await > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_hangs_is_left_and_come_back_to_in_steps() {
    let (rig, sidecar) = two_clusters("1s", STAGED).await;
    let counting = Counting::start(sidecar.addr);
    tokio::time::sleep(SETTLE).await;
    rig.hang(("local", 2)).await.unwrap();
    sidecar.wait_active("remote").await;
    tokio::time::sleep(SETTLE).await;
    // What was sent to it is carried out now, once.
    rig.unhang(("local", 2)).await.unwrap();
    sidecar.wait_active("local").await;
    tokio::time::sleep(SETTLE).await;
    let counted = counting.stop().await;
    let status = sidecar.status().await;
    assert_eq!(moves(&status).len(), 2, "there and back: {status:#}");
    let steps = events(&sidecar).await;
    let reads = steps
        .iter()
        .filter(|event| event["kind"] == "failback" && event["details"]["step"] == "reads");
    assert!(reads.count() > 0, "reads first: {steps:#?}");
    rig.wait_converged(PATIENCE).await.unwrap();
    for region in ["local", "remote"] {
        counted.is_exact(&rig, region).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shards_broken_link_is_named_and_slots_that_move_are_followed() {
    let (rig, sidecar) = two_clusters("2s", "").await;
    let counting = Counting::start(sidecar.addr);
    rig.cut_link(("local", 1), ("remote", 1)).await.unwrap();
    let broken = link("local", 1, "remote", 1);
    sidecar
        .wait("the link's name", |s| {
            let named = s["faults"].as_array().expect("faults").iter().any(|fault| {
                fault["kind"] == "link"
                    && (&fault["replica"], &fault["to"]) == (&"local".into(), &"remote".into())
                    && fault["shard"] == 1
            });
            named && links_down(s).into_iter().eq([broken.clone()])
        })
        .await;
    rig.heal_link("local", "remote").unwrap();
    wait_well(&sidecar, &[3, 3]).await;
    // Slots that are counted in, to the next node and to the one after it.
    for _ in 0..2 {
        for key in (0..3).flat_map(Counting::keys) {
            let first = slot(key.as_bytes());
            let slots = SlotRange { first, last: first };
            let to = (rig.region("local").shard_of(&key) + 1) % 3;
            rig.move_slots("local", slots, to).await.unwrap();
        }
    }
    let counted = counting.stop().await;
    counted.is_undisturbed(&rig, "local").await;
    let status = sidecar.status().await;
    assert_eq!(moves(&status), [], "no reason to leave");
}
