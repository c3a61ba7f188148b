//! The oracle: the promises, checked against the truth after every call.
//!
//! It shares no code with the engine and keeps its own books: what was delivered and when, what moves are under way,
//! when the sidecar stalled. This file keeps them; `safety`, `reads`, `alarms` and `liveness` judge. Safety properties are
//! named after the promises of the design (P5 … P10), liveness properties L1 … L4. Where the truth cannot be known yet, it
//! waits for a bound computed from the policy.

mod alarms;
mod liveness;
mod reads;
mod safety;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::setup::Setup;
use super::world::{At, State, World};
use crate::decision::event::{
    Event, FailbackStep, Health, Input, Output, ProbeFailure, ProbeKind, Request, RestOutcome, RouteOrder,
    SwitchReason, Switched,
};
use crate::replica::{CellId, ReplicaId};

const MS: Duration = Duration::from_millis(1);

/// A promise broken, in words.
pub(super) type Verdict = Result<(), String>;

/// The bounds that follow from a policy, computed apart from the engine's.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    silence: Duration,
    /// A replica that does not answer is called down by then.
    blind: Duration,
    /// A replica that does not take writes is called not writable by then.
    write: Duration,
    /// A replica that does not answer is no longer called healthy by then.
    suspect: Duration,
    /// A heartbeat of this age is fresh.
    fresh: Duration,
    /// A link that delivers nothing fresh, and was never slow, is called down by then.
    link: Duration,
    /// All is known of a replica that has been well for so long.
    settle: Duration,
}

impl Bounds {
    fn new(setup: &Setup) -> Bounds {
        let policy = &setup.policy;
        let silence = policy.heartbeat_timeout.max(policy.probe_interval * 2);
        let link = policy.heartbeat_timeout.max(policy.heartbeat_interval * 3);
        Bounds {
            silence,
            blind: silence * 3 / 2 + policy.probe_interval * 2 + MS * 300,
            suspect: (silence / 2).max(policy.probe_interval * 3 / 2) + policy.probe_interval + MS * 300,
            write: silence + policy.probe_interval * 3 + setup.probe_timeout * 2 + MS * 300,
            fresh: policy.heartbeat_timeout,
            link: link + policy.heartbeat_timeout + MS * 300,
            settle: silence * 3 + policy.heartbeat_interval * 5 + setup.probe_timeout * 2 + MS * 300,
        }
    }

    /// The same for a link that may be used to being slow.
    fn link_between(&self, world: &World, a: ReplicaId, b: ReplicaId) -> Duration {
        let slowest = world.slowest(a, b, self.fresh);
        // What was under way when it broke still arrives.
        self.link.max(slowest * 4 + self.link / 2 + MS * 300)
    }
}

/// What the engine was told of one replica.
#[derive(Clone, Debug, Default)]
struct Told {
    ping_ok: Option<At>,
    ping_failed: bool,
    /// A PING or a write was answered.
    answered: Option<At>,
    /// Probes answered quickly: what the replica is used to is known after some.
    quick: u32,
    /// Writes refused, with none accepted since.
    refusals: u32,
    resubscribed: At,
    /// When its cluster last said that it is available, and that it is not.
    rest_yes: Option<At>,
    rest_no: Option<At>,
    /// When the engine called it down, having known it; and when that last ended.
    downs: Vec<At>,
    returned: At,
}

/// A planned move, as seen from outside.
#[derive(Clone, Debug)]
struct Moving {
    to: ReplicaId,
    asked: bool,
    /// For a pin: it ends where the operator said, or not at all.
    pin: bool,
    began: At,
    epoch: u64,
    drained: bool,
    fence: Option<(u64, At)>,
    cells: Vec<CellId>,
    heard: BTreeSet<CellId>,
}

