//! Reads on another replica than the writes, for real: no session reads older than it wrote, through a whole failback
//! with slow replication, and near the nearest replica.

use std::time::Duration;

use rig::{Rig, RigOptions};

use crate::checker::{Checked, Checker};
use crate::support::{Sidecar, now, two_regions};
use crate::witness::{replica, switches, text, wait_well};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Replication takes so long, both ways.
const LAG: Duration = ms(200);

/// So many sessions check.
const SESSIONS: usize = 2000;

/// Reads that a replica has served, by its own count.
async fn served(rig: &Rig, region: &str) -> u64 {
    let stats = rig
        .region(region)
        .command(&["INFO", "commandstats"])
        .await
        .unwrap();
    let stats: String = redis::from_redis_value(stats).unwrap();
    let get = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_get:calls="));
    get.and_then(|line| line.split(',').next()?.parse().ok())
        .unwrap_or(0)
}

/// What the checker saw through a whole staged failback, how many reads the preferred replica served before it had the
/// writes, and the last switch.
async fn through_a_failback(read_your_writes: bool) -> (Checked, u64, serde_json::Value) {
    let rig = two_regions().await;
    let toml = format!(
        "[failback]\nmode = \"staged\"\ngrace = \"1200ms\"\nsoak = \"4s\"\nread_steps = [10, 50, 100]\n\
         read_your_writes = {read_your_writes}\n[failover]\ndwell = \"500ms\"\n"
    );
    let sidecar = Sidecar::start(&rig, "fast", &toml).await;
    wait_well(&sidecar, &[1, 1]).await;
    rig.cut("local").await.unwrap();
    sidecar.wait_active("remote").await;
    rig.delay_link("local", "remote", LAG).unwrap();
    rig.delay_link("remote", "local", LAG).unwrap();
    let checker = Checker::start(sidecar.addr, SESSIONS).await;
    rig.heal_network("local").await.unwrap();
    sidecar
        .wait("reads on trial", |status| status["read"]["local"] == 10)
        .await;
    let before = served(&rig, "local").await;
    sidecar
        .wait("all reads there", |status| status["read"]["local"] == 100)
        .await;
    tokio::time::sleep(ms(1000)).await;
    let there = served(&rig, "local").await - before;
    sidecar.wait_active("local").await;
    // Another round of all sessions.
    tokio::time::sleep(ms(1200)).await;
    let checked = checker.stop().await;
    let status = sidecar.status().await;
    let last = switches(&status).last().expect("a switch").clone();
    println!("{checked:?}; {there} reads on local before the writes were; {last}");
    assert_eq!(text(&last["reason"]), "failback");
    assert!(
        checked.writes > SESSIONS as u64 * 4,
        "the sessions wrote: {checked:?}"
    );
    assert!(there > SESSIONS as u64, "reads were elsewhere: {there}");
    (checked, there, last)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_over_slow_replication_shows_no_session_less_than_it_wrote() {
    let (checked, _, last) = through_a_failback(true).await;
    assert_eq!(checked.older, 0, "{checked:?}");
    assert_eq!(checked.errors, Vec::<String>::new());
    // The writes' move costs one pause: the fence's way, and a little.
    let fence = Duration::from_secs_f64(last["fence_ms"].as_f64().expect("fenced") / 1000.0);
    assert!((LAG..LAG + ms(150)).contains(&fence), "the fence took {fence:?}");
    assert!(
        (LAG..LAG + ms(300)).contains(&checked.longest),
        "the longest a command took: {:?}",
        checked.longest
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_guard_sessions_do_read_less_than_they_wrote() {
    let (checked, _, _) = through_a_failback(false).await;
    assert!(checked.older > 100, "the checker sees it: {checked:?}");
    assert_eq!(checked.errors, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_to_the_nearest_replica_as_long_as_it_keeps_up() {
    let rig = Rig::start(RigOptions::count(3)).await.expect("the rig starts");
    rig.delay("local", ms(30), ms(30)).await.unwrap();
    for other in ["remote", "third"] {
        rig.delay_link("local", other, ms(100)).unwrap();
    }
    let dwell = ms(1500);
    let toml =
        "[upstream]\nreads = \"nearest\"\n[failover]\ndwell = \"1500ms\"\n[failback]\nmode = \"manual\"\n";
    let began = now();
    let sidecar = Sidecar::start(&rig, "fast", toml).await;
    sidecar
        .wait("reads elsewhere", |status| status["read"]["local"].is_null())
        .await;
    assert!(
        began.elapsed() >= dwell,
        "after {:?}, the dwell is {dwell:?}",
        began.elapsed()
    );
    let status = sidecar.status().await;
    let read = status["read"].as_object().expect("shares").clone();
    let (nearest, share) = read.iter().next().expect("a share");
    assert_eq!(share, 100, "{status:#}");
    assert_eq!(status["active"], "local");
    let rtt = |name: &str| replica(&status, name)["rtt_ms"].as_f64().expect("measured");
    assert!(rtt(nearest) + 30.0 < rtt("local"), "{status:#}");

    let before = served(&rig, nearest).await;
    let checker = Checker::start(sidecar.addr, 200).await;
    tokio::time::sleep(ms(2500)).await;
    let there = served(&rig, nearest).await - before;
    assert!(there > 200, "{nearest} serves reads: {there}");

    // Neither of the others keeps up.
    let began = now();
    for other in ["remote", "third"] {
        rig.delay_link("local", other, ms(800)).unwrap();
    }
    let home = |status: &serde_json::Value| status["read"]["local"] == 100;
    sidecar.wait("reads at home", home).await;
    let took = began.elapsed();
    println!("nearest: {nearest}, {there} reads there; home {took:?} after it began to lag");
    assert!(took < ms(1500), "home after {took:?}");
    let end = now() + dwell + ms(500);
    while now() < end {
        let status = sidecar.status().await;
        assert!(home(&status), "{status:#}");
        tokio::time::sleep(ms(20)).await;
    }
    for other in ["remote", "third"] {
        rig.heal_link("local", other).unwrap();
    }
    sidecar
        .wait("reads elsewhere again", |status| {
            status["read"]["local"].is_null()
        })
        .await;
    let checked = checker.stop().await;
    assert_eq!((checked.older, &checked.errors[..]), (0, &[][..]), "{checked:?}");
    let status = sidecar.status().await;
    assert_eq!(status["active"], "local");
    assert!(switches(&status).is_empty(), "{status:#}");
}
