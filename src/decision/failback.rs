//! Failback: the proved return to the preferred replica.
//!
//! ```text
//!                      proof complete              whole grace          fence heard
//!   waiting for proof ───────────────▶ in grace ──────────────▶ moving ─────────────▶ done
//!        ▲                               │                        │
//!        └──── any break of the proof ───┴──── called off ────────┘
//! ```
//!
//! Wanted only while the active is another replica, nothing is pinned, nothing moves, the policy says so, and no
//! operator chose the active: an operator's switch away from the preferred replica suspends it until an operator's
//! failback, pin or unpin, or until an automatic failover.
//!
//! The proof: healthy, not damped, in sync with every live replica, both ways with the active on every shard within
//! tolerance, writable on every shard. Any break starts the grace again, and calls a move under way off; so do
//! another active replica, and an own stall, in which nobody watched. A relapse soon after a failback, or a failback
//! called off, doubles the next grace (at most eight times); a stable stay halves it again.
//!
//! A staged return of reads belongs between grace and move: its steps split [`Engine::read_split`] and come before the
//! fenced move of the writes.

use std::time::{Duration, Instant};

use super::engine::{Engine, Taking};
use super::event::{Event, Fitness, Health, SwitchReason};
use super::health::Secs;
use super::links::{Pair, Path};
use super::moment::Moment;
use super::moves::Wish;
use super::policy::FailbackMode;
use super::windows::BACKOFF_CAP;
use crate::replica::ReplicaId;

/// Where the return to the preferred replica stands.
#[derive(Clone, Debug)]
pub(super) struct Failback {
    /// The proof is complete since then.
    pub(super) proved_since: Option<Moment>,
    /// How many graces long the next one is.
    factor: u32,
    /// The newest return.
    done: Option<Moment>,
    /// An operator chose the active replica.
    pub(super) suspended: bool,
}

impl Default for Failback {
    fn default() -> Failback {
        Failback {
            proved_since: None,
            factor: 1,
            done: None,
            suspended: false,
        }
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
}

impl Engine {
    /// How long the proof has to last now.
    pub(super) fn grace(&self) -> Duration {
        self.policy.grace.saturating_mul(self.failback.factor)
    }

    /// When the grace is over, while it runs.
    pub(super) fn grace_ends(&self) -> Option<Instant> {
        let ends = self.failback.proved_since?.plus(self.grace());
        Some(self.dwell_ends().map_or(ends, |dwell| dwell.max(ends)))
    }

    /// Whether an automatic failback is to be worked towards.
    pub(super) fn failback_wanted(&self) -> bool {
        self.policy.failback == FailbackMode::Immediate
            && self.active.is_some_and(|active| active != self.preferred)
            && self.pinned.is_none()
            && !self.failback.suspended
            && self.moving.is_none()
            && self.tilt.is_none()
    }

    /// Runs the grace, and begins the move at its end.
    pub(super) fn consider_failback(&mut self, now: Moment) {
        if !self.failback_wanted() {
            if let Some(since) = self.failback.proved_since.take() {
                let what = format!("grace ended after {}: no longer wanted", Secs(now.since(since)));
                self.tell(Event::Failback {
                    to: self.preferred,
                    what,
                });
            }
            return;
        }
        match (self.missing(now), self.failback.proved_since) {
            (Some(missing), Some(since)) => {
                self.failback.proved_since = None;
                let what = format!(
                    "grace reset after {} of {}: {}",
                    Secs(now.since(since)),
                    Secs(self.grace()),
                    self.missing_words(missing, now)
                );
                self.tell(Event::Failback {
                    to: self.preferred,
                    what,
                });
            }
            (Some(_), None) => {}
            (None, None) => {
                self.failback.proved_since = Some(now);
                let what = format!(
                    "grace of {} began: {} is healthy, writable, and in sync both ways",
                    Secs(self.grace()),
                    self.name(self.preferred)
                );
                self.tell(Event::Failback {
                    to: self.preferred,
                    what,
                });
                self.end_grace(now);
            }
            (None, Some(_)) => self.end_grace(now),
        }
    }

    fn end_grace(&mut self, now: Moment) {
        if self.grace_ends().is_none_or(|ends| now.awake < ends) {
            return;
        }
        let Some(since) = self.failback.proved_since.take() else {
            return;
        };
        let why = format!(
            "{} was healthy, writable and in sync both ways for {} (grace {})",
            self.name(self.preferred),
            Secs(now.since(since)),
            Secs(self.grace())
        );
        self.tell(Event::Failback {
            to: self.preferred,
            what: format!("grace over: {why}"),
        });
        let wish = Wish {
            to: self.preferred,
            reason: SwitchReason::Failback,
            why,
            asked: None,
        };
        self.start_move(wish, now);
    }

    /// An operator's failback: the same proof, without the rest of the grace. In words what is missing, if anything is.
    pub(super) fn failback_refusal(&self, now: Moment) -> Option<String> {
        self.failback_broken(true, now)
    }

    /// Why a return under way has to be called off: its proof no longer holds. An operator who asked takes damping
    /// upon himself.
    pub(super) fn failback_broken(&self, asked: bool, now: Moment) -> Option<String> {
        let missing = self
            .missing(now)
            .filter(|missing| !asked || !matches!(missing, Missing::Damped(_)))?;
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
        self.damped(to, now).map(Missing::Damped)
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
            if self.failback.suspended && self.policy.failback == FailbackMode::Immediate {
                let what = "suspended: an operator chose the active replica".to_owned();
                self.tell(Event::Failback {
                    to: self.preferred,
                    what,
                });
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
        self.tell(Event::Failback {
            to: self.preferred,
            what,
        });
    }
}
