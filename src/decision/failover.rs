//! Unplanned switches: the first route, and what is done when the active replica is in trouble.
//!
//! Two kinds, by one question: does the active replica still answer?
//!
//! - **Forced.** It does not (refused, silent, failing). Staying would leave the application with nothing, so neither
//!   dwell nor damping nor grace holds it: it goes at once to the best replica with fresh evidence, whatever state that
//!   one is in. This is how the last survivor is never refused; a kill of A and, seconds later, of B reaches C at
//!   once. When no other replica answers, it stays: all are tried, and the first to answer gets the traffic.
//! - **Unforced.** It answers, but is worse than another (refuses writes, own echo lost, isolated). Then the target must
//!   be fit, undamped, and the last automatic switch at least one dwell ago. Only a makeshift, an active that
//!   was itself taken as the best of a bad lot and was never fit since, is left without waiting for the dwell.
//!
//! So unforced switches off replicas that were once fit are at most `T / dwell + 1` in any time T, and a replica that
//! pulls the traffic back and forth by falling is damped further each time.

use std::time::Duration;

use super::engine::{Engine, Taking};
use super::event::{Fitness, Health, SwitchReason};
use super::evidence::Writes;
use super::health::{Cause, Secs};
use super::moment::Moment;
use super::policy::{OnIsolated, OnSlow};
use super::select::Class;
use crate::replica::ReplicaId;

/// What is wrong with an active replica that still answers.
struct Trouble {
    reason: SwitchReason,
    why: String,
    /// When it was last known to be without it.
    since: Moment,
    /// What was sent to it may never be answered.
    abandon: bool,
}

impl Engine {
    /// Publishes the first route: as soon as the wanted replica answers, or the best known after a short wait.
    pub(super) fn consider_start(&mut self, now: Moment) {
        if self.active.is_some() {
            return;
        }
        let wanted = self.pinned.unwrap_or(self.preferred);
        let best = self.best(now, |_| true).filter(|_| self.pinned.is_none());
        let down = self.replicas[wanted.index()].standing.health == Health::Down;
        let waited = now.since(self.born);
        let (to, why) = if self.freshly_answers(wanted, now) {
            (wanted, format!("{} answers", self.name(wanted)))
        } else if let Some(best) = best.filter(|_| down) {
            let finding = &self.replicas[wanted.index()].standing.finding;
            (
                best,
                format!(
                    "{} is down ({finding}), {} answers",
                    self.name(wanted),
                    self.name(best)
                ),
            )
        } else if waited >= self.windows.startup {
            let to = best.unwrap_or(wanted);
            let why = match best {
                Some(_) => format!("{} did not answer within {}", self.name(wanted), Secs(waited)),
                None => format!(
                    "no replica answered within {}; trying {}",
                    Secs(waited),
                    self.name(to)
                ),
            };
            (to, why)
        } else {
            return;
        };
        let taking = Taking {
            to,
            reason: SwitchReason::Startup,
            why,
            automatic: true,
            abandon: false,
            detect: Duration::ZERO,
            fence: None,
            switch: Duration::ZERO,
        };
        self.take(taking, now);
    }

    /// Leaves an active replica that is down, or that is worse than a fit one.
    pub(super) fn consider_failover(&mut self, now: Moment) {
        let Some(active) = self.active else { return };
        if self.class(active) == Class::Fit {
            self.makeshift = false;
        }
        let standing = &self.replicas[active.index()].standing;
        match standing.cause {
            Some(cause) if cause != Cause::EchoLost => self.forced(active, cause, now),
            _ => self.unforced(active, now),
        }
    }

