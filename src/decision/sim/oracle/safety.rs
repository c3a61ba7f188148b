//! Safety: what the engine must never do, whatever comes in. Each property is named after the promise that it guards.

use std::time::Duration;

use super::{MS, Moving, Oracle, Verdict};
use crate::decision::event::{Fitness, Health, SwitchReason, Switched};
use crate::decision::policy::{OnFenceTimeout, OnIsolated, OnSlow};
use crate::decision::sim::setup::Setup;
use crate::decision::sim::world::{At, State, Way, World};
use crate::decision::snapshot::Snapshot;
use crate::replica::ReplicaId;

impl Oracle {
    /// P8: an automatic failback has had its whole grace of truth.
    pub(super) fn proved(&self, setup: &Setup, world: &World, to: ReplicaId) -> Verdict {
        let grace = self.grace;
        let fail = |what: &str, end: At| {
            Err(format!(
                "P8 failback: began at {:?}, {what} until {end:?}, grace {grace:?}",
                self.at
            ))
        };
        if to != setup.preferred {
            return Err(format!("P8 failback: to {to}, which is not preferred"));
        }
        // The clock may step back by two.
        let at = self.at + MS * 3;
        if at < self.active_since + grace {
            return fail("another replica became active only", self.active_since);
        }
        // On trial a stall begins the step anew.
        let on_trial = self
            .trial
            .is_some_and(|(_, since)| self.woke.is_some_and(|woke| since < woke));
        let steps = u32::try_from(setup.policy.read_steps.len()).unwrap_or(1).max(1);
        let watched = if on_trial {
            grace.min(self.soak / steps)
        } else {
            grace
        };
        if let Some(woke) = self.woke.filter(|woke| at < *woke + watched) {
            return fail("nobody watched", woke);
        }
        let longer = grace * 2_u32.pow(self.relapses.min(3));
        if at < self.active_since + longer {
            return Err(format!(
                "P7 relapse: {} returns did not last, and the next began after {:?}",
                self.relapses,
                self.at.saturating_sub(self.active_since)
            ));
        }
        let longer = grace * 2_u32.pow(self.rollbacks.min(3));
        if self.rollbacks > 0 && at < self.rolled_back + longer {
            return Err(format!(
                "P7 rollback: {} in a row, and the next began {:?} later",
                self.rollbacks,
                self.at.saturating_sub(self.rolled_back)
            ));
        }
        self.cluster_agrees(setup, to, false)?;
        self.fit_for(setup, world, to, grace)
    }

    /// P8: nothing returns to a replica that its cluster calls unavailable; by itself, only to one that it has called
    /// available lately, and not otherwise in the whole grace.
    pub(super) fn cluster_agrees(&self, setup: &Setup, to: ReplicaId, asked: bool) -> Verdict {
        let Some(interval) = setup.members[to.index()].rest else {
            return Ok(());
        };
        let told = &self.told[to.index()];
        let ago = |at: At| self.at.saturating_sub(at);
        let known_for = interval * 3;
        let denied = told.rest_no > told.rest_yes && told.rest_no.is_some_and(|no| ago(no) < known_for);
        if denied {
            return Err(format!("P8 rest: {to} is called unavailable by its cluster"));
        }
        if asked {
            return Ok(());
        }
        let fresh = |at| ago(at).min(self.awake()) < known_for + MS * 5;
        if !told.rest_yes.is_some_and(fresh) {
            return Err(format!(
                "P8 rest: {to} was last called available at {:?}",
                told.rest_yes
            ));
        }
        if told.rest_no.is_some_and(|no| ago(no) + MS * 3 < self.grace) {
            return Err(format!("P8 rest: {to} was called unavailable in the grace"));
        }
        Ok(())
    }

    /// P8: what an operator's failback needs too.
    pub(super) fn fit_to_return(&self, setup: &Setup, world: &World, to: ReplicaId) -> Verdict {
        self.fit_for(setup, world, to, Duration::ZERO)
    }

