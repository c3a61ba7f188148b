//! Failback: the proved return to the preferred replica.
//!
//! ```text
//!                      proof complete              whole grace           soak over           fence heard
//!   waiting for proof ───────────────▶ in grace ──────────────▶ on trial ───────────▶ moving ───────────▶ done
//!        ▲                               │                        │ reads, in steps     │
//!        └──── any break of the proof ───┴──── rolled back ───────┴──── called off ─────┘
//! ```
//!
//! Wanted only while the active is another replica, nothing is pinned, nothing moves, the policy says so, and no
//! operator chose the active: an operator's switch away from the preferred replica suspends it until an operator's
//! failback, pin or unpin, or until an automatic failover.
//!
//! The proof: healthy, not damped, in sync with every live replica, both ways with the active on every shard within
//! tolerance, writable on every shard, and called available by its cluster when a REST check is configured (see `rest`);
//! on trial also about as quick as the active. Any break starts the grace again, takes reads back, and calls a move
//! under way off; so do another active replica, and in the grace an own stall, in which nobody watched. A relapse soon
//! after a failback, one on trial, or a failback called off doubles the next grace (at most eight times); a stable stay
//! halves it again.
//!
//! The trial (`FailbackMode::Staged`): a growing share of the sessions reads from the preferred replica, all steps
//! equally long, together as long as the soak. See `reads` for the split.

use std::time::{Duration, Instant};

use super::engine::{Engine, Taking};
use super::event::{Event, FailbackStep, Fitness, Health, RestState, SwitchReason};
use super::health::Secs;
use super::links::{Pair, Path};
use super::moment::Moment;
use super::moves::Wish;
use super::policy::{FailbackMode, Policy};
use super::windows::BACKOFF_CAP;
use crate::replica::ReplicaId;

/// Where the return to the preferred replica stands.
#[derive(Clone, Debug)]
pub(super) struct Failback {
    /// In grace: the proof is complete since then.
    pub(super) proved_since: Option<Moment>,
    trial: Option<Trial>,
    /// How many graces long the next one is.
    pub(super) factor: u32,
    /// The newest return.
    done: Option<Moment>,
    /// An operator chose the active replica.
    pub(super) suspended: bool,
}

impl Default for Failback {
    fn default() -> Failback {
        Failback {
            proved_since: None,
            trial: None,
            factor: 1,
            done: None,
            suspended: false,
        }
    }
}

/// Reads on trial.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Position in `Policy::read_steps`.
    step: usize,
    /// When this step began.
    since: Moment,
}

impl Failback {
    /// Percent of the sessions that read from the preferred replica on trial; `None`: there is no trial.
    pub(super) fn read_percent(&self, policy: &Policy) -> Option<u8> {
        let trial = self.trial?;
        Some(policy.read_steps.get(trial.step).copied().unwrap_or(100).min(100))
    }

    /// Another replica is active, or the writes follow now.
    pub(super) fn end_trial(&mut self) {
        self.trial = None;
    }
}

/// What is missing from the proof.
#[derive(Clone, Copy, Debug)]
enum Missing {
    Health(Health),
    Damped(Duration),
    Fitness,
    Link(Path),
    LinkUnknown,
    Writes,
    Slower { by: Duration },
    Rest(RestState),
}

impl Missing {
    /// Whether an operator who asks for failback takes it upon himself.
    fn is_waived_by_an_operator(self) -> bool {
        matches!(self, Missing::Damped(_) | Missing::Rest(RestState::Unknown))
    }
}

impl Engine {
    /// How long the proof has to last now.
    pub(super) fn grace(&self) -> Duration {
        self.policy.grace.saturating_mul(self.failback.factor)
    }

    fn grace_ends(&self) -> Option<Instant> {
        let ends = self.failback.proved_since?.plus(self.grace());
        Some(self.dwell_ends().map_or(ends, |dwell| dwell.max(ends)))
    }

    fn step_ends(&self) -> Option<Instant> {
        let steps = u32::try_from(self.policy.read_steps.len()).unwrap_or(u32::MAX);
        Some(self.failback.trial?.since.plus(self.policy.soak / steps.max(1)))
    }

    /// When the grace, or the step of the trial, is over, while one runs.
    pub(super) fn failback_due(&self) -> Option<Instant> {
        self.grace_ends().or_else(|| self.step_ends())
    }

    /// Whether an automatic failback is to be worked towards.
    pub(super) fn failback_wanted(&self) -> bool {
        self.policy.failback != FailbackMode::Manual
            && self.active.is_some_and(|active| active != self.preferred)
            && self.pinned.is_none()
            && !self.failback.suspended
            && self.moving.is_none()
            && self.tilt.is_none()
    }