/// The books.
pub(super) struct Oracle {
    at: At,
    /// When this life of the sidecar began.
    born: At,
    bounds: Bounds,
    told: Vec<Told>,
    /// The sidecar last woke from a stall, and what came of the active since.
    woke: Option<At>,
    settled: bool,
    last_call: At,
    /// A replica's layout last changed.
    relayouted: At,
    /// The sidecar last lost some time, though too little for tilt.
    hiccup: At,
    active_answered: bool,
    active_heard: bool,
    route: Option<RouteOrder>,
    /// Where reads go that do not go with the writes, and since when.
    trial: Option<(ReplicaId, At)>,
    /// When the share of those reads last grew.
    step: At,
    /// Failbacks taken back since the active last changed, and the newest.
    rollbacks: u32,
    rolled_back: At,
    /// The shortest that any policy of this life said.
    grace: Duration,
    soak: Duration,
    fence_id: u64,
    moving: Option<Moving>,
    /// The operator's request that this call brings.
    asking: Option<(u64, Request)>,
    pending: BTreeMap<u64, At>,
    answered: BTreeSet<u64>,
    pinned: Option<ReplicaId>,
    /// An operator holds.
    held: bool,
    /// An operator chose the active replica, which is not the preferred one.
    suspended: bool,
    /// The newest return to the preferred replica, and how many in a row did not last for one grace.
    failed_back: Option<At>,
    relapses: u32,
    switched: Option<(At, Switched)>,
    last_automatic: Option<(At, SwitchReason)>,
    /// Automatic switches that dwell counts.
    counted: Vec<At>,
    active_since: At,
    tilt: bool,
    reached: BTreeMap<&'static str, u64>,
}

impl Oracle {
    pub(super) fn new(setup: &Setup) -> Oracle {
        Oracle {
            at: At::ZERO,
            born: At::ZERO,
            bounds: Bounds::new(setup),
            told: vec![Told::default(); setup.members.len()],
            woke: None,
            settled: true,
            last_call: At::ZERO,
            hiccup: At::ZERO,
            relayouted: At::ZERO,
            active_answered: false,
            active_heard: false,
            route: None,
            trial: None,
            step: At::ZERO,
            rollbacks: 0,
            rolled_back: At::ZERO,
            grace: setup.policy.grace,
            soak: setup.policy.soak,
            fence_id: 0,
            moving: None,
            asking: None,
            pending: BTreeMap::new(),
            answered: BTreeSet::new(),
            pinned: setup.pinned,
            held: false,
            suspended: false,
            failed_back: None,
            relapses: 0,
            switched: None,
            last_automatic: None,
            counted: Vec::new(),
            active_since: At::ZERO,
            tilt: false,
            reached: BTreeMap::new(),
        }
    }

    /// The sidecar was restarted: all that it knew is gone, but for the pin.
    pub(super) fn restarted(&mut self, at: At, setup: &Setup) {
        let before = std::mem::replace(self, Oracle::new(setup));
        self.at = at;
        self.born = at;
        self.last_call = at;
        self.hiccup = at;
        self.active_since = at;
        self.relayouted = at;
        // Nobody watched before: as after a stall, but nothing forbids to act.
        self.woke = Some(at);
        self.pinned = before.pinned;
        self.answered = before.answered;
        self.reached = before.reached;
        self.reach("restart");
    }

    /// Another policy from now on.
    pub(super) fn repolicy(&mut self, setup: &Setup) {
        self.grace = self.grace.min(setup.policy.grace);
        self.soak = self.soak.min(setup.policy.soak);
        self.reach("policy");
    }

    /// The pin that a restart would find.
    pub(super) fn pinned(&self) -> Option<ReplicaId> {
        self.pinned
    }