    /// Nothing that must have been noticed was wrong with `to`, or with its links with the active, for `grace`.
    fn fit_for(&self, setup: &Setup, world: &World, to: ReplicaId, grace: Duration) -> Verdict {
        let wrong = |what: &str, end: At| {
            Err(format!(
                "P8 failback: began at {:?}, {what} until {end:?}, to be proved for {grace:?}",
                self.at
            ))
        };
        let policy = &setup.policy;
        let state = &world.nodes[to.index()];
        let slow = self.bounds.write;
        for (what, least) in [
            (State::Dead, policy.probe_interval * 2 + MS * 100),
            (State::Loading, policy.probe_interval * 2 + MS * 300),
            (State::Hung, self.bounds.suspect),
            (State::Stale, slow),
            (State::Paused, slow),
        ] {
            if let Some(end) = state.last_stretch(self.at, least, |state| state == what)
                && self.at < end + grace.max(MS)
                && self.woke.is_none_or(|woke| woke + least < end)
            {
                return wrong(&format!("{to} was {what:?}"), end);
            }
        }
        let long = self.bounds.settle;
        let well = |id: ReplicaId| {
            let heard = self.at.saturating_sub(self.told[id.index()].resubscribed);
            let calm = self.at.saturating_sub(self.relayouted);
            world
                .well(self.at, id)
                .unwrap_or_default()
                .min(self.awake())
                .min(heard)
                .min(calm)
                >= long
        };
        let Some(active) = self.active().filter(|&active| well(active)) else {
            return Ok(());
        };
        // A third one that is well and replicates with the active has nothing to do with it when it misses this one.
        for other in setup
            .ids()
            .filter(|&other| other != to && other != active && well(other))
        {
            let blameless = world.pair_open(self.at, active, other).unwrap_or_default() >= long;
            if blameless
                && well(to)
                && world.pair_bad(self.at, to, other) >= self.bounds.link_between(world, to, other)
            {
                return wrong(&format!("{to} and {other} replicate badly"), self.at);
            }
        }
        for (from, to) in [(active, to), (to, active)] {
            let heard = self.told[to.index()].resubscribed;
            for way in world.ways[from.index()][to.index()].values() {
                // Lag is seen in every heartbeat; a link that is used to being slow only takes longer to be called down.
                let between = self.bounds.link_between(world, from, to);
                let late: fn(Way) -> bool = |way| matches!(way, Way::Late(_));
                let shut: fn(Way) -> bool = |way| !matches!(way, Way::Open(_));
                for (bad, least) in [(late, self.bounds.link), (shut, between)] {
                    if let Some(end) = way.last_stretch(self.at, least, bad)
                        && self.at < end + grace.max(MS)
                        && self.woke.unwrap_or_default().max(heard) + least < end
                    {
                        return wrong(&format!("{from}->{to} was bad"), end);
                    }
                }
            }
        }
        Ok(())
    }

    /// P9: drained, and the fence heard in every cell, unless the policy says otherwise.
    pub(super) fn fenced(&self, setup: &Setup, moving: &Moving, switched: &Switched) -> Verdict {
        let policy = &setup.policy;
        let proceed = policy.on_fence_timeout == OnFenceTimeout::Proceed;
        let waited = self.at.saturating_sub(moving.began);
        let drain = if policy.fence.is_zero() {
            MS * 1000
        } else {
            policy.fence
        };
        if switched.to != moving.to {
            return Err(format!(
                "P9 fence: the move was to {}, the switch to {}",
                moving.to, switched.to
            ));
        }
        let excused = proceed && waited + MS * 3 >= drain;
        if !moving.drained && !excused {
            return Err("P9 fence: not drained".to_owned());
        }
        if policy.fence.is_zero() {
            return Ok(());
        }
        let Some((_, since)) = moving.fence else {
            return Err("P9 fence: none was published".to_owned());
        };
        let heard = moving.cells.iter().all(|cell| moving.heard.contains(cell));
        let excused = proceed && self.at.saturating_sub(since) + MS * 3 >= policy.fence;
        if !heard && !excused {
            return Err(format!(
                "P9 fence: heard in {} of {} cells",
                moving.heard.len(),
                moving.cells.len()
            ));
        }
        if heard != switched.fence.is_some() {
            return Err(format!("P9 fence: heard is {heard}, told {:?}", switched.fence));
        }
        Ok(())
    }

    /// An operator's move without hold and fence needs an end that does not answer.
    pub(super) fn at_once(&self, world: &World, switched: &Switched) -> Verdict {
        let window = self.bounds.settle * 2 + self.bounds.blind;
        let from = self.at.saturating_sub(window);
        let ill = |id: ReplicaId| world.nodes[id.index()].any_since(from, |state| state != State::Up);
        if switched.from.is_some_and(ill) || ill(switched.to) || self.woke.is_some_and(|woke| woke > from) {
            return Ok(());
        }
        Err("P9 fence: an operator's move between well replicas was not planned".to_owned())
    }

