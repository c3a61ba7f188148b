//! The long run: ordinary life for thousands of hours, to count false alarms and missed faults of each profile.
//!
//! The other worlds are chaos, and ask what must never happen. These are a WAN on ordinary days, with the profiles' own
//! numbers, and ask how often the engine is wrong and how long it takes to be right. The truth is known, so both are
//! counted and not estimated. Conditions and results stand in `docs/detection.md`:
//!
//! | variable | what for |
//! |---|---|
//! | `PULSEGATE_SIM_HOURS=N` | so many hours of each profile instead of a few |
//! | `PULSEGATE_SIM_PROFILES=fast,patient` | these profiles only |
//! | `PULSEGATE_SIM_MINUTES=N` | no new world of a profile after so many minutes: what was lived by then is shown |
//! | `RENEW_DETECTION_DOCS=1` | write the page's tables anew |

mod conditions;
mod count;
mod fault;
mod life;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use count::{Alarm, Tally};
use life::{Life, Terms};

use super::{base, number, threads};
use crate::config::{self, Flags, Sources};

const PROFILES: [&str; 3] = ["fast", "balanced", "patient"];
/// Hours of each profile in the ordinary test run.
const HOURS: u64 = 8;
/// The worlds that they are spread over, at least: every shape is among them.
const WORLDS: u64 = 10;
/// No world lives longer than this.
const LIFE: u64 = 20;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/detection.md");

/// `hours` of `profile`, on every processor.
fn run(profile: &str, hours: u64) -> Tally {
    let flags = Flags {
        replicas: vec![
            "a=redis://127.0.0.1:1".to_owned(),
            "b=redis://127.0.0.1:2".to_owned(),
        ],
        profile: Some(profile.to_owned()),
        ..Flags::default()
    };
    let config = config::load(&Sources {
        flags,
        ..Sources::default()
    });
    let config = config.unwrap_or_else(|problems| panic!("{problems}")).config;
    let terms = Terms {
        policy: &config.policy,
        answer_timeout: config
            .upstream
            .connect_timeout
            .min(config.policy.heartbeat_timeout),
    };
    let worlds = WORLDS.max(hours.div_ceil(LIFE));
    let each = Duration::from_secs(hours * 3600) / u32::try_from(worlds).unwrap_or(u32::MAX);
    let jitter = conditions::jitter();
    let next = AtomicU64::new(0);
    let began = base();
    let patience =
        number("PULSEGATE_SIM_MINUTES").map_or(Duration::MAX, |minutes| Duration::from_secs(minutes * 60));
    let total: Mutex<Tally> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= worlds || base().saturating_duration_since(began) >= patience {
                        break;
                    }
                    let tally = Life::live(seed, each, &terms, &jitter, base());
                    total.lock().expect("nobody panics with it").add(seed, tally);
                }
            });
        }
    });
    total.into_inner().expect("every thread ended well")
}

/// Replaces what stands between the page's marks of `part`.
fn renewed(page: &str, part: &str, with: &str) -> String {
    let (begin, end) = marks(part);
    let (before, rest) = page.split_once(&begin).expect("where the part begins");
    let (_, after) = rest.split_once(&end).expect("where the part ends");
    format!("{before}{begin}{with}{end}{after}")
}

fn marks(part: &str) -> (String, String) {
    (
        format!("<!-- {part}: written by the run -->\n"),
        format!("<!-- end of {part} -->\n"),
    )
}

#[test]
fn no_fault_is_missed_and_nothing_is_called_without_one() {
    let hours = number("PULSEGATE_SIM_HOURS").unwrap_or(HOURS);
    let only = std::env::var("PULSEGATE_SIM_PROFILES").unwrap_or_else(|_| PROFILES.join(","));
    let renew = std::env::var_os("RENEW_DETECTION_DOCS").is_some();
    let mut wrong = Vec::new();
    for profile in PROFILES
        .iter()
        .filter(|profile| only.split(',').any(|word| word == **profile))
    {
        let tally = run(profile, hours);
        let table = tally.table(profile);
        eprintln!("{table}\n{} calls", tally.calls);
        for example in tally.stories.iter().chain(&tally.examples) {
            eprintln!("{profile} {example}");
        }
        if renew {
            let page = std::fs::read_to_string(PAGE).expect("the page");
            std::fs::write(PAGE, renewed(&page, profile, &table)).expect("the page");
        }
        let [alarms @ .., _] = Alarm::ALL.map(|alarm| tally.alarms_of(alarm));
        if tally.missed() > 0 || alarms != [0; 5] {
            wrong.push((profile, alarms, tally.missed()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn the_page_states_the_conditions() {
    let page = std::fs::read_to_string(PAGE).expect("the page");
    let renewed = renewed(&page, "conditions", &conditions::table());
    if std::env::var_os("RENEW_DETECTION_DOCS").is_some() {
        std::fs::write(PAGE, renewed).expect("the page");
    } else {
        assert!(
            page == renewed,
            "docs/detection.md is out of date: RENEW_DETECTION_DOCS=1 renews it"
        );
    }
}