    /// Runs the grace and the trial, and begins the move at their end.
    pub(super) fn consider_failback(&mut self, now: Moment) {
        if !self.failback_wanted() {
            self.failback_unwanted(now);
            return;
        }
        let on_trial = self.failback.trial.is_some();
        let missing = self.missing(now).or_else(|| self.slower().filter(|_| on_trial));
        match (missing, self.failback.proved_since) {
            (Some(missing), _) if on_trial => {
                let why = self.missing_words(missing, now);
                self.roll_back(&why);
                self.failback.factor = (self.failback.factor * 2).min(BACKOFF_CAP);
            }
            (None, _) if on_trial => self.next_step(now),
            (Some(missing), Some(since)) => {
                self.failback.proved_since = None;
                let what = format!(
                    "grace reset after {} of {}: {}",
                    Secs(now.since(since)),
                    Secs(self.grace()),
                    self.missing_words(missing, now)
                );
                self.tell_failback(FailbackStep::Reset, what);
            }
            (Some(_), None) => {}
            (None, None) => {
                self.failback.proved_since = Some(now);
                let what = format!(
                    "grace of {} began: {} is healthy, writable, and in sync both ways",
                    Secs(self.grace()),
                    self.name(self.preferred)
                );
                self.tell_failback(FailbackStep::Grace, what);
                self.end_grace(now);
            }
            (None, Some(_)) => self.end_grace(now),
        }
    }

    /// What was begun is not wanted any more.
    fn failback_unwanted(&mut self, now: Moment) {
        if let Some(since) = self.failback.proved_since.take() {
            let what = format!("grace ended after {}: no longer wanted", Secs(now.since(since)));
            self.tell_failback(FailbackStep::Reset, what);
        }
        match &mut self.failback.trial {
            // Nobody watched: the step begins anew once somebody does.
            Some(trial) if self.tilt.is_some() && self.pinned.is_none() && !self.failback.suspended => {
                trial.since = now;
            }
            Some(_) => self.roll_back("no longer wanted"),
            None => {}
        }
    }

    fn roll_back(&mut self, why: &str) {
        self.failback.trial = None;
        let what = format!("reads are back with the active replica: {why}");
        self.tell_failback(FailbackStep::RolledBack, what);
    }

    fn end_grace(&mut self, now: Moment) {
        if self.grace_ends().is_none_or(|ends| now.awake < ends) {
            return;
        }
        let Some(since) = self.failback.proved_since.take() else {
            return;
        };
        let proved = format!(
            "{} was healthy, writable and in sync both ways for {} (grace {})",
            self.name(self.preferred),
            Secs(now.since(since)),
            Secs(self.grace())
        );
        if self.policy.failback == FailbackMode::Staged && !self.policy.soak.is_zero() {
            self.failback.trial = Some(Trial { step: 0, since: now });
            self.tell_step(&format!("grace over: {proved}"));
        } else {
            self.return_writes(proved, now);
        }
    }

    /// Goes on to the next step when the present one has lasted long enough.
    fn next_step(&mut self, now: Moment) {
        // The policy may have changed meanwhile.
        let staged = self.policy.failback == FailbackMode::Staged;
        if staged && self.step_ends().is_none_or(|ends| now.awake < ends) {
            return;
        }
        let last = self.policy.read_steps.len().saturating_sub(1);
        let Some(trial) = &mut self.failback.trial else {
            return;
        };
        if staged && trial.step < last {
            trial.step += 1;
            trial.since = now;
            self.tell_step("no relapse so far");
            return;
        }
        self.failback.trial = None;
        let proved = format!(
            "{} was proved for the grace of {} and had the reads for the soak of {}",
            self.name(self.preferred),
            Secs(self.grace()),
            Secs(self.policy.soak)
        );
        self.return_writes(proved, now);
    }

    fn tell_step(&mut self, why: &str) {
        let percent = self.failback.read_percent(&self.policy).unwrap_or(0);
        let what = format!("{percent} % of the sessions read from it: {why}");
        self.tell_failback(FailbackStep::Reads, what);
    }

    fn return_writes(&mut self, proved: String, now: Moment) {
        self.tell_failback(FailbackStep::Writes, format!("the writes follow: {proved}"));
        let wish = Wish {
            to: self.preferred,
            reason: SwitchReason::Failback,
            why: proved,
            asked: None,
        };
        self.start_move(wish, now);
    }

    fn tell_failback(&mut self, step: FailbackStep, what: String) {
        self.tell(Event::Failback {
            to: self.preferred,
            step,
            what,
        });
    }

    /// An operator's failback: the same proof, without the rest of the grace. In words what is missing, if anything is.
    pub(super) fn failback_refusal(&self, now: Moment) -> Option<String> {
        self.failback_broken(true, now)
    }