    /// P5, P6: the target answers freshly, and is not one that is bad while a well one is there. `wished`: an operator's
    /// move there was under way.
    pub(super) fn target(&self, setup: &Setup, world: &World, switched: &Switched, wished: bool) -> Verdict {
        let to = switched.to;
        let told = &self.told[to.index()];
        let fresh = told
            .answered
            .is_some_and(|ok| self.at.saturating_sub(ok) < self.bounds.silence);
        if !fresh && self.awake() >= self.bounds.silence {
            return Err(format!(
                "P5 evidence: {to} was chosen, its last answer is {:?}",
                told.answered
            ));
        }
        let better = setup.ids().any(|id| {
            Some(id) != switched.from
                && id != to
                && self.answers_freshly(setup, world, id)
                && world.well(self.at, id).unwrap_or_default().min(self.awake()) >= self.bounds.settle
        });
        if better && self.watched(world, to, |state| !state.answers()) >= self.bounds.blind {
            return Err(format!(
                "P6 target: {to} does not answer, and a well one was there"
            ));
        }
        let refusing = self.watched(world, to, |state| !state.writes());
        let told = told.refusals >= 4 && refusing > Duration::ZERO;
        if better && (told || refusing >= self.bounds.write) {
            return Err(format!(
                "P6 target: {to} refuses writes, and a well one was there"
            ));
        }
        if wished {
            return Ok(());
        }
        self.best_of_the_well(setup, world, switched)
    }

    /// P6: among replicas that are well and known for it, one that replicates goes before one that does not, and the
    /// heavier one before the lighter.
    fn best_of_the_well(&self, setup: &Setup, world: &World, switched: &Switched) -> Verdict {
        let to = switched.to;
        let long = self.bounds.settle;
        let calm = self.awake().min(self.at.saturating_sub(self.relayouted));
        let known = |id: ReplicaId| {
            self.answers_freshly(setup, world, id)
                && self.told[id.index()].downs.len() < 2
                && world.well(self.at, id).unwrap_or_default().min(calm) >= long
        };
        let open = |a, b| world.pair_open(self.at, a, b).unwrap_or_default().min(calm) >= long;
        let shut = |a, b| world.pair_shut(self.at, a, b).min(calm) >= long;
        let rivals = setup
            .ids()
            .filter(|&id| Some(id) != switched.from && id != to && known(id));
        for rival in rivals {
            let others = || setup.ids().filter(move |&id| id != rival);
            let whole = others().all(|other| open(rival, other));
            let replicates = others().any(|other| other != to && known(other) && open(rival, other));
            let alone = others().all(|other| shut(to, other)) && shut(to, rival);
            if replicates && alone && others().all(|other| other == to || open(rival, other)) {
                return Err(format!("P6 target: {to} replicates with no one, {rival} does"));
            }
            let steady =
                |id: ReplicaId| known(id) || self.watched(world, id, |state| !state.answers()) >= long;
            let all = || setup.ids().filter(|&id| Some(id) != switched.from);
            let both =
                whole && known(to) && all().all(|other| other == to || open(to, other) && steady(other));
            let weight = |id: ReplicaId| setup.members[id.index()].weight;
            // One that its cluster calls unavailable comes after its equals.
            let agreed = self.cluster_agrees(setup, rival, true).is_ok();
            if both && agreed && weight(rival) > weight(to) && switched.reason != SwitchReason::Failback {
                return Err(format!("P6 preference: {to} was chosen, {rival} weighs more"));
            }
        }
        Ok(())
    }

