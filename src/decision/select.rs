//! Choosing a target.
//!
//! Only replicas with fresh evidence are candidates. Among them, in this order: fit before unfit (see [`Class`]), not
//! damped before damped, not called unavailable by its cluster (REST) before called so, in sync before lagging before isolated, then weight, then measured latency, then position.

use std::cmp::Reverse;
use std::time::Duration;

use super::engine::Engine;
use super::event::{Fitness, Health, RestState, SwitchReason};
use super::moment::Moment;
use crate::replica::ReplicaId;

/// How usable a candidate is; the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    /// Healthy, and accepts writes.
    Fit,
    /// Healthy, no write probe has ended yet.
    Unproved,
    /// Suspect or recovering or barely known, and not known to refuse writes.
    Doubtful,
    /// Its pub/sub is gone, or it refuses writes; it answers.
    Makeshift,
}

type Rank = (Class, bool, bool, u8, Reverse<u32>, Duration, ReplicaId);

impl Engine {
    /// Whether `id` answered a PING or a write just now, and failed neither since: the evidence that a move to it needs.
    pub(super) fn freshly_answers(&self, id: ReplicaId, now: Moment) -> bool {
        let replica = &self.replicas[id.index()];
        let known = replica.standing.answers() || replica.standing.health == Health::Unknown;
        let evidence = &replica.evidence;
        let recent = |ok| now.since(ok) < self.windows.suspect;
        known && !evidence.failed_since && evidence.answered.is_some_and(recent)
    }

    /// How usable `id` is, were it chosen now.
    pub(super) fn class(&self, id: ReplicaId) -> Class {
        let replica = &self.replicas[id.index()];
        match (replica.standing.health, replica.evidence.writable()) {
            (_, Some(false)) | (Health::Down, _) => Class::Makeshift,
            (Health::Healthy, Some(true)) => Class::Fit,
            (Health::Healthy, None) => Class::Unproved,
            _ => Class::Doubtful,
        }
    }

    /// How much longer damping bars `id`.
    pub(super) fn damped(&self, id: ReplicaId, now: Moment) -> Option<Duration> {
        self.replicas[id.index()]
            .damping
            .left(&self.windows, self.policy.dwell, now)
    }

    fn rank(&self, id: ReplicaId, now: Moment) -> Rank {
        let replica = &self.replicas[id.index()];
        let sync = match replica.reading.fitness {
            Fitness::InSync => 0,
            Fitness::Lagging | Fitness::Unknown | Fitness::Stale => 1,
            Fitness::Isolated => 2,
        };
        (
            self.class(id),
            self.damped(id, now).is_some(),
            self.rest_state(id, now) == Some(RestState::Unavailable),
            sync,
            Reverse(self.members[id.index()].weight),
            replica.evidence.rtt().unwrap_or(Duration::MAX),
            id,
        )
    }

    /// The best replica to go to, other than the active one, that `admit` admits.
    pub(super) fn best(&self, now: Moment, admit: impl Fn(ReplicaId) -> bool) -> Option<ReplicaId> {
        self.ids()
            .filter(|&id| Some(id) != self.active && self.freshly_answers(id, now) && admit(id))
            .min_by_key(|&id| self.rank(id, now))
    }

    /// The best replica for an unforced switch for `reason`: fit and not damped; and in touch with someone, when it is
    /// isolation that the active is left for, or quick, when it is slowness.
    pub(super) fn best_fit(&self, reason: SwitchReason, now: Moment) -> Option<ReplicaId> {
        self.best(now, |id| {
            let replica = &self.replicas[id.index()];
            let isolated = replica.reading.fitness == Fitness::Isolated;
            let doubtful = replica.evidence.round_trips.is_doubtful();
            self.class(id) == Class::Fit
                && self.damped(id, now).is_none()
                && !(isolated && reason == SwitchReason::Isolated)
                && !(doubtful && reason == SwitchReason::Slow)
        })
    }
}
