//! Liveness: what the engine must do in the end, and by when. Named L1 … L4.

use super::{MS, Oracle, Verdict};
use crate::decision::event::{Fitness, Health};
use crate::decision::policy::OnIsolated;
use crate::decision::sim::setup::Setup;
use crate::decision::sim::world::{State, World};
use crate::decision::snapshot::Snapshot;
use crate::replica::ReplicaId;

impl Oracle {
    pub(super) fn unanswered(&self, setup: &Setup) -> Verdict {
        let bound = (setup.policy.fence.max(MS * 1000)) * 2 + MS * 500;
        let late = self.pending.iter().find(|(_, at)| {
            let at = self.woke.map_or(**at, |woke| woke.max(**at));
            self.at.saturating_sub(at) > bound
        });
        match late {
            Some((id, at)) => Err(format!("answer: {id}, asked at {at:?}, has none")),
            None => Ok(()),
        }
    }

    /// What has to hold after every call.
    pub(in crate::decision::sim) fn after_call(&self, setup: &Setup, world: &World) -> Verdict {
        self.tilts()?;
        self.held(setup)?;
        self.liveness(setup, world)
    }

    /// L1: a bad active is left as soon as the rules allow.
    fn liveness(&self, setup: &Setup, world: &World) -> Verdict {
        let Some(active) = self.active() else {
            let bound = setup.policy.heartbeat_timeout.min(MS * 1000) + MS * 200;
            let slept = self.woke.is_some_and(|woke| woke > self.born);
            if self.at > self.born + bound && !slept {
                return Err("L1 startup: there is still no route".to_owned());
            }
            return Ok(());
        };
        let pinning = self.moving.as_ref().is_some_and(|moving| moving.pin);
        if self.pinned.is_some() || pinning || self.excused() {
            return Ok(());
        }
        // A last survivor that answered this very moment takes the traffic in the same call: no grace, no dwell.
        let survivor = setup
            .ids()
            .find(|&id| id != active && self.answers_freshly(setup, world, id));
        let Some(survivor) = survivor else { return Ok(()) };
        let blind = self.watched(world, active, |state| !state.answers());
        let active_for = self.at.saturating_sub(self.active_since);
        // What was asked while it hung is waited for, though it came back loading meanwhile.
        if blind.min(active_for) >= self.bounds.blind + setup.probe_timeout * 2 {
            return Err(format!(
                "L1 last survivor: {active} does not answer for {blind:?}, {survivor} does"
            ));
        }
        let dead = self.watched(world, active, |state| state == State::Dead);
        if setup.traffic && dead.min(active_for).min(self.at.saturating_sub(self.hiccup)) >= MS * 150 {
            return Err(format!(
                "L1 kill: {active} is dead under load for {dead:?}, {survivor} answers"
            ));
        }
        self.unforced(setup, world, active)
    }

    /// A replica that refuses writes, or whose pub/sub is gone, is left once dwell allows and a well one is there.
    fn unforced(&self, setup: &Setup, world: &World, active: ReplicaId) -> Verdict {
        let refusing = self.watched(world, active, |state| state.answers() && !state.writes());
        let mute = self.watched(world, active, |state| state == State::Mute);
        let heard = self.at.saturating_sub(self.told[active.index()].resubscribed);
        let bad = refusing >= self.bounds.write
            || mute.min(heard) >= self.bounds.link * 2
            || self.cut_off(setup, world, active);
        let dwelt = self
            .last_automatic
            .is_none_or(|(at, _)| self.at >= at + setup.policy.dwell + MS * 200);
        let quiet = self.at.saturating_sub(world.noise[active.index()]) >= self.bounds.settle;
        let settling = self.at < self.active_since + MS * 200;
        if !bad || !dwelt || !quiet || settling || self.moving.is_some() {
            return Ok(());
        }
        let calm = self.awake().min(self.at.saturating_sub(self.relayouted));
        let fit = setup.ids().find(|&id| {
            let told = &self.told[id.index()];
            let undamped = told.downs.len() < 2
                || calm.min(self.at.saturating_sub(told.returned)) > setup.policy.dwell * 8 + MS * 200;
            id != active
                && undamped
                && self.answers_freshly(setup, world, id)
                && world.well(self.at, id).unwrap_or_default().min(calm) >= self.bounds.settle
                && setup
                    .ids()
                    .filter(|&other| other != id && other != active)
                    .all(|other| {
                        world.pair_open(self.at, id, other).unwrap_or_default() >= self.bounds.settle
                    })
        });
        match fit {
            Some(fit) => Err(format!(
                "L1 unfit active: {active} is {:?}, {fit} is well",
                world.state(active)
            )),
            None => Ok(()),
        }
    }

    /// Whether the policy wants `active` left because it replicates with no one, while two others do.
    fn cut_off(&self, setup: &Setup, world: &World, active: ReplicaId) -> bool {
        let long = self.bounds.settle;
        let calm = self.awake().min(self.at.saturating_sub(self.relayouted));
        let well = |id: ReplicaId| {
            let heard = self.at.saturating_sub(self.told[id.index()].resubscribed);
            world.well(self.at, id).unwrap_or_default().min(calm).min(heard) >= long
        };
        let others = || setup.ids().filter(move |&id| id != active);
        let open = |a, b| world.pair_open(self.at, a, b).unwrap_or_default() >= long;
        setup.policy.on_isolated == OnIsolated::Leave
            && well(active)
            && others().all(|other| {
                let known = long.max(self.bounds.link_between(world, active, other));
                world.pair_shut(self.at, active, other).min(calm) >= known
            })
            && others().any(|a| others().any(|b| a != b && well(a) && well(b) && open(a, b)))
    }

    /// A stall is noticed in the call that ends it, and does not excuse for longer than one window of silence.
    fn tilts(&self) -> Verdict {
        if self.tilted() && !self.tilt {
            return Err("tilt: the sidecar stood still and did not notice".to_owned());
        }
        let lasted = self.awake().min(self.at.saturating_sub(self.hiccup));
        if self.tilt && lasted >= self.bounds.silence + MS * 200 {
            return Err(format!("L3 tilt: still in tilt {lasted:?} after the stall"));
        }
        Ok(())
    }

    /// L4: what is still not as it should be, some time after everything was mended.
    pub(in crate::decision::sim) fn settled(&self, setup: &Setup, snapshot: &Snapshot) -> Result<(), String> {
        for view in &snapshot.replicas {
            if (view.health, view.fitness) != (Health::Healthy, Fitness::InSync) {
                return Err(format!(
                    "{} is {} and {}: {}",
                    view.id, view.health, view.fitness, view.reason
                ));
            }
        }
        if snapshot.tilt || snapshot.holding || self.moving.is_some() || !self.pending.is_empty() {
            return Err(format!(
                "tilt {}, holding {}, answers owed {}",
                snapshot.tilt,
                snapshot.holding,
                self.pending.len()
            ));
        }
        if snapshot.active != Some(setup.preferred) {
            return Err(format!(
                "{:?} is active, {} is preferred",
                snapshot.active, setup.preferred
            ));
        }
        Ok(())
    }
}
