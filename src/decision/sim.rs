//! The simulator: whole worlds from a seed, and the engine's decisions compared with the truth.

mod faults;
mod oracle;
mod rng;
mod run;
mod setup;
mod sidecar;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use run::Sim;

use super::event::SwitchReason;

/// Worlds in the ordinary test run.
const SEEDS: u64 = 256;
/// Calls of chaos in each; the calm after it comes on top.
const STEPS: u64 = 3_000;

/// Some moment: the worlds only ever use differences to it.
#[expect(
    clippy::disallowed_methods,
    reason = "an `Instant` cannot be made from nothing; its value does not matter"
)]
fn base() -> Instant {
    Instant::now()
}

fn chosen_seed() -> Option<u64> {
    let words = std::env::var("PULSEGATE_SIM_SEED").ok()?;
    Some(words.parse().expect("PULSEGATE_SIM_SEED is a number"))
}

#[test]
fn every_world_keeps_the_promises_and_every_rule_is_reached() {
    if let Some(seed) = chosen_seed() {
        let outcome = Sim::run(seed, STEPS, base(), true);
        eprintln!("seed {seed}: {outcome:?}");
        return;
    }
    let next = AtomicU64::new(0);
    let total: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let (calls, lasted) = (AtomicU64::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    let outcome = Sim::run(seed, STEPS, base(), false);
                    let mut total = total.lock().expect("no other world failed");
                    for (what, count) in outcome.reached {
                        *total.entry(what).or_default() += count;
                    }
                    calls.fetch_add(outcome.calls, Ordering::Relaxed);
                    lasted.fetch_add(outcome.lasted.as_secs(), Ordering::Relaxed);
                }
            });
        }
    });
    let total = total.into_inner().expect("every world passed");
    eprintln!("{SEEDS} worlds, {calls:?} calls, {lasted:?} virtual seconds: {total:?}");
    let mut wanted: Vec<&str> = SwitchReason::ALL.iter().map(|reason| reason.word()).collect();
    wanted.extend(["tilt", "tilt over", "called off", "went on without"]);
    for what in wanted {
        assert!(total.contains_key(what), "no world reached {what}");
    }
}

#[test]
fn the_same_seed_gives_the_same_transcript() {
    for seed in [1, 7, 42] {
        let first = Sim::run(seed, 1_000, base(), false);
        let second = Sim::run(seed, 1_000, base(), false);
        assert_eq!(first, second, "seed {seed}");
    }
    let other = Sim::run(2, 1_000, base(), false);
    assert_ne!(other.fingerprint, Sim::run(3, 1_000, base(), false).fingerprint);
}
