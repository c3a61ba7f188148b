//! What is counted, and how it is shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::fault::{Fault, Kind};

/// Examples kept of each kind of false alarm.
const EXAMPLES: usize = 3;
/// And of all worlds together.
const EXAMPLES_OF_ALL: usize = 40;

/// What the engine warned of though nothing was wrong there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Alarm {
    Down,
    Link,
    Unfit,
    /// A wrong name for what is broken.
    Named,
    Switch,
    /// Reported only, and no ground to leave; it keeps a failback waiting.
    Suspect,
}

impl Alarm {
    pub(super) const ALL: [Alarm; 6] = [
        Alarm::Down,
        Alarm::Link,
        Alarm::Unfit,
        Alarm::Named,
        Alarm::Switch,
        Alarm::Suspect,
    ];
}

/// Of one kind of fault.
#[derive(Clone, Default, Debug)]
pub(super) struct Called {
    pub(super) faults: u64,
    /// Of those that lasted long enough.
    pub(super) due: u64,
    pub(super) missed: u64,
    /// Called, but only after the bound.
    pub(super) late: u64,
    /// How long it took, in milliseconds.
    times: Vec<u32>,
    /// How long until the writes were elsewhere, of those that the active replica had.
    left: Vec<u32>,
    pub(super) not_left: u64,
}

/// Everything counted in some hours.
#[derive(Clone, Default, Debug)]
pub(super) struct Tally {
    pub(super) lived: Duration,
    pub(super) calls: u64,
    pub(super) beats: u64,
    pub(super) lost: u64,
    pub(super) stalls: u64,
    /// Alarms for what the network held up for longer than the tolerance, or than answers are waited for.
    pub(super) held_up: BTreeMap<Alarm, u64>,
    pub(super) called: BTreeMap<Kind, Called>,
    pub(super) alarms: BTreeMap<Alarm, u64>,
    pub(super) examples: Vec<String>,
    /// Of each fault that was missed.
    pub(super) stories: Vec<String>,
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

impl Tally {
    /// Takes a fault that is over.
    pub(super) fn close(&mut self, fault: &Fault, dwell: Duration) {
        let lasted = fault.end.unwrap_or_default().saturating_sub(fault.start);
        let called = self.called.entry(fault.kind).or_default();
        called.faults += 1;
        let due = lasted > fault.bound;
        called.due += u64::from(due);
        match fault.called {
            Some(at) => {
                let took = at - fault.start;
                called.late += u64::from(took > fault.bound);
                called.times.push(millis(took));
            }
            None if due => {
                called.missed += 1;
                self.stories.push(format!("missed: {fault:?}"));
            }
            None => {}
        }
        if fault.was_active && fault.kind.moves() {
            match fault.left {
                Some(at) => called.left.push(millis(at - fault.start)),
                None if lasted > fault.bound + dwell => {
                    called.not_left += 1;
                    self.stories.push(format!("not left: {fault:?}"));
                }
                None => {}
            }
        }
    }

    pub(super) fn false_alarm(&mut self, alarm: Alarm, story: impl FnOnce() -> String) {
        let count = self.alarms.entry(alarm).or_default();
        *count += 1;
        if *count <= EXAMPLES as u64 && alarm != Alarm::Suspect {
            self.examples.push(format!("{alarm:?}: {}", story()));
        }
    }

    pub(super) fn held_up(&mut self, alarm: Alarm) {
        *self.held_up.entry(alarm).or_default() += 1;
    }

    pub(super) fn add(&mut self, seed: u64, other: Tally) {
        self.lived += other.lived;
        self.calls += other.calls;
        self.beats += other.beats;
        self.lost += other.lost;
        self.stalls += other.stalls;
        for (kind, called) in other.called {
            let mine = self.called.entry(kind).or_default();
            mine.faults += called.faults;
            mine.due += called.due;
            mine.missed += called.missed;
            mine.late += called.late;
            mine.not_left += called.not_left;
            mine.times.extend(called.times);
            mine.left.extend(called.left);
        }
        for (mine, theirs) in [
            (&mut self.alarms, other.alarms),
            (&mut self.held_up, other.held_up),
        ] {
            for (alarm, count) in theirs {
                *mine.entry(alarm).or_default() += count;
            }
        }
        let told = other
            .stories
            .into_iter()
            .map(|story| format!("world {seed}, {story}"));
        self.stories.extend(told);
        let told = other
            .examples
            .into_iter()
            .map(|story| format!("world {seed}, {story}"));
        self.examples
            .extend(told.take(EXAMPLES_OF_ALL.saturating_sub(self.examples.len())));
    }

    pub(super) fn hours(&self) -> f64 {
        self.lived.as_secs_f64() / 3600.0
    }

    pub(super) fn alarms_of(&self, alarm: Alarm) -> u64 {
        self.alarms.get(&alarm).copied().unwrap_or(0)
    }

    /// Faults that were to be called, and were not, or that the writes stayed with.
    pub(super) fn missed(&self) -> u64 {
        self.called
            .values()
            .map(|called| called.missed + called.not_left)
            .sum()
    }

    /// For the page.
    pub(super) fn table(&self, profile: &str) -> String {
        let mut out = format!(
            "### `{profile}`\n\n{:.0} hours, {:.1} million heartbeats ({:.2} % lost), {} stalls of the sidecar long enough to be told.\n\n",
            self.hours(),
            self.beats as f64 / 1e6,
            self.lost as f64 * 100.0 / self.beats.max(1) as f64,
            self.stalls,
        );
        out.push_str("| | replica down | link down | unfit | wrong name | switch | suspect for a moment |\n|---|---|---|---|---|---|---|\n");
        for (what, counted) in [
            ("with nothing wrong", &self.alarms),
            ("held up by the network beyond a limit", &self.held_up),
        ] {
            let counts = Alarm::ALL.map(|alarm| counted.get(&alarm).copied().unwrap_or(0).to_string());
            let _ = writeln!(out, "| {what} | {} |", counts.join(" | "));
        }
        out.push('\n');
        out.push_str("| fault | called when | faults | over before the bound | missed | median | p99 | longest | writes elsewhere: median | p99 | longest |\n");
        out.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
        for (kind, called) in &self.called {
            let (what, when) = kind.words();
            let [median, p99, longest] = quantiles(&called.times);
            let left = if kind.moves() {
                quantiles(&called.left)
            } else {
                [const { String::new() }; 3]
            };
            let _ = writeln!(
                out,
                "| {what} | {when} | {} | {} | {} | {median} | {p99} | {longest} | {} |",
                called.faults,
                called.faults - called.due,
                called.missed + called.not_left,
                left.join(" | "),
            );
        }
        out
    }
}

/// Median, 99th percentile and longest, in words.
fn quantiles(times: &[u32]) -> [String; 3] {
    let mut times = times.to_vec();
    times.sort_unstable();
    [50, 99, 100].map(|percent| {
        let last = times.len().saturating_sub(1);
        times.get(last * percent / 100).map_or_else(
            || "–".to_owned(),
            |&time| format!("{:.2} s", f64::from(time) / 1000.0),
        )
    })
}