    /// Why a return under way has to be called off: its proof no longer holds. An operator who asked takes damping, and
    /// a REST check that cannot be made, upon himself.
    pub(super) fn failback_broken(&self, asked: bool, now: Moment) -> Option<String> {
        let missing = self
            .missing(now)
            .filter(|missing| !asked || !missing.is_waived_by_an_operator())?;
        let words = self.missing_words(missing, now);
        Some(format!("{} is not fit: {words}", self.name(self.preferred)))
    }

    fn missing(&self, now: Moment) -> Option<Missing> {
        let to = self.preferred;
        let active = self.active?;
        let state = &self.replicas[to.index()];
        if state.standing.health != Health::Healthy {
            return Some(Missing::Health(state.standing.health));
        }
        if state.reading.fitness != Fitness::InSync {
            return Some(Missing::Fitness);
        }
        if state.evidence.writable() != Some(true) {
            return Some(Missing::Writes);
        }
        // The replica to leave may be down (an operator's failback): then there is nobody to be in sync with.
        if self.replicas[active.index()].standing.health != Health::Down {
            match self.links.pair(active, to) {
                Pair::Good => {}
                Pair::Unknown => return Some(Missing::LinkUnknown),
                Pair::Bad(path) => return Some(Missing::Link(path)),
            }
        }
        // Before damping, which an operator may waive.
        if let Some(state) = self
            .rest_state(to, now)
            .filter(|state| *state != RestState::Available)
        {
            return Some(Missing::Rest(state));
        }
        self.damped(to, now).map(Missing::Damped)
    }

    /// By how much the preferred replica answers later than the active one, when that is too much.
    fn slower(&self) -> Option<Missing> {
        let answers_in = |id: ReplicaId| self.replicas[id.index()].evidence.round_trips.now();
        let by = answers_in(self.preferred)?.checked_sub(answers_in(self.active?)?)?;
        (by > self.policy.latency_margin).then_some(Missing::Slower { by })
    }

    fn missing_words(&self, missing: Missing, now: Moment) -> String {
        let state = &self.replicas[self.preferred.index()];
        match missing {
            Missing::Health(health) => format!("{health}, {}", state.standing.finding),
            Missing::Damped(left) => {
                format!("it went down repeatedly and is watched for {} more", Secs(left))
            }
            Missing::Fitness => {
                format!(
                    "{}, {}",
                    state.reading.fitness,
                    self.fitness_words(self.preferred, now)
                )
            }
            Missing::Link(path) => format!(
                "heartbeats from {} to {} ({}): {}",
                self.name(path.from),
                self.name(path.to),
                path.place(),
                self.link_words(path, now)
            ),
            Missing::LinkUnknown => "no heartbeat with the active on every shard yet".to_owned(),
            Missing::Slower { by } => format!(
                "it answers {} later than {} (margin {})",
                Secs(by),
                self.active.map_or("?", |active| self.name(active)),
                Secs(self.policy.latency_margin)
            ),
            Missing::Rest(state) => {
                format!("REST check {state}: {}", self.rest_words(self.preferred, now))
            }
            Missing::Writes => "no write probe has succeeded on every shard yet".to_owned(),
        }
    }

    /// Keeps the books of returns, relapses and operators' choices when the active changes.
    pub(super) fn failback_after_switch(&mut self, from: Option<ReplicaId>, taking: &Taking, now: Moment) {
        // In sync with the active is part of the proof, and this is another one.
        self.failback.proved_since = None;
        if taking.reason == SwitchReason::Failback {
            self.failback.done = Some(now);
            self.failback.suspended = false;
            return;
        }
        if taking.reason == SwitchReason::Operator {
            self.failback.suspended = taking.to != self.preferred;
            if self.failback.suspended && self.policy.failback != FailbackMode::Manual {
                let what = "suspended: an operator chose the active replica".to_owned();
                self.tell_failback(FailbackStep::Suspended, what);
            }
            return;
        }
        self.failback.suspended = false;
        if taking.automatic && from == Some(self.preferred) {
            self.relapse(now);
        }
    }

    /// The preferred replica had to be left: the next grace is longer when that came soon, shorter when it did not.
    fn relapse(&mut self, now: Moment) {
        let Some(done) = self.failback.done.take() else {
            return;
        };
        let probation = self.grace().saturating_mul(2).saturating_add(self.policy.dwell);
        let stable = now.since(done);
        if stable < probation {
            self.failback.factor = (self.failback.factor * 2).min(BACKOFF_CAP);
            return;
        }
        let halvings = stable.as_nanos() / probation.as_nanos().max(1);
        let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
        self.failback.factor = self.failback.factor.checked_shr(halvings).unwrap_or(1).max(1);
    }

    /// An automatic failback was called off.
    pub(super) fn failback_called_off(&mut self) {
        self.failback.factor = (self.failback.factor * 2).min(BACKOFF_CAP);
        let what = format!("called off; the next grace is {}", Secs(self.grace()));
        self.failback.proved_since = None;
        self.tell_failback(FailbackStep::CalledOff, what);
    }
}
