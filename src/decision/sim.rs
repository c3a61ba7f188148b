//! The simulator: whole worlds from a seed, and the engine's decisions compared with the truth.
//!
//! ```text
//!   seed ─► Setup ─► World, the truth: replicas, links, stalls      ┌─► Oracle: its own books, and the promises
//!             │        ▲ faults                                     │        ▲ the truth
//!             └──────► Sim: one queue ─► sidecar model ─► inputs ───┴─► Subject: the engine, or a broken one
//! ```
//!
//! Each world has 3 000 calls of chaos; then all is mended, and the engine has to find its way home. The first property
//! that breaks ends the world and tells the property, the seed and the step, the last lines of the transcript, and the
//! command that replays it:
//!
//! | variable | what for |
//! |---|---|
//! | `PULSEGATE_SIM_SEED=N` | one world, with its whole transcript on stderr |
//! | `PULSEGATE_SIM_SEEDS=N` | so many worlds instead of 256 |
//! | `PULSEGATE_SIM_FIRST=N` | beginning with this seed |
//!
//! That it bites is a test too: [`subject::Sabotage`] breaks the engine at its seam in every way that a promise forbids,
//! and says which property has to catch it; `every_sabotage_is_caught` prints where each was caught.
//!
//! How often the engine is wrong on ordinary days, and how long it takes to be right, is counted in [`field`].
//!
//! What the worlds leave out: shards are probed by PING as one, nothing is heard twice or out of order (the monitor
//! drops that, and `decision::tests` shows that the engine would too), and two probes of one replica are not lost
//! within four probe time-outs while it is well, since nobody could tell that from a fault.

mod faults;
mod field;
mod oracle;
mod rng;
mod run;
mod setup;
mod sidecar;
mod subject;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use run::{Broken, Sim, Transcript};
use subject::Sabotage;

use super::event::SwitchReason;

/// Worlds in the ordinary test run.
const SEEDS: u64 = 256;
/// Worlds within which every sabotage has to be caught.
const SABOTAGED: u64 = 256;
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

/// So many at once.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(4))
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let words = std::env::var(name).ok()?;
    Some(
        words
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {words}")),
    )
}

#[test]
fn every_world_keeps_the_promises_and_every_rule_is_reached() {
    if let Some(seed) = number("PULSEGATE_SIM_SEED") {
        match Sim::run(seed, STEPS, base(), None, Transcript::Loud) {
            Ok(outcome) => eprintln!("seed {seed}: {outcome:?}"),
            Err(broken) => panic!("{broken}"),
        }
        return;
    }
    let first = number("PULSEGATE_SIM_FIRST").unwrap_or(0);
    let seeds = number("PULSEGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let total: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let broken: Mutex<Vec<Box<Broken>>> = Mutex::default();
    let (calls, lasted) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    match Sim::run(seed, STEPS, base(), None, Transcript::None) {
                        Ok(outcome) => {
                            let mut total = total.lock().expect("nobody panics with it");
                            for (what, count) in outcome.reached {
                                *total.entry(what).or_default() += count;
                            }
                            calls.fetch_add(outcome.calls, Ordering::Relaxed);
                            lasted.fetch_add(outcome.lasted.as_secs(), Ordering::Relaxed);
                        }
                        Err(found) => broken.lock().expect("nobody panics with it").push(found),
                    }
                }
            });
        }
    });
    let mut broken = broken.into_inner().expect("every thread ended well");
    broken.sort_by_key(|broken| broken.seed);
    for broken in &broken {
        eprintln!("seed {} step {}: {}", broken.seed, broken.step, broken.property);
    }
    if let Some(first) = broken.first() {
        let story =
            Sim::run(first.seed, STEPS, base(), None, Transcript::Kept).expect_err("the same world again");
        panic!(
            "{} of {seeds} worlds broke a promise; the first:\n{story}",
            broken.len()
        );
    }
    let total = total.into_inner().expect("every thread ended well");
    eprintln!("{seeds} worlds, {calls:?} calls, {lasted:?} virtual seconds: {total:?}");
    let mut wanted: Vec<&str> = SwitchReason::ALL.iter().map(|reason| reason.word()).collect();
    wanted.extend([
        "tilt",
        "tilt over",
        "called off",
        "reads elsewhere",
        "went on without",
        "restart",
        "relapse",
        "rolled back",
        "policy",
    ]);
    for what in wanted {
        assert!(total.contains_key(what), "no world reached {what}");
    }
}

/// The simulator bites: however the engine is broken by hand, the property that guards against it notices.
#[test]
fn every_sabotage_is_caught() {
    let missed: Mutex<Vec<String>> = Mutex::default();
    let next = AtomicUsize::new(0);
    let search = |sabotage: Sabotage| {
        let mut others: BTreeMap<String, u64> = BTreeMap::new();
        let caught = (0..SABOTAGED).find_map(|seed| {
            let broken = Sim::run(seed, STEPS, base(), Some(sabotage), Transcript::None).err()?;
            if broken.property.starts_with(sabotage.caught_by()) {
                return Some(broken);
            }
            let other = broken.property.split(':').next().unwrap_or_default();
            *others.entry(other.to_owned()).or_default() += 1;
            None
        });
        match caught {
            Some(broken) => eprintln!(
                "{sabotage:?}: seed {} step {}: {} (before: {others:?})",
                broken.seed, broken.step, broken.property
            ),
            None => missed.lock().expect("nobody panics with it").push(format!(
                "{sabotage:?} by {} (only {others:?})",
                sabotage.caught_by()
            )),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while let Some(&sabotage) = Sabotage::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    search(sabotage);
                }
            });
        }
    });
    let missed = missed.into_inner().expect("every thread ended well");
    assert!(
        missed.is_empty(),
        "not caught within {SABOTAGED} worlds: {missed:#?}"
    );
}

#[test]
fn the_same_seed_gives_the_same_transcript() {
    let run = |seed| {
        Sim::run(seed, 1_000, base(), None, Transcript::Kept).unwrap_or_else(|broken| panic!("{broken}"))
    };
    for seed in [1, 7, 42] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(2).fingerprint, run(3).fingerprint);
}
