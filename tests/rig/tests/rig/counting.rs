//! Applications that count in many keys of all shards, and what every region must then have counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use rig::{Endpoint, Rig};
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, converged, eventually};

/// A client that goes where the servers send it (`MOVED`, `ASK`): to begin with, to the region's own address.
pub(crate) struct Follower {
    seed: SocketAddr,
    owners: BTreeMap<u16, SocketAddr>,
    connections: BTreeMap<SocketAddr, MultiplexedConnection>,
}

impl Follower {
    pub(crate) fn new(rig: &Rig, region: &str) -> Self {
        Self {
            seed: rig.region(region).addr(),
            owners: BTreeMap::new(),
            connections: BTreeMap::new(),
        }
    }

    /// A command whose second word is its key or channel.
    pub(crate) async fn ask(&mut self, words: &[&str]) -> RedisResult<Value> {
        let slot = rig::slot(words[1].as_bytes());
        let mut command = redis::Cmd::new();
        command.arg(words);
        let mut asking = None;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let addr = asking.or(self.owners.get(&slot).copied()).unwrap_or(self.seed);
            let mut connection = match self.connections.remove(&addr) {
                Some(open) => open,
                None => {
                    let url = format!("redis://{addr}");
                    Endpoint::from_url(&url).expect("a URL").connect(PATIENCE).await?
                }
            };
            let answer = if asking.take().is_some() {
                let both = redis::pipe()
                    .cmd("ASKING")
                    .ignore()
                    .add_command(command.clone())
                    .clone();
                both.query_async::<(Value,)>(&mut connection)
                    .await
                    .map(|(answer,)| answer)
            } else {
                command.query_async::<Value>(&mut connection).await
            };
            let error = match answer {
                Ok(answer) => {
                    self.connections.insert(addr, connection);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if error.code().is_some() {
                self.connections.insert(addr, connection);
            }
            let sent_to = error
                .redirect_node()
                .map(|(node, _)| node.parse().expect("an address"));
            match error.code() {
                _ if tokio::time::Instant::now() > deadline => return Err(error),
                Some("MOVED") => drop(self.owners.insert(slot, sent_to.expect("where to"))),
                Some("ASK") => asking = sent_to,
                Some("TRYAGAIN") => tokio::time::sleep(Duration::from_millis(1)).await,
                _ => return Err(error),
            }
        }
    }
}

pub(crate) const KEYS: usize = 200;

pub(crate) fn key(n: usize) -> String {
    format!("count:{}", n % KEYS)
}

/// Counts in many keys through the region's own address, and remembers how often, until told to stop. A command without
/// an answer is of unknown outcome.
pub(crate) struct Counter {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Counted>,
}

#[derive(Default)]
pub(crate) struct Counted {
    pub(crate) sure: BTreeMap<String, u64>,
    pub(crate) unknown: BTreeMap<String, u64>,
}

impl Counter {
    pub(crate) fn start(rig: &Rig, region: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut app, ended) = (Follower::new(rig, region), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut counted = Counted::default();
            for n in 0.. {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                match app.ask(&["INCR", &key(n)]).await {
                    Ok(_) => *counted.sure.entry(key(n)).or_default() += 1,
                    // Refused by whoever has not done it.
                    Err(error) if error.code().is_some() => {}
                    Err(_) => {
                        *counted.unknown.entry(key(n)).or_default() += 1;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            counted
        });
        Self { stop, task }
    }

    pub(crate) async fn stop(self) -> Counted {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the counter does not panic")
    }
}

/// Checks that every region has counted each key as often as was written, and those of unknown outcome at most once.
pub(crate) async fn counted_once(rig: &Rig, all: &[&Counted]) {
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

pub(crate) async fn count(rig: &Rig, region: &str) -> u64 {
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
pub(crate) async fn more_counts(rig: &Rig, region: &str, rounds: u64) {
    let now = count(rig, region).await;
    eventually("counts arrive", || async {
        count(rig, region).await >= now + rounds
    })
    .await;
}

/// The counts of both, written at once, through cuts of single links.
pub(crate) async fn counts_survive_cuts(rig: Rig, regions: &[&str]) {
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
    keys_are_at_home(&rig).await;
    for link in rig.links(regions[0], regions[1]).unwrap() {
        assert_eq!((link.failed, link.full_resyncs), (0, 0), "{link:?}");
        assert!(link.applied > 0, "{link:?}");
    }
}

/// Checks that every server holds its own keys and no others.
pub(crate) async fn keys_are_at_home(rig: &Rig) {
    for region in rig.regions() {
        for (number, shard) in region.shards().iter().enumerate() {
            let keys = shard.command(&["KEYS", "*"]).await.unwrap();
            for key in redis::from_redis_value::<Vec<String>>(keys).unwrap() {
                assert_eq!(region.shard_of(&key), number, "{}: {key}", region.name());
            }
        }
    }
}
