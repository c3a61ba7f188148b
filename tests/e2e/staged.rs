//! The staged failback: never to a replica that is not fit, soon once it is, in steps that can be seen, and back at once
//! on a relapse.

use std::collections::BTreeMap;
use std::time::Duration;

use rig::Rig;
use serde_json::Value;

use crate::support::{Load, Sidecar, now, two_regions};
use crate::witness::{events, switches, text, together, wait_well};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Longer than the heartbeat time-out of the profile, so that no link can look whole that is not.
const GRACE: Duration = ms(1200);
const SOAK: Duration = ms(1500);
const TOML: &str = "[failback]\nmode = \"staged\"\ngrace = \"1200ms\"\nsoak = \"1500ms\"\nread_steps = [10, 50, 100]\n\
    [failover]\ndwell = \"500ms\"\n";

/// What keeps a replica that is back from being fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unfit {
    RefusesWrites,
    Loads,
    Lags,
    IsNotHeard,
    DoesNotHear,
}

impl Unfit {
    const ALL: [Unfit; 5] = [
        Unfit::RefusesWrites,
        Unfit::Loads,
        Unfit::Lags,
        Unfit::IsNotHeard,
        Unfit::DoesNotHear,
    ];

    async fn inflict(self, rig: &Rig) {
        match self {
            Unfit::RefusesWrites => rig.stale_min_replicas("local").await,
            Unfit::Loads => rig.loading("local", ms(6000)).await,
            Unfit::Lags => rig.delay_link("local", "remote", ms(800)),
            Unfit::IsNotHeard => rig.cut_link("local", "remote").await,
            Unfit::DoesNotHear => rig.cut_link("remote", "local").await,
        }
        .unwrap();
    }

    async fn mend(self, rig: &Rig) {
        match self {
            Unfit::RefusesWrites => rig.unstale("local").await.unwrap(),
            // It has ended by itself.
            Unfit::Loads => {}
            Unfit::Lags | Unfit::IsNotHeard => rig.heal_link("local", "remote").unwrap(),
            Unfit::DoesNotHear => rig.heal_link("remote", "local").unwrap(),
        }
    }

    /// Whether it goes on at this moment.
    async fn lasts(self, rig: &Rig, began: std::time::Instant) -> bool {
        match self {
            Unfit::Loads => rig.region("local").command(&["DBSIZE"]).await.is_err(),
            _ => began.elapsed() < GRACE * 4,
        }
    }
}

/// The traffic is on `remote`, since applications could not reach `local`.
async fn moved() -> (Rig, Sidecar) {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", TOML).await;
    wait_well(&sidecar, &[1, 1]).await;
    rig.cut("local").await.unwrap();
    sidecar.wait_active("remote").await;
    (rig, sidecar)
}

/// The shares of the reads, by replica.
fn read(status: &Value) -> BTreeMap<String, u64> {
    serde_json::from_value(status["read"].clone()).expect("shares")
}

fn all_on(replica: &str) -> BTreeMap<String, u64> {
    BTreeMap::from([(replica.to_owned(), 100)])
}

fn split(local: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("local".to_owned(), local), ("remote".to_owned(), 100 - local)])
}

/// The failback's events so far, each as its step and when it was told.
async fn steps(sidecar: &Sidecar) -> Vec<(String, u64)> {
    let all = events(sidecar).await;
    let failback = all.iter().filter(|event| event["kind"] == "failback");
    let step = |event: &Value| {
        let at = event["at"].as_u64().expect("a time");
        (text(&event["details"]["step"]).to_owned(), at)
    };
    failback.map(step).collect()
}

async fn counted(sidecar: &Sidecar, step: &str) -> usize {
    let value = sidecar
        .counter(&format!("pulsegate_failback_steps_total{{step=\"{step}\"}}"))
        .await;
    value as usize
}

