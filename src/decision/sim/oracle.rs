//! The oracle: the promises, checked against the truth after every call.
//!
//! It shares no code with the engine and keeps its own books: what was delivered and when, what moves are under way,
//! when the sidecar stalled. Safety properties are named after the promises of the design (P5 … P10), liveness
//! properties L1 … L4. Where the truth cannot be known yet, it waits for a bound computed from the policy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::setup::Setup;
use super::world::{At, State, Way, World};
use crate::decision::event::{
    Event, Fitness, Health, Input, Output, ProbeKind, Request, RouteOrder, SwitchReason, Switched,
};
use crate::decision::policy::OnFenceTimeout;
use crate::decision::snapshot::Snapshot;
use crate::replica::{ReplicaId, ShardId};

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
    /// A link that delivers nothing fresh is called down by then.
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
            write: silence + policy.probe_interval * 3 + setup.probe_timeout * 2 + MS * 300,
            link: link + policy.heartbeat_timeout + MS * 300,
            settle: silence * 3 + policy.heartbeat_interval * 5 + setup.probe_timeout * 2 + MS * 300,
        }
    }
}

/// What the engine was told of one replica.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    ping_ok: Option<At>,
    ping_failed: bool,
    downs: u32,
    last_down: Option<At>,
    resubscribed: At,
}

/// A planned move, as seen from outside.
#[derive(Clone, Debug)]
struct Moving {
    to: ReplicaId,
    asked: bool,
    began: At,
    epoch: u64,
    drained: bool,
    fence: Option<(u64, At)>,
    shards: usize,
    heard: BTreeSet<ShardId>,
}

