//! What a sidecar says of its replicas, read out of `/status` and `/events`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::support::Sidecar;

/// Milliseconds since 1970, as `/status` and `/events` count them.
#[expect(clippy::disallowed_methods, reason = "published times are of the wall clock")]
pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_millis()).expect("a time of today")
}

/// A link between two replicas, or of a replica to itself: from, shard, to, shard.
pub(crate) type Link = (String, u64, String, u64);

/// One link's name.
pub(crate) fn link(from: &str, shard: u64, to: &str, to_shard: u64) -> Link {
    (from.to_owned(), shard, to.to_owned(), to_shard)
}

/// Every link and whether it is up, own echoes among them.
pub(crate) fn links(status: &Value) -> impl Iterator<Item = (Link, bool)> {
    let replicas = status["replicas"].as_array().into_iter().flatten();
    replicas.flat_map(|replica| {
        let from = text(&replica["name"]);
        let links = replica["links"].as_array().into_iter().flatten();
        links.map(move |link| {
            let shard = |key: &str| link[key].as_u64().expect("a shard");
            let name = (
                from.to_owned(),
                shard("shard"),
                text(&link["to"]).to_owned(),
                shard("to_shard"),
            );
            (name, link["up"] == true)
        })
    })
}

/// The links that are down.
pub(crate) fn links_down(status: &Value) -> BTreeSet<Link> {
    links(status)
        .filter(|(_, up)| !up)
        .map(|(link, _)| link)
        .collect()
}

/// The replica of that name.
pub(crate) fn replica<'a>(status: &'a Value, name: &str) -> &'a Value {
    let replicas = status["replicas"].as_array().expect("replicas");
    let found = replicas.iter().find(|replica| replica["name"] == name);
    found.expect("a replica of that name")
}

/// Whether every replica is healthy and in sync, and every link up.
pub(crate) fn all_well(status: &Value) -> bool {
    let replicas = status["replicas"].as_array().expect("replicas");
    let well = |replica: &Value| replica["health"] == "healthy" && replica["fitness"] == "in_sync";
    replicas.iter().all(well) && links_down(status).is_empty()
}

/// Waits until everything is well, with so many shards a replica.
pub(crate) async fn wait_well(sidecar: &Sidecar, shards: &[usize]) -> Duration {
    let divided = |status: &Value| {
        let replicas = status["replicas"].as_array().expect("replicas");
        let known = replicas
            .iter()
            .map(|replica| replica["shards"].as_array().map_or(0, Vec::len));
        known.eq(shards.iter().copied())
    };
    sidecar
        .wait("all well", |status| all_well(status) && divided(status))
        .await
}

/// What is not as it should be, in words: the replicas' states, then what of replication is named as broken, with the
/// shards when those are not all.
pub(crate) fn says(status: &Value) -> String {
    let mut said = Vec::new();
    for replica in status["replicas"].as_array().expect("replicas") {
        let [name, health, fitness] = ["name", "health", "fitness"].map(|key| text(&replica[key]));
        match (health, fitness) {
            ("healthy", "in_sync") => {}
            ("down" | "unknown", _) => said.push(format!("{name} {health}")),
            ("healthy", fitness) => said.push(format!("{name} {fitness}")),
            (health, "in_sync") => said.push(format!("{name} {health}")),
            (health, fitness) => said.push(format!("{name} {health}, {fitness}")),
        }
    }
    said.extend(named(status));
    if said.is_empty() {
        "all well".to_owned()
    } else {
        said.join("; ")
    }
}

/// The entries of `faults`, those that differ only in their shard as one.
fn named(status: &Value) -> impl Iterator<Item = String> {
    let mut shards: BTreeMap<String, (usize, Vec<u64>)> = BTreeMap::new();
    for fault in status["faults"].as_array().expect("faults") {
        let name = text(&fault["replica"]);
        let what = match text(&fault["kind"]) {
            "link" => format!("{name} → {} broken", text(&fault["to"])),
            "writes" => format!("writes of {name} refused"),
            "echo" => format!("echo of {name} lost"),
            "isolated" => format!("{name} cut off"),
            direction => format!("{direction} of {name} broken"),
        };
        let all = replica(status, name)["shards"].as_array().map_or(0, Vec::len);
        let entry = shards.entry(what).or_insert((all, Vec::new()));
        entry.1.push(fault["shard"].as_u64().expect("a shard"));
    }
    shards.into_iter().map(|(what, (all, mut shards))| {
        shards.sort_unstable();
        match &shards[..] {
            whole if whole.len() == all => what,
            [one] => format!("{what} (shard {one})"),
            some => format!("{what} (shards {some:?})"),
        }
    })
}

/// The switches, the first route not among them, the oldest first.
pub(crate) fn switches(status: &Value) -> &[Value] {
    let all = status["last_switches"].as_array().expect("switches");
    match all.first() {
        Some(first) if first["reason"] == "startup" => &all[1..],
        _ => all,
    }
}

/// Every event so far, as far as the sidecar remembers.
pub(crate) async fn events(sidecar: &Sidecar) -> Vec<Value> {
    let text = sidecar.get("/events?recent=1000&follow=false").await;
    let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
    data.map(|data| serde_json::from_str(data).expect("an event"))
        .collect()
}

/// The text of a JSON string.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// Runs all of them, so many at once, begun in their order; what each came to, in that order too.
///
/// # Panics
/// When one has, once all are over: names each that did.
pub(crate) async fn together<T: Send + 'static>(
    at_once: usize,
    cases: impl IntoIterator<Item = (String, impl Future<Output = T> + Send + 'static)>,
) -> Vec<T> {
    let turns = Arc::new(Semaphore::new(at_once));
    let mut running: Vec<(String, JoinHandle<T>)> = Vec::new();
    for (name, case) in cases {
        let turn = Arc::clone(&turns).acquire_owned().await.expect("open");
        let case = tokio::spawn(async move {
            let _turn = turn;
            case.await
        });
        running.push((name, case));
    }
    let (mut results, mut failed) = (Vec::new(), Vec::new());
    for (name, case) in running {
        match case.await {
            Ok(result) => results.push(result),
            Err(_) => failed.push(name),
        }
    }
    assert!(failed.is_empty(), "failed, as told above: {}", failed.join(", "));
    results
}