    pub(super) fn reached(&self) -> &BTreeMap<&'static str, u64> {
        &self.reached
    }

    fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    fn active(&self) -> Option<ReplicaId> {
        self.route.as_ref().map(|route| route.write)
    }

    /// Files what the engine is about to be told.
    pub(super) fn before_call(&mut self, at: At, input: Option<&Input>, setup: &Setup) {
        self.at = at;
        if at.saturating_sub(self.last_call) > setup.policy.tilt_after {
            self.woke = Some(at);
            self.settled = false;
            self.active_answered = false;
            self.active_heard = false;
            self.reach("stall");
        }
        if at.saturating_sub(self.last_call) > MS * 110 {
            self.hiccup = at;
        }
        self.last_call = at;
        self.asking = None;
        self.settled |= self.proved_since_stall();
        let active = self.active();
        // What was asked or sent before the wake says nothing of now.
        let since_wake = self.awake() + MS * 3;
        match input {
            Some(Input::Probe {
                replica,
                kind: ProbeKind::Ping,
                outcome,
                ..
            }) => {
                let told = &mut self.told[replica.index()];
                told.ping_failed = outcome.is_err();
                if let Ok(rtt) = outcome {
                    told.quick += u32::from(*rtt < MS * 10);
                    told.ping_ok = Some(at);
                    told.answered = Some(at);
                    self.active_answered |= active == Some(*replica) && *rtt <= since_wake;
                }
            }
            Some(Input::Probe {
                replica,
                kind: ProbeKind::Write,
                outcome,
                ..
            }) => {
                let told = &mut self.told[replica.index()];
                match outcome {
                    Ok(_) => {
                        told.answered = Some(at);
                        told.refusals = 0;
                    }
                    Err(ProbeFailure::Rejected(_)) => told.refusals += 1,
                    Err(_) => {}
                }
            }
            Some(Input::HeartbeatHeard { from, to, age, .. }) if from == to => {
                self.active_heard |= active == Some(*from) && *age <= since_wake;
            }
            Some(Input::Rest { replica, outcome }) => {
                let told = &mut self.told[replica.index()];
                match outcome {
                    RestOutcome::Available => told.rest_yes = Some(at),
                    RestOutcome::Unavailable(_) => told.rest_no = Some(at),
                    RestOutcome::Unknown(_) => {}
                }
            }
            Some(Input::Subscribed { replica }) => self.told[replica.index()].resubscribed = at,
            Some(Input::Drained { epoch }) => {
                if let Some(moving) = self.moving.as_mut().filter(|moving| moving.epoch == *epoch) {
                    moving.drained = true;
                }
            }
            Some(Input::FenceHeard { id, to, cell }) => {
                if let Some(moving) = self.moving.as_mut()
                    && moving.to == *to
                    && moving.fence.is_some_and(|(awaited, _)| awaited == *id)
                {
                    moving.heard.insert(*cell);
                }
            }
            Some(Input::Operator { id, request }) => {
                self.pending.insert(*id, at);
                self.asking = Some((*id, request.clone()));
            }
            _ => {}
        }
        self.settled |= self.proved_since_stall();
    }

    /// The replica's layout changes: no call in time, but the engine may act.
    pub(super) fn relayout(&mut self, at: At) {
        self.at = at;
        self.relayouted = at;
        self.asking = None;
    }

    /// Whether this call brings an operator's wish to move, not answered yet.
    fn asked_to_move(&self) -> bool {
        self.asking.as_ref().is_some_and(|(id, request)| {
            let moves = matches!(
                request,
                Request::Switch { .. } | Request::Pin { .. } | Request::Failback
            );
            moves && self.pending.contains_key(id)
        })
    }

    /// Whether the sidecar's own stall still excuses the engine, and forbids it to act.
    fn tilted(&self) -> bool {
        !self.settled && !self.proved_since_stall()
    }

    /// Whether the engine may still be waiting for fresh evidence after a stall.
    fn excused(&self) -> bool {
        self.woke.is_some() && self.awake() < self.bounds.silence + MS * 100
    }

    fn proved_since_stall(&self) -> bool {
        let proved = self.active_answered && self.active_heard;
        proved
            || self
                .woke
                .is_none_or(|woke| self.at.saturating_sub(woke) + MS * 3 >= self.bounds.silence)
    }

    /// How long the sidecar has been awake: no more can be held against the engine.
    fn awake(&self) -> Duration {
        self.at.saturating_sub(self.woke.unwrap_or(At::ZERO))
    }

    /// For how long the truth about `id` has been `is` while somebody could watch.
    fn watched(&self, world: &World, id: ReplicaId, is: impl Fn(State) -> bool) -> Duration {
        let held = world.nodes[id.index()].held(self.at, is).unwrap_or_default();
        held.min(self.awake())
    }

    /// A PING of `id` was answered lately, none failed since, and it has been true ever since.
    fn answers_freshly(&self, setup: &Setup, world: &World, id: ReplicaId) -> bool {
        let told = &self.told[id.index()];
        let window = (self.bounds.silence / 2).max(setup.policy.probe_interval * 3 / 2);
        let answering = world.nodes[id.index()].held(self.at, State::answers);
        !told.ping_failed
            && told.ping_ok.is_some_and(|ok| {
                let ago = self.at.saturating_sub(ok);
                ago < window && answering.is_some_and(|answering| ago <= answering)
            })
    }

    /// Checks one output.
    pub(super) fn output(&mut self, setup: &Setup, world: &World, output: &Output) -> Verdict {
        match output {
            Output::Route(route) => self.on_route(setup, world, route),
            Output::PublishFence { id, .. } => {
                if *id <= self.fence_id {
                    return Err(format!("P9 fence: number {id} after {}", self.fence_id));
                }
                self.fence_id = *id;
                let Some(moving) = self.moving.as_mut() else {
                    return Err("P9 fence: published without a move".to_owned());
                };
                moving.fence = Some((*id, self.at));
                moving.cells = setup.cell_ids();
                Ok(())
            }
            Output::Answer { id, result } => self.on_answer(*id, result),
            Output::RememberPin(pin) => {
                self.pinned = *pin;
                Ok(())
            }
            Output::Event(event) => self.on_event(setup, world, event),
        }
    }

    fn on_route(&mut self, setup: &Setup, world: &World, route: &RouteOrder) -> Verdict {
        let epoch = self.route.as_ref().map_or(0, |route| route.epoch);
        if route.epoch != epoch + 1 {
            return Err(format!("epoch: {} after {epoch}", route.epoch));
        }
        if route
            .read
            .iter()
            .map(|(_, percent)| u32::from(*percent))
            .sum::<u32>()
            != 100
        {
            return Err(format!("read split: {:?}", route.read));
        }
        self.reads_proved(setup, world, route)?;
        let elsewhere = route.read.iter().find(|(to, _)| *to != route.write);
        self.trial = match (elsewhere, self.trial) {
            (Some((to, _)), Some((same, since))) if *to == same => Some((same, since)),
            (Some((to, _)), _) => {
                self.reach("reads elsewhere");
                self.step = self.at;
                Some((*to, self.at))
            }
            // A move holds everything; its end is what counts.
            (None, trial) if route.holding => trial,
            (None, _) => None,
        };
        self.route = Some(route.clone());
        Ok(())
    }

    fn on_answer(&mut self, id: u64, result: &Result<String, String>) -> Verdict {
        if self.pending.remove(&id).is_none() || !self.answered.insert(id) {
            return Err(format!("answer: {id} answered again or never asked: {result:?}"));
        }
        let asking = self.asking.clone().filter(|(asking, _)| *asking == id);
        let moves = asking.as_ref().is_some_and(|(_, request)| {
            matches!(
                request,
                Request::Switch { .. } | Request::Pin { .. } | Request::Failback
            )
        });
        if moves && self.moving.is_some() && result.is_ok() {
            return Err(format!("answer: {id} granted while another move was under way"));
        }
        match (&asking, result) {
            (Some((_, Request::Unpin)), Ok(_)) => self.suspended = false,
            (Some((_, Request::Hold)), Ok(_)) => self.held = true,
            (Some((_, Request::Resume)), Ok(_)) => self.held = false,
            (Some((_, Request::Pin { replica })), Ok(_)) if self.pinned != Some(*replica) => {
                return Err(format!("P10 pin: granted, but {:?} is pinned", self.pinned));
            }
            (Some((_, Request::Pin { .. })), Ok(_)) => self.suspended = false,
            _ => {}
        }
        Ok(())
    }

    fn on_event(&mut self, setup: &Setup, world: &World, event: &Event) -> Verdict {
        self.accounted_for(setup, world, event)?;
        match event {
            Event::Failback { step, what, .. } => {
                let back = match step {
                    FailbackStep::RolledBack => !what.ends_with("no longer wanted"),
                    FailbackStep::CalledOff => true,
                    _ => false,
                };
                if back {
                    self.rollbacks += 1;
                    self.rolled_back = self.at;
                    self.reach("rolled back");
                }
                Ok(())
            }
            Event::Health {
                replica, from, to, ..
            } => {
                let told = &mut self.told[replica.index()];
                match (from, to) {
                    (Health::Unknown, Health::Down) => {}
                    (_, Health::Down) => told.downs.push(self.at),
                    (Health::Down, _) => told.returned = self.at,
                    _ => {}
                }
                Ok(())
            }
            Event::Tilt { on, .. } => {
                self.tilt = *on;
                self.reach(if *on { "tilt" } else { "tilt over" });
                Ok(())
            }
            Event::Move { to, what, .. } if what.starts_with("started") => {
                let asked = self.asked_to_move();
                if self.tilted() && !asked {
                    return Err("tilt: an automatic move began".to_owned());
                }
                self.moving = Some(Moving {
                    to: *to,
                    asked,
                    pin: asked && matches!(self.asking, Some((_, Request::Pin { .. }))),
                    began: self.at,
                    epoch: self.route.as_ref().map_or(0, |route| route.epoch),
                    drained: false,
                    fence: None,
                    cells: Vec::new(),
                    heard: BTreeSet::new(),
                });
                match &self.asking {
                    Some((_, Request::Failback)) if asked => {
                        self.suspended = false;
                        self.fit_to_return(setup, world, *to)
                            .and_then(|()| self.cluster_agrees(setup, *to, true))
                    }
                    _ if asked => Ok(()),
                    _ if self.suspended => {
                        Err("P10 operator: a failback began though an operator chose the active".to_owned())
                    }
                    _ => self
                        .proved(setup, world, *to)
                        .and_then(|()| self.soaked(setup, *to)),
                }
            }
            Event::Move { what, .. } if what.starts_with("called off") => {
                self.moving = None;
                self.reach("called off");
                Ok(())
            }
            Event::Move { .. } => {
                self.reach("went on without");
                Ok(())
            }
            Event::Switched(switched) => self.on_switched(setup, world, switched),
            _ => Ok(()),
        }
    }

    fn on_switched(&mut self, setup: &Setup, world: &World, switched: &Switched) -> Verdict {
        self.reach(switched.reason.word());
        let Some(route) = self.route.clone() else {
            return Err("a switch without a route".to_owned());
        };
        if switched.epoch != route.epoch || switched.to != route.write || switched.from == Some(switched.to) {
            return Err(format!("switch: {switched:?} does not fit {route:?}"));
        }
        let moving = self.moving.take();
        let at_once = self.asked_to_move() && moving.is_none();
        let wished = moving
            .as_ref()
            .is_some_and(|moving| moving.asked && moving.to == switched.to);
        let asked = at_once || moving.as_ref().is_some_and(|moving| moving.asked);
        let reason = switched.reason;
        let automatic = match reason {
            SwitchReason::Startup | SwitchReason::Operator | SwitchReason::Pin => false,
            SwitchReason::Failback => !asked,
            _ => true,
        };
        if let Some(pin) = self.pinned
            && !matches!(reason, SwitchReason::Startup | SwitchReason::Pin)
        {
            return Err(format!("P10 pin: {pin} was left for {reason}"));
        }
        if self
            .pinned
            .is_some_and(|pin| reason == SwitchReason::Startup && pin != switched.to)
        {
            return Err("P10 pin: not honoured at the start".to_owned());
        }
        if automatic && self.tilted() {
            return Err(format!("tilt: switched for {reason}"));
        }
        if reason == SwitchReason::Startup
            && self.pinned.is_none()
            && switched.to != setup.preferred
            && self.answers_freshly(setup, world, setup.preferred)
        {
            return Err(format!(
                "P6 preference: began with {}, and the preferred one answers",
                switched.to
            ));
        }
        if let Some(moving) = moving.filter(|_| !route.abandon_others && reason != SwitchReason::Startup) {
            self.fenced(setup, &moving, switched)?;
        } else if at_once && !automatic && reason != SwitchReason::Startup {
            self.at_once(world, switched)?;
        }
        if automatic {
            self.target(setup, world, switched, wished)?;
            self.no_false_alarm(setup, world, switched)?;
            self.dwelt(setup, reason)?;
            self.damped(setup, switched)?;
            self.last_automatic = Some((self.at, reason));
        }
        self.suspended = match reason {
            SwitchReason::Operator => switched.to != setup.preferred,
            _ => false,
        };
        self.rollbacks = 0;
        if reason == SwitchReason::Failback {
            self.cluster_agrees(setup, switched.to, true)?;
            self.failed_back = Some(self.at);
        } else if automatic && switched.from == Some(setup.preferred) {
            let soon = self
                .failed_back
                .take()
                .is_some_and(|done| self.at < done + setup.policy.grace);
            self.relapses = if soon { self.relapses + 1 } else { 0 };
            if soon {
                self.reach("relapse");
            }
        }
        self.active_since = self.at;
        self.active_answered = false;
        self.active_heard = false;
        self.switched = Some((self.at, switched.clone()));
        Ok(())
    }
}
