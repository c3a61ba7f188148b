//! Replication between regions of several shards, alike or not: each effect once, each link by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;
use rig::{Data, Endpoint, Rig, RigOptions, SlotRange, SyncerState};
use tokio::task::JoinHandle;

use crate::support::{Ear, PATIENCE, SILENCE, converged, eventually, start};

const KEYS: usize = 200;

fn key(n: usize) -> String {
    format!("count:{}", n % KEYS)
}

/// Counts in many keys through the region's own address, and remembers how often, until told to stop. A command without
/// an answer is of unknown outcome.
struct Counter {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Counted>,
}

#[derive(Default)]
struct Counted {
    sure: BTreeMap<String, u64>,
    unknown: BTreeMap<String, u64>,
}

impl Counter {
    fn start(rig: &Rig, region: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, ended) = (rig.region(region).url(), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let endpoint = Endpoint::from_url(&url).expect("a URL");
            let (mut counted, mut connection) = (Counted::default(), None);
            for n in 0.. {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let mut open: redis::aio::MultiplexedConnection = match connection.take() {
                    Some(open) => open,
                    None => match endpoint.connect(PATIENCE).await {
                        Ok(open) => open,
                        Err(_) => {
                            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                            continue;
                        }
                    },
                };
                let counts = redis::cmd("INCR").arg(key(n)).query_async::<u64>(&mut open).await;
                match counts {
                    Ok(_) => *counted.sure.entry(key(n)).or_default() += 1,
                    // Refused by whoever has not done it.
                    Err(error) if error.code().is_some() => {}
                    Err(_) => {
                        *counted.unknown.entry(key(n)).or_default() += 1;
                        continue;
                    }
                }
                connection = Some(open);
            }
            counted
        });
        Self { stop, task }
    }

    async fn stop(self) -> Counted {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the counter does not panic")
    }
}

/// Checks that every region has counted each key as often as was written, and those of unknown outcome at most once.
async fn counted_once(rig: &Rig, all: &[&Counted]) {
    let sum = |of: fn(&Counted) -> &BTreeMap<String, u64>, key: &str| -> u64 {
        all.iter().filter_map(|one| of(one).get(key)).sum()
    };
    let mut total = 0;
    for n in 0..KEYS {
        let mut seen = None;
        for region in rig.regions() {
            let value = region.command(&["GET", &key(n)]).await.unwrap();
            let value: Option<u64> = redis::from_redis_value(value).unwrap();
            let value = value.unwrap_or(0);
            let (sure, unknown) = (sum(|one| &one.sure, &key(n)), sum(|one| &one.unknown, &key(n)));
            let name = region.name();
            assert!(
                (sure..=sure + unknown).contains(&value),
                "{name}: {} is {value}, of {sure} and perhaps {unknown}",
                key(n)
            );
            assert_eq!(*seen.get_or_insert(value), value, "{name}: {} differs", key(n));
            total += value;
        }
    }
    assert!(total > 0, "somebody counts");
}

async fn count(rig: &Rig, region: &str) -> u64 {
    let value = rig
        .region(region)
        .command(&["GET", &key(0)])
        .await
        .unwrap_or(Value::Nil);
    redis::from_redis_value::<Option<u64>>(value)
        .unwrap_or(None)
        .unwrap_or(0)
}

/// Waits until so many more rounds through all keys were counted in the region, on its own clients' or others' account.
async fn more_counts(rig: &Rig, region: &str, rounds: u64) {
    let now = count(rig, region).await;
    eventually("counts arrive", || async {
        count(rig, region).await >= now + rounds
    })
    .await;
}

/// The counts of both, written at once, through cuts of single links.
async fn counts_survive_cuts(rig: Rig, regions: &[&str]) {
    let counters: Vec<Counter> = regions
        .iter()
        .map(|region| Counter::start(&rig, region))
        .collect();
    let links: Vec<_> = rig.links(regions[0], regions[1]).unwrap();
    for link in &links {
        let (from, to) = ((&*link.from, link.from_shard), (&*link.to, link.to_shard));
        rig.cut_link(from, to).await.unwrap();
        more_counts(&rig, regions[0], 1).await;
        rig.heal_link(from, to).unwrap();
    }
    for region in regions {
        more_counts(&rig, region, 3).await;
    }
    let mut counted = Vec::new();
    for counter in counters {
        counted.push(counter.stop().await);
    }
    converged(&rig).await;
    let counted: Vec<&Counted> = counted.iter().collect();
    assert!(
        counted.iter().all(|one| one.unknown.is_empty()),
        "no server was disturbed"
    );
    counted_once(&rig, &counted).await;
    for link in rig.links(regions[0], regions[1]).unwrap() {
        assert_eq!((link.failed, link.full_resyncs), (0, 0), "{link:?}");
        assert!(link.applied > 0, "{link:?}");
    }
}

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

/// A key or channel of these slots.
fn name_in(slots: SlotRange) -> String {
    (0..)
        .map(|n| format!("beat:{n}"))
        .find(|name| slots.contains(rig::slot(name.as_bytes())))
        .expect("there are names for every slot")
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