    /// A switch off a replica needs something to have been wrong with it.
    pub(super) fn no_false_alarm(&self, setup: &Setup, world: &World, switched: &Switched) -> Verdict {
        let Some(from) = switched
            .from
            .filter(|_| switched.reason != SwitchReason::Failback)
        else {
            return Ok(());
        };
        if switched.reason == SwitchReason::Isolated && setup.policy.on_isolated == OnIsolated::Stay {
            return Err("P5 false alarm: isolated, and the policy says stay".to_owned());
        }
        let long = self.bounds.settle + self.bounds.write;
        // An answer that was lost with the fault is missed until its probe runs out of time and the next one ends.
        let short = setup.probe_timeout * 2 + setup.policy.probe_interval * 2 + MS * 500;
        let slept = self.awake() < long;
        let (long, short) = (
            self.at.saturating_sub(long),
            self.at.saturating_sub(if slept { long } else { short }),
        );
        let state = &world.nodes[from.index()];
        let noisy = self.at.saturating_sub(world.noise[from.index()]) < self.bounds.write;
        let deaf = state.any_since(short, |state| !state.answers())
            // A PING was lost while no write ends either.
            || noisy && state.any_since(short, |state| !state.writes());
        let wrong = match switched.reason {
            SwitchReason::Refused => {
                state.any_since(long, |state| state == State::Dead)
                    && state.any_since(short, |state| !state.answers())
            }
            SwitchReason::Slow => {
                let to = switched.to;
                let as_slow = self.watched(world, to, |state| state == State::Slow);
                // It was quick before, all the while: what it is used to is known.
                let probes = |count| setup.policy.probe_interval * count;
                let watched = self.at.saturating_sub(as_slow).saturating_sub(self.born);
                let quick =
                    world.nodes[to.index()].held_before(self.born + watched, |state| state != State::Slow);
                let known = self.told[to.index()].quick >= 24 && quick >= watched;
                if as_slow >= probes(7) && known {
                    return Err(format!(
                        "P5 slow: left for {to}, which has been slow for {as_slow:?}"
                    ));
                }
                setup.policy.on_slow == OnSlow::Leave && state.any_since(long, |state| state == State::Slow)
            }
            SwitchReason::Silent => deaf,
            SwitchReason::Failing => {
                state.any_since(long, |state| state == State::Loading)
                    && state.any_since(short, |state| !state.answers())
            }
            SwitchReason::Unwritable => state.any_since(long, |state| !state.writes()),
            SwitchReason::EchoLost => state.any_since(long, |state| state != State::Up),
            SwitchReason::Isolated => setup.ids().filter(|&other| other != from).all(|other| {
                world
                    .pair_open(self.at, from, other)
                    .is_none_or(|open| open.min(self.awake()) < self.bounds.link)
                    || world.nodes[other.index()].any_since(long, |state| state != State::Up)
            }),
            _ => deaf,
        };
        if wrong {
            return Ok(());
        }
        Err(format!(
            "P5 false alarm: {} {from}: {}",
            switched.reason, switched.why
        ))
    }

    /// P7: at least one dwell between automatic switches, unless the old one did not answer or was a makeshift.
    pub(super) fn dwelt(&mut self, setup: &Setup, reason: SwitchReason) -> Verdict {
        let forced = matches!(
            reason,
            SwitchReason::Refused | SwitchReason::Silent | SwitchReason::Failing | SwitchReason::LastSurvivor
        );
        if forced {
            return Ok(());
        }
        let dwell = setup.policy.dwell;
        let makeshift = reason != SwitchReason::Failback
            && self
                .switched
                .as_ref()
                .is_some_and(|(_, last)| last.reason == SwitchReason::LastSurvivor);
        if let Some((last, why)) = self.last_automatic
            && self.at + MS * 3 < last + dwell
            && !makeshift
        {
            return Err(format!(
                "P7 dwell: switched for {reason} {:?} after {why}",
                self.at.saturating_sub(last)
            ));
        }
        if !makeshift {
            self.counted.push(self.at);
            let (first, count) = (self.counted[0], self.counted.len() - 1);
            let allowed = (self.at + MS * 3).saturating_sub(first).as_millis() / dwell.as_millis();
            if count as u128 > allowed {
                return Err(format!(
                    "P7 dwell: {count} switches more since {first:?}, {allowed} allowed"
                ));
            }
        }
        Ok(())
    }

    /// P7: a replica that keeps falling has stood for longer each time before it is chosen without need.
    pub(super) fn damped(&self, setup: &Setup, switched: &Switched) -> Verdict {
        let choice = matches!(
            switched.reason,
            SwitchReason::Failback
                | SwitchReason::Unwritable
                | SwitchReason::EchoLost
                | SwitchReason::Isolated
        );
        let dwell = setup.policy.dwell;
        let told = &self.told[switched.to.index()];
        let (mut falls, mut after) = (0_u32, self.at);
        for &down in told.downs.iter().rev() {
            if after.saturating_sub(down) >= dwell * 8 {
                break;
            }
            falls += 1;
            after = down;
        }
        let stood = self.at.saturating_sub(told.returned);
        if choice && falls >= 2 && stood + MS * 3 < dwell * 2_u32.pow((falls - 2).min(3)) {
            return Err(format!(
                "P7 flapping: {} fell {falls} times and was chosen {stood:?} after its return",
                switched.to
            ));
        }
        Ok(())
    }

