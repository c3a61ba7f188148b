//! Where reads go: with the writes, on trial with the preferred replica while it returns, or to the nearest.
//!
//! The split follows from the engine's state; whatever changes that state, [`Engine::publish_reads`] notices at the end
//! of the call. Reads that go elsewhere need a replica that is healthy and in sync both ways with the active; when it
//! no longer is, they are back with the active in the same call.

use std::time::Duration;

use super::engine::Engine;
use super::event::{Fitness, Health};
use super::links::Pair;
use super::moment::Moment;
use super::policy::ReadsTo;
use crate::replica::ReplicaId;

/// Nearer by less than this is not nearer.
const NEARER: Duration = Duration::from_millis(1);

/// Which replica reads go to outside a failback.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Nearest {
    /// `None`: the active.
    to: Option<ReplicaId>,
    /// Another one has been nearer since then.
    nearer: Option<(ReplicaId, Moment)>,
}

impl Engine {
    /// Percent of sessions by replica that their reads go to.
    pub(super) fn read_split(&self) -> Vec<(ReplicaId, u8)> {
        let Some(active) = self.active else {
            return Vec::new();
        };
        let elsewhere = match self.failback.read_percent(&self.policy) {
            _ if self.moving.is_some() => None,
            // It has them all already.
            Some(_) if self.nearest.to == Some(self.preferred) => Some((self.preferred, 100)),
            Some(percent) => Some((self.preferred, percent)),
            None => self.nearest.to.map(|to| (to, 100)),
        };
        match elsewhere {
            None | Some((_, 0)) => vec![(active, 100)],
            Some((to, _)) if to == active => vec![(active, 100)],
            Some((to, percent @ 1..100)) => vec![(to, percent), (active, 100 - percent)],
            Some((to, _)) => vec![(to, 100)],
        }
    }

    /// Publishes a route when reads are to go elsewhere than the newest one says.
    pub(super) fn publish_reads(&mut self) {
        let Some(active) = self.active.filter(|_| self.read_split() != self.published_reads) else {
            return;
        };
        // What was sent to a replica that is gone is asked again at once.
        let gone = |&(replica, _): &(ReplicaId, u8)| {
            replica != active && self.replicas[replica.index()].standing.health == Health::Down
        };
        let abandon = self.published_reads.iter().any(gone);
        self.publish(self.holding, abandon);
    }

    /// Looks whether another replica is nearer, and for long enough.
    pub(super) fn consider_reads(&mut self, now: Moment) {
        let Some(active) = self
            .active
            .filter(|_| self.policy.reads == ReadsTo::Nearest && self.pinned.is_none())
        else {
            self.nearest = Nearest::default();
            return;
        };
        if self.tilt.is_some() {
            return;
        }
        if self
            .nearest
            .to
            .is_some_and(|to| !self.fit_to_read(to, active, now))
        {
            self.nearest = Nearest::default();
        }
        let distance = |id: ReplicaId| self.replicas[id.index()].evidence.round_trips.now();
        let current = self.nearest.to.unwrap_or(active);
        let fit = |id: ReplicaId| id == active || self.fit_to_read(id, active, now);
        let nearer_than = |id: ReplicaId, other: ReplicaId| {
            distance(id)
                .zip(distance(other))
                .is_some_and(|(near, far)| near + NEARER.max(far / 5) < far)
        };
        let nearest = self
            .ids()
            .filter(|&id| fit(id))
            .filter_map(|id| Some((distance(id)?, id)))
            .min()
            .map(|(_, id)| id)
            .filter(|&id| nearer_than(id, current));
        // Two that are about as near take turns at being the nearest: that is no reason to begin anew with either.
        let kept = self.nearest.nearer.filter(|&(id, _)| {
            fit(id) && nearer_than(id, current) && !nearest.is_some_and(|nearest| nearer_than(nearest, id))
        });
        self.nearest.nearer = kept.or_else(|| Some((nearest?, now)));
        if let Some((id, since)) = self.nearest.nearer
            && now.since(since) >= self.policy.dwell
        {
            self.nearest = Nearest {
                to: (id != active).then_some(id),
                nearer: None,
            };
        }
    }

    /// Whether reads may go to `id` while `active` takes the writes.
    fn fit_to_read(&self, id: ReplicaId, active: ReplicaId, now: Moment) -> bool {
        let state = &self.replicas[id.index()];
        id != active
            && state.standing.health == Health::Healthy
            && state.reading.fitness == Fitness::InSync
            && self.links.pair(active, id) == Pair::Good
            && self.damped(id, now).is_none()
    }
}