    fn forced(&mut self, active: ReplicaId, cause: Cause, now: Moment) {
        // An operator's pin under way ends where the operator said, whatever else holds the engine back.
        let pinning = self
            .moving
            .as_ref()
            .filter(|moving| moving.reason == SwitchReason::Pin);
        let pinning = pinning.map(|moving| moving.to);
        if pinning.is_none() && (self.tilt.is_some() || self.pinned.is_some()) {
            return;
        }
        let best = self.best(now, |_| true);
        let planned = self.moving.as_ref().map(|moving| moving.to);
        let planned = planned.filter(|&to| self.freshly_answers(to, now));
        let planned = planned
            .filter(|&to| pinning == Some(to) || best.is_none_or(|best| self.class(to) <= self.class(best)));
        let target = if pinning.is_some() {
            planned
        } else {
            planned.or(best)
        };
        let Some(to) = target else { return };
        let state = &self.replicas[active.index()];
        let well = matches!(
            self.replicas[to.index()].standing.health,
            Health::Healthy | Health::Suspect
        ) && self.class(to) < Class::Makeshift;
        let reason = match (pinning, well) {
            (Some(_), _) => SwitchReason::Pin,
            (None, true) => cause.reason(),
            (None, false) => SwitchReason::LastSurvivor,
        };
        let finding = &state.standing.finding;
        let why = if well {
            format!("{} is down: {finding}", self.name(active))
        } else {
            let target = &self.replicas[to.index()];
            format!(
                "{} is down: {finding}; {} is the best left: {}, {}",
                self.name(active),
                self.name(to),
                target.standing.health,
                self.fitness_words(to, now)
            )
        };
        let known_well = match cause {
            Cause::Failing => state.evidence.pings[0].ok,
            _ => state.evidence.live(),
        };
        let known_well = known_well.unwrap_or(state.evidence.born);
        let moving = self.moving.take();
        let taking = Taking {
            to,
            reason,
            why,
            automatic: reason != SwitchReason::Pin,
            abandon: true,
            detect: now.real.saturating_duration_since(known_well.real),
            fence: None,
            switch: Duration::ZERO,
        };
        self.take(taking, now);
        if let Some(moving) = moving {
            let words = format!("{} went down during the move", self.name(active));
            if moving.reason == SwitchReason::Pin {
                self.set_pin(Some(to));
            }
            let result = if moving.to == to {
                Ok(format!(
                    "{words}; moved to {} at once, without a fence",
                    self.name(to)
                ))
            } else {
                Err(format!(
                    "{words}, {} no longer answers; moved to {}",
                    self.name(moving.to),
                    self.name(to)
                ))
            };
            self.answer(moving.asked, result);
        }
    }

    fn unforced(&mut self, active: ReplicaId, now: Moment) {
        if self.tilt.is_some() || self.pinned.is_some() || self.moving.is_some() {
            return;
        }
        let Some(trouble) = self.trouble(active, now) else {
            return;
        };
        let Some(to) = self.best_fit(trouble.reason, now) else {
            return;
        };
        if !self.makeshift && self.dwell_ends().is_some_and(|ends| now.awake < ends) {
            return;
        }
        let why = format!("{}: {}; {} is fit", self.name(active), trouble.why, self.name(to));
        let taking = Taking {
            to,
            reason: trouble.reason,
            why,
            automatic: true,
            abandon: trouble.abandon,
            detect: now.real.saturating_duration_since(trouble.since.real),
            fence: None,
            switch: Duration::ZERO,
        };
        self.take(taking, now);
    }

    /// What is wrong with an active replica that still answers, if anything is.
    fn trouble(&self, active: ReplicaId, now: Moment) -> Option<Trouble> {
        let state = &self.replicas[active.index()];
        if state.standing.cause == Some(Cause::EchoLost) {
            let echoes = self
                .links
                .between(active, active)
                .filter_map(|(_, link)| link.fresh)
                .min();
            return Some(Trouble {
                reason: SwitchReason::EchoLost,
                why: state.standing.finding.to_string(),
                since: echoes.unwrap_or(state.evidence.born),
                abandon: false,
            });
        }
        match state.reading.fitness {
            // One that has just taken a write is on its way back, be it not proved yet.
            Fitness::Stale
                if state.evidence.writes.iter().any(Writes::refusing)
                    && !state.evidence.refusing_partly.is_waited_for(&self.policy, now) =>
            {
                let refused = || {
                    state
                        .evidence
                        .writes
                        .iter()
                        .filter(|writes| writes.writable == Some(false))
                };
                let since = refused().filter_map(|writes| writes.ok).min();
                Some(Trouble {
                    reason: SwitchReason::Unwritable,
                    why: self.fitness_words(active, now),
                    since: since.unwrap_or(state.evidence.born),
                    abandon: refused().any(|writes| writes.unanswered),
                })
            }
            Fitness::Isolated
                if self.policy.on_isolated == OnIsolated::Leave
                    && self.with_matrix(|matrix| matrix.others_hear_each_other(active)) =>
            {
                let heard = self.ids().filter(|&other| other != active).flat_map(|other| {
                    self.links
                        .between(active, other)
                        .chain(self.links.between(other, active))
                        .filter_map(|(_, link)| link.fresh)
                });
                Some(Trouble {
                    reason: SwitchReason::Isolated,
                    why: self.fitness_words(active, now),
                    since: heard.max().unwrap_or(state.evidence.born),
                    abandon: false,
                })
            }
            _ if state.evidence.slow && self.policy.on_slow == OnSlow::Leave => Some(Trouble {
                reason: SwitchReason::Slow,
                why: state.standing.finding.to_string(),
                since: now,
                abandon: false,
            }),
            _ => None,
        }
    }
}