/// The books.
pub(super) struct Oracle {
    at: At,
    bounds: Bounds,
    told: Vec<Told>,
    /// The sidecar last woke from a stall, and what came of the active since.
    woke: Option<At>,
    settled: bool,
    last_call: At,
    /// The sidecar last lost some time, though too little for tilt.
    hiccup: At,
    active_answered: bool,
    active_heard: bool,
    route: Option<RouteOrder>,
    fence_id: u64,
    moving: Option<Moving>,
    /// The operator's request that this call brings.
    asking: Option<(u64, Request)>,
    pending: BTreeMap<u64, At>,
    answered: BTreeSet<u64>,
    pinned: Option<ReplicaId>,
    suspended: bool,
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
            bounds: Bounds::new(setup),
            told: vec![Told::default(); setup.members.len()],
            woke: None,
            settled: true,
            last_call: At::ZERO,
            hiccup: At::ZERO,
            active_answered: false,
            active_heard: false,
            route: None,
            fence_id: 0,
            moving: None,
            asking: None,
            pending: BTreeMap::new(),
            answered: BTreeSet::new(),
            pinned: setup.pinned,
            suspended: false,
            switched: None,
            last_automatic: None,
            counted: Vec::new(),
            active_since: At::ZERO,
            tilt: false,
            reached: BTreeMap::new(),
        }
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
        match input {
            Some(Input::Probe {
                replica,
                kind: ProbeKind::Ping,
                outcome,
                ..
            }) => {
                let told = &mut self.told[replica.index()];
                told.ping_failed = outcome.is_err();
                if outcome.is_ok() {
                    told.ping_ok = Some(at);
                    self.active_answered |= active == Some(*replica);
                }
            }
            Some(Input::HeartbeatHeard { from, to, age, .. }) if from == to => {
                self.active_heard |= active == Some(*from) && *age <= setup.policy.heartbeat_timeout;
            }
            Some(Input::Subscribed { replica }) => self.told[replica.index()].resubscribed = at,
            Some(Input::Drained { epoch }) => {
                if let Some(moving) = self.moving.as_mut().filter(|moving| moving.epoch == *epoch) {
                    moving.drained = true;
                }
            }
            Some(Input::FenceHeard { id, to, shard }) => {
                if let Some(moving) = self.moving.as_mut()
                    && moving.to == *to
                    && moving.fence.is_some_and(|(awaited, _)| awaited == *id)
                {
                    moving.heard.insert(*shard);
                }
            }
            Some(Input::Operator { id, request }) => {
                self.pending.insert(*id, at);
                self.asking = Some((*id, request.clone()));
            }
            _ => {}
        }
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

    /// A PING of `id` was answered lately, none failed since, and it is true.
    fn answers_freshly(&self, setup: &Setup, world: &World, id: ReplicaId) -> bool {
        let told = &self.told[id.index()];
        let window = (self.bounds.silence / 2).max(setup.policy.probe_interval * 3 / 2);
        world.state(id).answers()
            && !told.ping_failed
            && told.ping_ok.is_some_and(|ok| self.at.saturating_sub(ok) < window)
    }

    /// Checks one output.
    pub(super) fn output(&mut self, setup: &Setup, world: &World, output: &Output) -> Verdict {
        match output {
            Output::Route(route) => self.on_route(route),
            Output::PublishFence { id, on } => {
                if *id <= self.fence_id {
                    return Err(format!("P9 fence: number {id} after {}", self.fence_id));
                }
                self.fence_id = *id;
                let Some(moving) = self.moving.as_mut() else {
                    return Err("P9 fence: published without a move".to_owned());
                };
                moving.fence = Some((*id, self.at));
                moving.shards = setup.shards(*on);
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

    fn on_route(&mut self, route: &RouteOrder) -> Verdict {
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
        self.route = Some(route.clone());
        Ok(())
    }

    fn on_answer(&mut self, id: u64, result: &Result<String, String>) -> Verdict {
        if self.pending.remove(&id).is_none() || !self.answered.insert(id) {
            return Err(format!("answer: {id} answered again or never asked: {result:?}"));
        }
        let moves = self.asking.as_ref().is_some_and(|(asking, request)| {
            *asking == id
                && matches!(
                    request,
                    Request::Switch { .. } | Request::Pin { .. } | Request::Failback
                )
        });
        if moves && self.moving.is_some() && result.is_ok() {
            return Err(format!("answer: {id} granted while another move was under way"));
        }
        match (&self.asking, result) {
            (Some((_, Request::Unpin)), Ok(_)) => self.suspended = false,
            (Some((_, Request::Pin { replica })), Ok(_)) if self.pinned != Some(*replica) => {
                return Err(format!("P10 pin: granted, but {:?} is pinned", self.pinned));
            }
            _ => {}
        }
        Ok(())
    }

    fn on_event(&mut self, setup: &Setup, world: &World, event: &Event) -> Verdict {
        match event {
            Event::Health {
                replica,
                to: Health::Down,
                from,
                ..
            } if *from != Health::Unknown => {
                let told = &mut self.told[replica.index()];
                told.downs += 1;
                told.last_down = Some(self.at);
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
                    began: self.at,
                    epoch: self.route.as_ref().map_or(0, |route| route.epoch),
                    drained: false,
                    fence: None,
                    shards: 0,
                    heard: BTreeSet::new(),
                });
                if asked {
                    Ok(())
                } else {
                    self.proved(setup, world, *to)
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

    /// P8: an automatic failback has had its whole grace of truth.
    fn proved(&self, setup: &Setup, world: &World, to: ReplicaId) -> Verdict {
        let grace = setup.policy.grace;
        let fail = |what: &str, end: At| {
            Err(format!(
                "P8 failback: began at {:?}, {what} until {end:?}, grace {grace:?}",
                self.at
            ))
        };
        if to != setup.preferred {
            return Err(format!("P8 failback: to {to}, which is not preferred"));
        }
        if self.at < self.active_since + grace {
            return fail("another replica became active only", self.active_since);
        }
        let state = &world.nodes[to.index()];
        let unfit = |state: State| !state.fit();
        if let Some(end) = state.last_stretch(self.at, self.bounds.write * 2, unfit)
            && self.at < end + grace
            && self.woke.is_none_or(|woke| woke + self.bounds.write < end)
        {
            return fail("the replica was unfit", end);
        }
        if let Some(woke) = self.woke.filter(|woke| self.at < *woke + grace) {
            return fail("the sidecar slept", woke);
        }
        let active = self.active().unwrap_or(to);
        for (from, to) in [(active, to), (to, active)] {
            for way in &world.ways[from.index()][to.index()] {
                let bad = |way: Way| !matches!(way, Way::Open(_));
                if let Some(end) = way.last_stretch(self.at, self.bounds.link * 2, bad)
                    && self.at < end + grace
                {
                    return fail(&format!("{from}->{to} was bad"), end);
                }
            }
        }
        Ok(())
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
        if let Some(moving) = moving.filter(|_| !route.abandon_others && reason != SwitchReason::Startup) {
            self.fenced(setup, &moving, switched)?;
        } else if at_once && !automatic && reason != SwitchReason::Startup {
            self.at_once(world, switched)?;
        }
        if automatic {
            self.target(setup, world, switched)?;
            self.no_false_alarm(setup, world, switched)?;
            self.dwelt(setup, reason)?;
            self.last_automatic = Some((self.at, reason));
        }
        self.suspended = match reason {
            SwitchReason::Operator => switched.to != setup.preferred,
            _ => false,
        };
        self.active_since = self.at;
        self.active_answered = false;
        self.active_heard = false;
        self.switched = Some((self.at, switched.clone()));
        Ok(())
    }

    /// P9: drained, and the fence heard on every shard, unless the policy says otherwise.
    fn fenced(&self, setup: &Setup, moving: &Moving, switched: &Switched) -> Verdict {
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
        let excused = proceed && waited >= drain;
        if !moving.drained && !excused {
            return Err("P9 fence: not drained".to_owned());
        }
        if policy.fence.is_zero() {
            return Ok(());
        }
        let Some((_, since)) = moving.fence else {
            return Err("P9 fence: none was published".to_owned());
        };
        let heard = moving.heard.len() == moving.shards;
        let excused = proceed && self.at.saturating_sub(since) >= policy.fence;
        if !heard && !excused {
            return Err(format!(
                "P9 fence: heard for {} of {} shards",
                moving.heard.len(),
                moving.shards
            ));
        }
        if heard != switched.fence.is_some() {
            return Err(format!("P9 fence: heard is {heard}, told {:?}", switched.fence));
        }
        Ok(())
    }

    /// An operator's move without hold and fence needs an end that does not answer.
    fn at_once(&self, world: &World, switched: &Switched) -> Verdict {
        let window = self.bounds.settle * 2 + self.bounds.blind;
        let from = self.at.saturating_sub(window);
        let ill = |id: ReplicaId| world.nodes[id.index()].any_since(from, |state| state != State::Up);
        if switched.from.is_some_and(ill) || ill(switched.to) || self.woke.is_some_and(|woke| woke > from) {
            return Ok(());
        }
        Err("P9 fence: an operator's move between well replicas was not planned".to_owned())
    }

    /// P5, P6: the target answers freshly, and is not one that is bad while a well one is there.
    fn target(&self, setup: &Setup, world: &World, switched: &Switched) -> Verdict {
        let to = switched.to;
        let told = &self.told[to.index()];
        let fresh = told
            .ping_ok
            .is_some_and(|ok| self.at.saturating_sub(ok) < self.bounds.silence);
        if !fresh && self.awake() >= self.bounds.silence {
            return Err(format!(
                "P5 evidence: {to} was chosen, its last PING answer is {:?}",
                told.ping_ok
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
        if better && self.watched(world, to, |state| !state.writes()) >= self.bounds.write {
            return Err(format!(
                "P6 target: {to} refuses writes, and a well one was there"
            ));
        }
        Ok(())
    }

    /// A switch off a replica needs something to have been wrong with it.
    fn no_false_alarm(&self, setup: &Setup, world: &World, switched: &Switched) -> Verdict {
        let Some(from) = switched
            .from
            .filter(|_| switched.reason != SwitchReason::Failback)
        else {
            return Ok(());
        };
        let window = self.bounds.settle + self.bounds.write;
        let since = self.at.saturating_sub(window);
        let state = &world.nodes[from.index()];
        let wrong = match switched.reason {
            SwitchReason::Refused => state.any_since(since, |state| state == State::Dead),
            SwitchReason::Silent => state.any_since(since, |state| !state.fit()),
            SwitchReason::Failing => state.any_since(since, |state| state == State::Loading),
            SwitchReason::Unwritable => state.any_since(since, |state| !state.writes()),
            SwitchReason::EchoLost => state.any_since(since, |state| state != State::Up),
            SwitchReason::Isolated => setup.ids().filter(|&other| other != from).all(|other| {
                world
                    .pair_open(self.at, from, other)
                    .is_none_or(|open| open < self.bounds.link)
                    || world.nodes[other.index()].any_since(since, |state| state != State::Up)
            }),
            _ => state.any_since(since, |state| !state.fit()),
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
    fn dwelt(&mut self, setup: &Setup, reason: SwitchReason) -> Verdict {
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
            && self.at < last + dwell
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
            let allowed = self.at.saturating_sub(first).as_millis() / dwell.as_millis();
            if count as u128 > allowed {
                return Err(format!(
                    "P7 dwell: {count} switches more since {first:?}, {allowed} allowed"
                ));
            }
        }
        Ok(())
    }

    /// Looks at what the engine says of each replica and link.
    pub(super) fn look(
        &mut self,
        setup: &Setup,
        world: &World,
        snapshot: &Snapshot,
        relayouted: At,
    ) -> Verdict {
        if snapshot.pinned != self.pinned || snapshot.active != self.active() {
            return Err(format!(
                "snapshot: {:?} pinned {:?}",
                snapshot.active, snapshot.pinned
            ));
        }
        let calm = self.at.saturating_sub(relayouted);
        for view in &snapshot.replicas {
            let id = view.id;
            let blind = self.watched(world, id, |state| !state.answers());
            if blind >= self.bounds.blind && view.health != Health::Down {
                return Err(format!(
                    "P5 silence: {id} does not answer for {blind:?} and is {}",
                    view.health
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
                let Some(way) = world.ways[id.index()][link.to.index()].get(usize::from(link.shard.0)) else {
                    continue;
                };
                let passes = |way: Way| match way {
                    Way::Open(_) => true,
                    Way::Late(delay) => delay <= setup.policy.heartbeat_timeout,
                    Way::Cut => false,
                };
                let heard = self.at.saturating_sub(self.told[link.to.index()].resubscribed);
                let quiet = way.held(self.at, |way| !passes(way)).unwrap_or_default();
                let quiet = quiet.min(self.awake()).min(calm).min(heard);
                if quiet >= self.bounds.link && link.up {
                    return Err(format!(
                        "P5 link: {id}->{} shard {} delivers nothing fresh for {quiet:?} and is up",
                        link.to, link.shard
                    ));
                }
                let open = way.held(self.at, passes).unwrap_or_default();
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

    fn unanswered(&self, setup: &Setup) -> Verdict {
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

    /// L1, L3: a bad active is left as soon as the rules allow. Checked after every call.
    pub(super) fn liveness(&self, setup: &Setup, world: &World, relayouted: At) -> Verdict {
        let Some(active) = self.active() else {
            let bound = setup.policy.heartbeat_timeout.min(MS * 1000) + MS * 200;
            if self.at > bound && self.woke.is_none() {
                return Err("L1 startup: there is still no route".to_owned());
            }
            return Ok(());
        };
        if self.pinned.is_some() || self.excused() {
            return Ok(());
        }
        // A last survivor that answered this very moment takes the traffic in the same call: no grace, no dwell.
        let survivor = setup
            .ids()
            .find(|&id| id != active && self.answers_freshly(setup, world, id));
        let Some(survivor) = survivor else { return Ok(()) };
        let blind = self.watched(world, active, |state| !state.answers());
        let active_for = self.at.saturating_sub(self.active_since);
        if blind.min(active_for) >= self.bounds.blind {
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
        self.unforced(setup, world, active, relayouted)
    }

    /// A replica that refuses writes, or whose pub/sub is gone, is left once dwell allows and a well one is there.
    fn unforced(&self, setup: &Setup, world: &World, active: ReplicaId, relayouted: At) -> Verdict {
        let refusing = self.watched(world, active, |state| state.answers() && !state.writes());
        let mute = self.watched(world, active, |state| state == State::Mute);
        let heard = self.at.saturating_sub(self.told[active.index()].resubscribed);
        let bad = refusing >= self.bounds.write || mute.min(heard) >= self.bounds.link * 2;
        let dwelt = self
            .last_automatic
            .is_none_or(|(at, _)| self.at >= at + setup.policy.dwell + MS * 200);
        let quiet = self.at.saturating_sub(world.noise[active.index()]) >= self.bounds.settle;
        if !bad || !dwelt || !quiet || self.moving.is_some() {
            return Ok(());
        }
        let calm = self.awake().min(self.at.saturating_sub(relayouted));
        let fit = setup.ids().find(|&id| {
            let told = &self.told[id.index()];
            let undamped = told.downs < 2
                || told
                    .last_down
                    .is_some_and(|down| self.at > down + setup.policy.dwell * 8 * 12);
            id != active
                && undamped
                && self.answers_freshly(setup, world, id)
                && world.well(self.at, id).unwrap_or_default().min(calm) >= self.bounds.settle
                && setup.ids().filter(|&other| other != id).all(|other| {
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

    /// L4: what is still not as it should be, some time after everything was mended.
    pub(super) fn settled(&self, setup: &Setup, snapshot: &Snapshot) -> Result<(), String> {
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