    /// P9: commands wait for an operator's hold, or for a planned move and no longer than it may take.
    pub(super) fn held(&self, setup: &Setup) -> Verdict {
        if !self.route.as_ref().is_some_and(|route| route.holding) || self.held {
            return Ok(());
        }
        let Some(moving) = &self.moving else {
            return Err("P9 hold: commands wait for nothing".to_owned());
        };
        let fence = setup.policy.fence;
        let bound = if fence.is_zero() { MS * 1000 } else { fence * 2 };
        let since = moving.began.max(self.woke.unwrap_or_default()).max(self.hiccup);
        if self.at > since + bound + MS * 250 {
            return Err(format!("P9 hold: commands wait since {:?}", moving.began));
        }
        Ok(())
    }

    /// Looks at what the engine says of each replica and link.
    pub(in crate::decision::sim) fn look(
        &mut self,
        setup: &Setup,
        world: &World,
        snapshot: &Snapshot,
    ) -> Verdict {
        if snapshot.pinned != self.pinned {
            return Err(format!(
                "P10 pin: {:?} was pinned, and {:?} is",
                self.pinned, snapshot.pinned
            ));
        }
        self.reads_served(setup, world, snapshot)?;
        if snapshot.active != self.active() {
            return Err(format!("snapshot: {:?} is active", snapshot.active));
        }
        let calm = self.at.saturating_sub(self.relayouted);
        for view in &snapshot.replicas {
            let id = view.id;
            let now = world.state(id);
            let blind = self.watched(world, id, |state| state == now && !state.answers());
            if blind >= self.bounds.blind && view.health != Health::Down {
                return Err(format!(
                    "P5 silence: {id} does not answer for {blind:?} and is {}",
                    view.health
                ));
            }
            if blind >= self.bounds.suspect && view.health == Health::Healthy {
                return Err(format!(
                    "P5 silence: {id} does not answer for {blind:?} and is healthy"
                ));
            }
            let refusing = self.watched(world, id, |state| !state.writes());
            if refusing >= self.bounds.write && view.fitness == Fitness::InSync {
                return Err(format!(
                    "P5 stale: {id} takes no writes for {refusing:?} and is in sync"
                ));
            }
            let heard = self.at.saturating_sub(self.told[id.index()].resubscribed);
            let mute = self.watched(world, id, |state| state == State::Mute).min(heard);
            if mute >= self.bounds.link * 2 && view.health == Health::Healthy {
                return Err(format!(
                    "P5 echo: {id} delivers nothing for {mute:?} and is healthy"
                ));
            }
            let well = world
                .well(self.at, id)
                .unwrap_or_default()
                .min(self.awake())
                .min(self.at.saturating_sub(self.hiccup))
                .min(calm);
            if well >= self.bounds.settle && view.health != Health::Healthy {
                return Err(format!(
                    "L2 recovery: {id} is well for {well:?} and is {}: {}",
                    view.health, view.reason
                ));
            }
            for link in view.links.iter().filter(|link| link.to != id) {
                let ways = &world.ways[id.index()][link.to.index()];
                let Some(way) = ways.get(&link.cell) else {
                    continue;
                };
                let passes = |way: Way| match way {
                    Way::Open(_) => true,
                    Way::Late(delay) => delay <= setup.policy.heartbeat_timeout,
                    Way::Cut => false,
                };
                let heard = self.at.saturating_sub(self.told[link.to.index()].resubscribed);
                // What comes late and steadily may be what the link is used to.
                let quiet = way.held(self.at, |way| way == Way::Cut).unwrap_or_default();
                // What waited in a hung one's sockets arrives when it goes on.
                let listens = world.nodes[link.to.index()]
                    .held(self.at, State::delivers)
                    .unwrap_or_default();
                let quiet = quiet.min(self.awake()).min(calm).min(heard).min(listens);
                if quiet >= self.bounds.link_between(world, id, link.to) && link.up {
                    return Err(format!(
                        "P5 link: {id}->{} shard {} delivers nothing fresh for {quiet:?} and is up",
                        link.to, link.shard
                    ));
                }
                let steady = way.held(self.at, |held| held == way.now());
                let open = steady.filter(|_| passes(way.now())).unwrap_or_default();
                let ends = [id, link.to].map(|end| world.well(self.at, end).unwrap_or_default());
                let open = open.min(self.awake()).min(calm).min(ends[0]).min(ends[1]);
                if open >= self.bounds.settle && !link.up {
                    return Err(format!(
                        "L2 recovery: link {id}->{} is well for {open:?} and is down",
                        link.to
                    ));
                }
            }
        }
        self.unanswered(setup)
    }
}
