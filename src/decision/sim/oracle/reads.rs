//! What must hold for reads that go elsewhere than writes.

use std::time::Duration;

use super::{MS, Oracle, Verdict};
use crate::decision::event::RouteOrder;
use crate::decision::policy::{FailbackMode, ReadsTo};
use crate::decision::sim::setup::Setup;
use crate::decision::sim::world::World;
use crate::replica::ReplicaId;

impl Oracle {
    /// P8: reads go elsewhere only in a staged failback after its whole proof, or to the nearest as the policy says.
    pub(super) fn reads_proved(&self, setup: &Setup, world: &World, route: &RouteOrder) -> Verdict {
        let before = self.route.as_ref().filter(|before| before.write == route.write);
        for &(to, percent) in route.read.iter().filter(|(to, _)| *to != route.write) {
            if self.pinned.is_some() {
                return Err(format!("P10 pin: {percent} % of the reads go to {to}"));
            }
            let known = before.and_then(|before| before.read.iter().find(|(known, _)| *known == to));
            if setup.policy.reads == ReadsTo::Nearest {
                if known.is_none() {
                    self.fit_to_return(setup, world, to)?;
                }
                continue;
            }
            if setup.policy.failback != FailbackMode::Staged || to != setup.preferred {
                return Err(format!("P8 reads: {percent} % go to {to}"));
            }
            if !setup.policy.read_steps.contains(&percent) {
                return Err(format!("P8 reads: {percent} % are no step of the policy"));
            }
            match known {
                Some((_, before)) if *before < percent && *before > 0 => {
                    self.fit_to_return(setup, world, to)?;
                }
                Some(_) => {}
                None => self.proved(setup, world, to)?,
            }
        }
        Ok(())
    }

    /// P6: reads do not stay where nobody answers.
    pub(super) fn reads_served(&self, world: &World) -> Verdict {
        let Some(route) = &self.route else { return Ok(()) };
        for &(to, percent) in route.read.iter().filter(|(to, _)| *to != route.write) {
            let blind = self.watched(world, to, |state| !state.answers());
            if blind >= self.bounds.blind {
                return Err(format!(
                    "P6 reads: {percent} % go to {to}, which does not answer for {blind:?}"
                ));
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
        if lasted < setup.policy.soak {
            return Err(format!("P8 soak: the reads were on {to} for {lasted:?} only"));
        }
        Ok(())
    }
}