async fn never_while_unfit(unfit: Unfit) {
    let (rig, sidecar) = moved().await;
    unfit.inflict(&rig).await;
    rig.heal_network("local").await.unwrap();
    let began = now();
    let known = steps(&sidecar).await.len();
    while unfit.lasts(&rig, began).await {
        let status = sidecar.status().await;
        if unfit == Unfit::Loads && rig.region("local").command(&["DBSIZE"]).await.is_ok() {
            break;
        }
        assert_eq!(status["active"], "remote", "{unfit:?}: {status:#}");
        assert_eq!(read(&status), all_on("remote"), "{unfit:?}: {status:#}");
        tokio::time::sleep(ms(20)).await;
    }
    assert!(
        began.elapsed() > GRACE * 3,
        "{unfit:?} lasted {:?}",
        began.elapsed()
    );
    if unfit != Unfit::Loads {
        let taken = steps(&sidecar).await.split_off(known);
        assert!(
            taken.iter().all(|(step, _)| step == "grace" || step == "reset"),
            "{unfit:?}: {taken:?}"
        );
    }
    unfit.mend(&rig).await;
    let mended = now();
    let mut shares = vec![all_on("remote")];
    loop {
        let status = sidecar.status().await;
        if shares.last() != Some(&read(&status)) {
            shares.push(read(&status));
        }
        if status["active"] == "local" && status["holding"] == false {
            break;
        }
        let limit = GRACE + SOAK + ms(2000);
        assert!(
            mended.elapsed() < limit,
            "{unfit:?}: not back within {limit:?}: {status:#}"
        );
        tokio::time::sleep(ms(5)).await;
    }
    println!("{unfit:?}: back {:?} after it was mended", mended.elapsed());
    shares.push(read(&sidecar.status().await));
    shares.dedup();
    // The writes' move holds everything, and there all reads are with the old replica for a moment.
    let in_steps = [all_on("remote"), split(10), split(50), all_on("local")];
    assert_eq!(shares[..4], in_steps, "{unfit:?}: {shares:?}");
    assert_eq!(shares.last(), Some(&all_on("local")), "{unfit:?}: {shares:?}");
    let told = steps(&sidecar).await;
    let told: Vec<&str> = told.iter().map(|(step, _)| step.as_str()).collect();
    assert!(
        told.ends_with(&["grace", "reads", "reads", "reads", "writes"]),
        "{unfit:?}: {told:?}"
    );
    for step in ["grace", "reset", "reads", "writes", "rolled_back", "called_off"] {
        let events = told.iter().filter(|told| **told == step).count();
        assert_eq!(
            counted(&sidecar, step).await,
            events,
            "{unfit:?}: {step} of {told:?}"
        );
    }
    let status = sidecar.status().await;
    let last = switches(&status).last().expect("a switch");
    assert_eq!(
        (&last["reason"], last["fence_ms"].is_number()),
        (&"failback".into(), true),
        "{last}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn never_back_to_an_unfit_replica_and_soon_to_a_mended_one() {
    together(
        Unfit::ALL.len(),
        Unfit::ALL.map(|unfit| (format!("{unfit:?}"), Box::pin(never_while_unfit(unfit)))),
    )
    .await;
}

/// What happens to the preferred replica while it has a part of the reads.
#[derive(Clone, Copy, Debug)]
enum Relapse {
    Killed,
    RefusesWrites,
    Lags,
}

async fn relapse(relapse: Relapse) {
    let (rig, sidecar) = moved().await;
    rig.heal_network("local").await.unwrap();
    let load = Load::start(sidecar.addr, 40);
    sidecar
        .wait("half of the reads", |status| read(status) == split(50))
        .await;
    let began = now();
    let within = match relapse {
        Relapse::Killed => {
            rig.kill("local").await.unwrap();
            ms(300)
        }
        Relapse::RefusesWrites => {
            rig.stale_min_replicas("local").await.unwrap();
            ms(700)
        }
        // It shows once the first late heartbeats arrive.
        Relapse::Lags => {
            rig.delay_link("remote", "local", ms(700)).unwrap();
            ms(1200)
        }
    };
    sidecar
        .wait("reads back", |status| read(status) == all_on("remote"))
        .await;
    let took = began.elapsed();
    println!("{relapse:?}: reads are back after {took:?}");
    assert!(took < within, "{relapse:?}: reads are back after {took:?}");
    let told = steps(&sidecar).await;
    assert_eq!(
        told.last().map(|(step, _)| step.as_str()),
        Some("rolled_back"),
        "{told:?}"
    );
    assert_eq!(counted(&sidecar, "rolled_back").await, 1);
    match relapse {
        Relapse::Killed => rig.restart("local", rig::Data::Fresh).await.unwrap(),
        Relapse::RefusesWrites => rig.unstale("local").await.unwrap(),
        Relapse::Lags => rig.heal_link("remote", "local").unwrap(),
    }
    sidecar.wait_active("local").await;
    let seen = load.stop().await;
    assert!(
        seen.errors.is_empty() && seen.closed == 0,
        "{relapse:?}: {seen:?}"
    );
    let told = steps(&sidecar).await;
    let [.., (grace, proved), (reads, trial), _, _, _] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((&grace[..], &reads[..]), ("grace", "reads"), "{told:?}");
    let next = Duration::from_millis(trial - proved);
    assert!(
        (GRACE * 2..GRACE * 3).contains(&next),
        "{relapse:?}: the next grace is {next:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relapse_takes_the_reads_back_without_an_error() {
    let all = [Relapse::Killed, Relapse::RefusesWrites, Relapse::Lags];
    together(
        all.len(),
        all.map(|kind| (format!("{kind:?}"), Box::pin(relapse(kind)))),
    )
    .await;
}
