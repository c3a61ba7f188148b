//! What must hold for reads that go elsewhere than writes.

use std::time::Duration;

use super::{MS, Oracle, Verdict};
use crate::decision::event::{Fitness, Health, RouteOrder};
use crate::decision::policy::{FailbackMode, Policy, ReadsTo};
use crate::decision::sim::setup::Setup;
use crate::decision::sim::world::World;
use crate::decision::snapshot::Snapshot;
use crate::replica::ReplicaId;

/// How long each step of the trial lasts.
fn step_of(policy: &Policy, soak: Duration) -> Duration {
    soak / u32::try_from(policy.read_steps.len()).unwrap_or(1).max(1)
}

impl Oracle {
    /// P8: reads go elsewhere only in a staged failback after its whole proof, step by step, or to the nearest as the
    /// policy says.
    pub(super) fn reads_proved(&mut self, setup: &Setup, world: &World, route: &RouteOrder) -> Verdict {
        let before = self.route.clone().filter(|before| before.write == route.write);
        for &(to, percent) in route.read.iter().filter(|(to, _)| *to != route.write) {
            if self.pinned.is_some() {
                return Err(format!("P10 pin: {percent} % of the reads go to {to}"));
            }
            let known = before
                .as_ref()
                .and_then(|before| before.read.iter().find(|(known, _)| *known == to));
            if setup.policy.reads == ReadsTo::Nearest
                && (percent == 100 || setup.policy.failback != FailbackMode::Staged)
            {
                if known.is_none() {
                    self.fit_to_return(setup, world, to)?;
                }
                continue;
            }
            if setup.policy.failback != FailbackMode::Staged || to != setup.preferred {
                return Err(format!("P8 reads: {percent} % go to {to}"));
            }
            let position = |percent| setup.policy.read_steps.iter().position(|step| *step == percent);
            let Some(step) = position(percent) else {
                return Err(format!("P8 reads: {percent} % are no step of the policy"));
            };
            match known.map(|(_, before)| *before) {
                Some(before) if before == percent => {}
                // As the nearest it had more.
                Some(before) if before > percent => self.step = self.at,
                Some(before) if position(before).is_some_and(|before| before + 1 == step) => {
                    let lasted = self.at.saturating_sub(self.step) + MS * 3;
                    if lasted < step_of(&setup.policy, self.soak) {
                        return Err(format!("P8 steps: {before} % lasted for {lasted:?} only"));
                    }
                    self.fit_to_return(setup, world, to)?;
                    self.step = self.at;
                }
                None if step == 0 => {
                    self.proved(setup, world, to)?;
                    self.step = self.at;
                }
                before => return Err(format!("P8 steps: {percent} % after {before:?}")),
            }
        }
        Ok(())
    }

    /// P6, P8: reads do not stay where nobody answers, nor where something is wrong that must have been noticed, nor for
    /// one call longer than it is known.
    pub(super) fn reads_served(&self, setup: &Setup, world: &World, snapshot: &Snapshot) -> Verdict {
        let Some(route) = &self.route else { return Ok(()) };
        for &(to, percent) in route.read.iter().filter(|(to, _)| *to != route.write) {
            let blind = self.watched(world, to, |state| !state.answers());
            if blind >= self.bounds.blind {
                return Err(format!(
                    "P6 reads: {percent} % go to {to}, which does not answer for {blind:?}"
                ));
            }
            let view = &snapshot.replicas[to.index()];
            if !snapshot.tilt && (view.health, view.fitness) != (Health::Healthy, Fitness::InSync) {
                return Err(format!(
                    "P8 relapse: {percent} % of the reads stay on {to}, which is {} and {}",
                    view.health, view.fitness
                ));
            }
            if setup.policy.reads == ReadsTo::Active && setup.policy.failback != FailbackMode::Staged {
                return Err(format!(
                    "P8 reads: {percent} % stay on {to}, and the policy says otherwise"
                ));
            }
            if !snapshot.tilt
                && let Err(wrong) = self.fit_to_return(setup, world, to)
            {
                return Err(format!("P8 reads: {percent} % stay on {to}: {wrong}"));
            }
        }
        Ok(())
    }

    /// P8: the writes follow once the preferred replica has had the reads for the whole soak.
    pub(super) fn soaked(&self, setup: &Setup, to: ReplicaId) -> Verdict {
        if setup.policy.failback != FailbackMode::Staged || setup.policy.reads == ReadsTo::Nearest {
            return Ok(());
        }
        let trial = self.trial.filter(|(replica, _)| *replica == to);
        // The clock may step back by two.
        let lasted = trial.map_or(Duration::ZERO, |(_, since)| {
            self.at.saturating_sub(since) + MS * 3
        });
        if lasted < self.soak {
            return Err(format!("P8 soak: the reads were on {to} for {lasted:?} only"));
        }
        Ok(())
    }
}
