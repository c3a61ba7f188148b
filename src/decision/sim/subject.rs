//! The engine under test, and every way in which it is broken by hand to show that the oracle bites.
//!
//! The engine itself knows nothing of this: it is broken at its seam. A sabotage tells it something else than what
//! happened, gives it another policy than the world was promised, reaches into its state between two calls, or changes
//! what it said. The oracle always sees what really happened and what really came out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::setup::Setup;
use crate::decision::damping::Damping;
use crate::decision::engine::Engine;
use crate::decision::event::{
    Event, Health, Input, Output, PassiveEvidence, ProbeFailure, ProbeKind, RestOutcome, RouteOrder,
    SwitchReason,
};
use crate::decision::policy::{OnIsolated, OnSlow, Policy};
use crate::decision::rtt::RoundTrips;
use crate::decision::snapshot::Snapshot;
use crate::replica::{CellId, ReplicaId, ShardId};

const FOREVER: Duration = Duration::from_secs(24 * 3600);

macro_rules! sabotages {
    ($($(#[$doc:meta])* $name:ident => $caught_by:literal),+ $(,)?) => {
        /// One way to break the engine.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Sabotage { $($(#[$doc])* $name),+ }

        impl Sabotage {
            pub(super) const ALL: &[Sabotage] = &[$(Sabotage::$name),+];

            /// How the property that must catch it begins.
            pub(super) fn caught_by(self) -> &'static str {
                match self { $(Sabotage::$name => $caught_by),+ }
            }
        }
    };
}

sabotages! {
    /// Automatic switches as often as they like.
    NoDwell => "P7 dwell",
    /// A heartbeat from a backlog counts as fresh.
    LateIsFresh => "P8",
    /// The own echo is taken for granted once PUBLISH is accepted.
    EchoAssumed => "P5 echo",
    /// A refused write is taken for an accepted one.
    WritesAssumed => "P5 stale",
    /// A replica is silent only after three times the window.
    SlowToNotice => "P5 silence",
    /// One broken connection counts as a replica that nobody listens on.
    OneBreakIsDown => "P5 false alarm",
    /// An isolated active is left, whatever the policy says.
    LeavesWhenIsolated => "P5 false alarm: isolated",
    /// An isolated active is kept, whatever the policy says.
    StaysWhenIsolated => "L1 unfit active",
    /// Own stalls are not noticed.
    TiltIgnored => "tilt: the sidecar stood still",
    /// Own stalls are told, and what is known before evidence is fresh is acted on all the same.
    ActsInTilt => "tilt: switched",
    /// Tilt never ends by time.
    TiltForever => "L3 tilt",
    /// Dwell holds even when nobody else answers.
    DwellRefusesLastSurvivor => "L1",
    /// A replica that returns is not trusted for a grace, though nobody else answers.
    GraceRefusesLastSurvivor => "L1 last survivor",
    /// Of those that answer, the worst is chosen.
    WorstTarget => "P6 target",
    /// Of those that are well, the lightest is chosen.
    LightestTarget => "P6 preference",
    /// Failback without a grace.
    GraceIgnored => "P8 failback",
    /// Failback to a replica that lags.
    LagIgnored => "P8 failback",
    /// A replica that hears itself is taken to be heard everywhere.
    LinksAssumed => "P5 link",
    /// A replica that keeps falling is trusted as soon as any other.
    NoDamping => "P7 flapping",
    /// A failback that did not last makes the next one no later.
    RelapseForgotten => "P7 relapse",
    /// A drain under an old route counts for the new one.
    EpochNotChecked => "P9 fence: not drained",
    /// The fence is published before the drain.
    DrainNotAwaited => "P9 fence: not drained",
    /// The fence is not waited for.
    FenceNotAwaited => "P9 fence: heard",
    /// An old fence counts for the new one.
    OldFenceCounts => "P9 fence: heard",
    /// One shard's fence counts for all.
    OneShardIsEnough => "P9 fence: heard",
    /// A planned move waits as long as it takes.
    HoldsForever => "P9 hold",
    /// A pin is obeyed once, and then forgotten when the engine decides.
    PinIgnored => "P10 pin",
    /// A pin does not survive a restart.
    PinForgotten => "P10 pin",
    /// An operator's choice is undone by a failback.
    ChoiceUndone => "P10 operator",
    /// An operator is answered twice.
    AnswersTwice => "answer",
    /// An operator is not answered when a move is called off.
    RefusalsUnanswered => "answer",
    /// A failback taken back makes the next one no later.
    RollbackForgotten => "P7 rollback",
    /// What a cluster says of its database is not listened to.
    RestIgnored => "P8 rest",
    /// The reads go all at once.
    StepsSkipped => "P8 steps",
    /// The steps are over as soon as they begin.
    SoakSkipped => "P8 steps",
    /// Reads on trial, or on the nearest, stay there whatever it comes to.
    ReadsStay => "P8 relapse",
    /// Reads go to whoever is there.
    ReadsAnywhere => "P8",
    /// A slow active is left, whatever the policy says.
    SlowIsLeft => "P5 false alarm: slow",
    /// The active is called slow though all are.
    OneOfAllSlow => "P5 slow",
    /// Error answers to applications are taken for a probe's.
    ErrorsEvict => "P5",
    /// A new layout makes all evidence look old.
    LayoutAlarms => "P5",
    /// The link that goes the other way is called down.
    WrongDirection => "P5 link alarm",
    /// A link may be silent for four times as long as it should.
    WideWindow => "P5 link:",
    /// A link is called down for what is lost now and then.
    NarrowWindow => "P5 link alarm",
    /// The policy stays as it was.
    PolicyNotTaken => "P8 reads",
    /// A route is published under the epoch of the one before.
    EpochReused => "epoch",
}

/// The engine, sound or broken.
pub(super) struct Subject {
    engine: Engine,
    sabotage: Option<Sabotage>,
    outputs: VecDeque<Output>,
    /// To be told in the next call.
    pending: Vec<Input>,
    epoch: u64,
    fence: u64,
    /// By replica: when it last returned, for sabotages that do not trust it then.
    returned: Vec<Option<Instant>>,
    /// Numbers of invented heartbeats.
    invented: u64,
    grace: Duration,
    /// The newest that does not hold.
    route: Option<RouteOrder>,
}

impl Subject {
    pub(super) fn new(
        setup: &Setup,
        pinned: Option<ReplicaId>,
        sabotage: Option<Sabotage>,
        now: Instant,
    ) -> Subject {
        let policy = broken_policy(setup.policy.clone(), sabotage);
        let mut engine = Engine::new(policy, setup.members.clone(), pinned, now);
        if sabotage == Some(Sabotage::LightestTarget) {
            let heaviest = setup
                .members
                .iter()
                .map(|member| member.weight)
                .max()
                .unwrap_or(0);
            for member in &mut engine.members {
                member.weight = heaviest - member.weight;
            }
        }
        match sabotage {
            Some(Sabotage::WideWindow) => engine.windows.link *= 4,
            Some(Sabotage::NarrowWindow) => engine.windows.link = setup.policy.heartbeat_interval * 3 / 2,
            _ => {}
        }
        Subject {
            engine,
            sabotage,
            outputs: VecDeque::new(),
            pending: Vec::new(),
            epoch: 0,
            fence: 0,
            returned: vec![None; setup.members.len()],
            invented: 1 << 40,
            grace: setup.policy.grace,
            route: None,
        }
    }

    /// A new one that remembers the pin.
    pub(super) fn restarted(&self, setup: &Setup, pinned: Option<ReplicaId>, now: Instant) -> Subject {
        let pinned = pinned.filter(|_| self.sabotage != Some(Sabotage::PinForgotten));
        Subject::new(setup, pinned, self.sabotage, now)
    }

    pub(super) fn observe(&mut self, input: Input, now: Instant) {
        match self.sabotage {
            Some(sabotage) => {
                let as_old = sabotage == Sabotage::LayoutAlarms && matches!(input, Input::Layout(_));
                if as_old {
                    let policy = self.engine.policy.clone();
                    let strict = Policy {
                        heartbeat_timeout: Duration::from_millis(1),
                        heartbeat_interval: Duration::from_millis(1),
                        ..policy.clone()
                    };
                    self.engine.set_policy(strict, now);
                    self.engine.set_policy(policy, now);
                }
                for input in self.told_instead(sabotage, input, now) {
                    let operator = matches!(input, Input::Operator { .. });
                    self.broken_call(sabotage, operator, now, |engine| engine.observe(input, now));
                }
            }
            None => self.engine.observe(input, now),
        }
    }

    pub(super) fn set_policy(&mut self, policy: Policy, now: Instant) {
        if self.sabotage != Some(Sabotage::PolicyNotTaken) {
            self.grace = policy.grace;
            self.engine.set_policy(broken_policy(policy, self.sabotage), now);
        }
    }

    pub(super) fn on_timer(&mut self, now: Instant) {
        match self.sabotage {
            Some(sabotage) => self.broken_call(sabotage, false, now, |engine| engine.on_timer(now)),
            None => self.engine.on_timer(now),
        }
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.engine.next_timer()
    }

    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        self.engine.snapshot(now)
    }

    pub(super) fn poll(&mut self) -> Option<Output> {
        match self.sabotage {
            Some(sabotage) => {
                self.say_instead(sabotage);
                self.outputs.pop_front()
            }
            None => self.engine.poll(),
        }
    }

    fn beat(&mut self, from: ReplicaId, to: ReplicaId, cell: CellId, seq: u64, sent: Instant) -> Input {
        self.invented += 1;
        Input::HeartbeatHeard {
            from,
            to,
            cell,
            seq,
            age: Duration::from_millis(1),
            sent,
        }
    }

    /// What the engine is told in place of `input`.
    fn told_instead(&mut self, sabotage: Sabotage, input: Input, now: Instant) -> Vec<Input> {
        match (sabotage, input) {
            (
                Sabotage::LateIsFresh,
                Input::HeartbeatHeard {
                    from, to, cell, seq, ..
                },
            ) => vec![self.beat(from, to, cell, seq, now)],
            (Sabotage::EchoAssumed, Input::HeartbeatSent { on, cell, seq }) => {
                vec![
                    Input::HeartbeatSent { on, cell, seq },
                    self.beat(on, on, cell, seq, now),
                ]
            }
            (
                Sabotage::LinksAssumed,
                Input::HeartbeatHeard {
                    from,
                    to,
                    cell,
                    seq,
                    age,
                    sent,
                },
            ) if from == to => {
                let mut told = vec![Input::HeartbeatHeard {
                    from,
                    to,
                    cell,
                    seq,
                    age,
                    sent,
                }];
                for other in self.engine.ids().filter(|&other| other != from) {
                    told.push(self.beat(from, other, cell, seq, sent));
                }
                told
            }
            (
                Sabotage::WritesAssumed,
                Input::Probe {
                    replica,
                    shard,
                    kind: ProbeKind::Write,
                    outcome: Err(ProbeFailure::Rejected(_)),
                },
            ) => vec![Input::Probe {
                replica,
                shard,
                kind: ProbeKind::Write,
                outcome: Ok(Duration::from_millis(1)),
            }],
            (
                Sabotage::OneBreakIsDown,
                Input::Passive {
                    replica,
                    seen: PassiveEvidence::Broken,
                },
            ) => vec![
                Input::Passive {
                    replica,
                    seen: PassiveEvidence::Refused,
                };
                3
            ],
            (
                Sabotage::GraceRefusesLastSurvivor,
                Input::Probe {
                    replica,
                    shard,
                    kind: ProbeKind::Ping,
                    outcome,
                },
            ) => {
                let down = self.engine.replicas[replica.index()].standing.health == Health::Down;
                let returned = &mut self.returned[replica.index()];
                let outcome = match outcome {
                    Ok(_) if down && now < *returned.get_or_insert(now) + self.grace => {
                        Err(ProbeFailure::Timeout)
                    }
                    outcome => {
                        *returned = None;
                        outcome
                    }
                };
                vec![Input::Probe {
                    replica,
                    shard,
                    kind: ProbeKind::Ping,
                    outcome,
                }]
            }
            (Sabotage::RestIgnored, Input::Rest { replica, .. }) => vec![Input::Rest {
                replica,
                outcome: RestOutcome::Available,
            }],
            (
                Sabotage::ErrorsEvict,
                Input::Passive {
                    replica,
                    seen: PassiveEvidence::Unready,
                },
            ) => vec![Input::Probe {
                replica,
                shard: ShardId::ONLY,
                kind: ProbeKind::Ping,
                outcome: Err(ProbeFailure::Rejected("LOADING".to_owned())),
            }],
            (Sabotage::EpochNotChecked, Input::Drained { .. }) => vec![Input::Drained { epoch: self.epoch }],
            (Sabotage::OldFenceCounts, Input::FenceHeard { to, cell, .. }) => vec![Input::FenceHeard {
                id: self.fence,
                to,
                cell,
            }],
            (Sabotage::OneShardIsEnough, Input::FenceHeard { id, to, .. }) => {
                let cells = self.engine.map.cells.iter();
                cells
                    .map(|(cell, _)| Input::FenceHeard { id, to, cell: *cell })
                    .collect()
            }
            (_, input) => vec![input],
        }
    }

    /// One call, with what is reached into before and put back after.
    fn broken_call(
        &mut self,
        sabotage: Sabotage,
        operator: bool,
        now: Instant,
        call: impl FnOnce(&mut Engine),
    ) {
        let engine = &mut self.engine;
        for input in std::mem::take(&mut self.pending) {
            engine.observe(input, now);
        }
        let pinned = engine.pinned;
        match sabotage {
            Sabotage::NoDamping => {
                for state in &mut engine.replicas {
                    state.damping = Damping::default();
                }
            }
            Sabotage::RelapseForgotten | Sabotage::RollbackForgotten => engine.failback.factor = 1,
            Sabotage::OneOfAllSlow => {
                for (id, state) in engine.ids().zip(&mut engine.replicas) {
                    if engine.active != Some(id) {
                        state.evidence.round_trips = RoundTrips::default();
                    }
                }
            }
            Sabotage::ChoiceUndone => engine.failback.suspended = false,
            Sabotage::PinIgnored if !operator && engine.active.is_some() => engine.pinned = None,
            Sabotage::DwellRefusesLastSurvivor if !operator => {
                let dwells = engine
                    .dwell_ends()
                    .is_some_and(|ends| now < engine.clock.on_the_wall(ends));
                if dwells && pinned.is_none() && engine.moving.is_none() {
                    engine.pinned = engine.active;
                }
            }
            Sabotage::ActsInTilt => engine.tilt = None,
            Sabotage::TiltForever => {
                let last = engine.clock.last();
                if let Some(tilt) = &mut engine.tilt {
                    tilt.since = last;
                }
            }
            _ => {}
        }
        let meant = engine.pinned;
        call(engine);
        if engine.pinned == meant {
            engine.pinned = pinned;
        }
    }

    /// Moves what the engine said on, changed.
    fn say_instead(&mut self, sabotage: Sabotage) {
        let mut said: Vec<Output> = std::iter::from_fn(|| self.engine.poll()).collect();
        if sabotage == Sabotage::WorstTarget {
            self.choose_the_worst(&mut said);
        }
        for mut output in said {
            let mut again = None;
            match (sabotage, &mut output) {
                (Sabotage::EpochReused, Output::Route(route)) if route.epoch % 4 == 3 => route.epoch -= 1,
                (Sabotage::ReadsStay, Output::Route(route)) if !route.holding => {
                    let before = self.route.as_ref().filter(|before| before.write == route.write);
                    if let Some(before) = before.filter(|_| route.read == [(route.write, 100)]) {
                        route.read.clone_from(&before.read);
                    }
                }
                (Sabotage::ReadsAnywhere, Output::Route(route)) => {
                    if let Some((to, _)) = self
                        .engine
                        .members
                        .iter()
                        .map(|m| (m.id, ()))
                        .find(|(id, ())| *id != route.write)
                    {
                        route.read = vec![(to, 100)];
                    }
                }
                (
                    Sabotage::WrongDirection,
                    Output::Event(Event::Link {
                        from,
                        to,
                        shard,
                        to_shard,
                        up: false,
                        ..
                    }),
                ) => {
                    std::mem::swap(from, to);
                    std::mem::swap(shard, to_shard);
                }
                (Sabotage::AnswersTwice, Output::Answer { .. }) => again = Some(output.clone()),
                (Sabotage::RefusalsUnanswered, Output::Answer { result: Err(why), .. })
                    if why.starts_with("called off") =>
                {
                    continue;
                }
                (Sabotage::FenceNotAwaited, Output::PublishFence { id, .. }) => {
                    let to = self.engine.moving.as_ref().map(|moving| moving.to);
                    for (cell, _) in &self.engine.map.cells {
                        if let Some(to) = to {
                            let heard = Input::FenceHeard {
                                id: *id,
                                to,
                                cell: *cell,
                            };
                            self.pending.push(heard);
                        }
                    }
                }
                (Sabotage::DrainNotAwaited, Output::Route(route)) if route.holding => {
                    self.pending.push(Input::Drained { epoch: route.epoch });
                }
                _ => {}
            }
            match &output {
                Output::Route(route) => {
                    self.epoch = route.epoch;
                    if !route.holding {
                        self.route = Some(route.clone());
                    }
                }
                Output::PublishFence { id, .. } => self.fence = *id,
                _ => {}
            }
            self.outputs.push_back(output);
            self.outputs.extend(again);
        }
    }

    /// Turns an automatic switch to the worst of the replicas that it could have gone to.
    fn choose_the_worst(&mut self, said: &mut [Output]) {
        let Some((from, to)) = said.iter().find_map(|output| match output {
            Output::Event(Event::Switched(switched)) if switched.reason != SwitchReason::Failback => {
                Some((switched.from?, switched.to))
            }
            _ => None,
        }) else {
            return;
        };
        let engine = &mut self.engine;
        if engine.pinned.is_some() || engine.moving.is_some() {
            return;
        }
        let now = engine.clock.last();
        let others = engine
            .ids()
            .filter(|&id| id != from && id != to && engine.freshly_answers(id, now));
        let Some(worst) = others.max_by_key(|&id| engine.class(id)) else {
            return;
        };
        if engine.class(worst) <= engine.class(to) {
            return;
        }
        engine.active = Some(worst);
        for output in said {
            match output {
                Output::Route(route) if route.write == to => {
                    route.write = worst;
                    route.read = vec![(worst, 100)];
                }
                Output::Event(Event::Switched(switched)) => switched.to = worst,
                _ => {}
            }
        }
    }
}

fn broken_policy(mut policy: Policy, sabotage: Option<Sabotage>) -> Policy {
    match sabotage {
        Some(Sabotage::NoDwell) => policy.dwell = Duration::from_millis(1),
        Some(Sabotage::TiltIgnored) => policy.tilt_after = FOREVER,
        Some(Sabotage::SlowToNotice) => policy.heartbeat_timeout *= 3,
        Some(Sabotage::GraceIgnored) => policy.grace = Duration::ZERO,
        Some(Sabotage::LagIgnored) => policy.lag_tolerance = FOREVER,
        Some(Sabotage::LeavesWhenIsolated) => policy.on_isolated = OnIsolated::Leave,
        Some(Sabotage::StaysWhenIsolated) => policy.on_isolated = OnIsolated::Stay,
        Some(Sabotage::StepsSkipped) => policy.read_steps = vec![100],
        Some(Sabotage::SoakSkipped) => policy.soak = policy.soak.min(Duration::from_millis(1)),
        Some(Sabotage::SlowIsLeft) => policy.on_slow = OnSlow::Leave,
        Some(Sabotage::HoldsForever) => policy.fence = policy.fence.max(Duration::from_secs(1)) * 60,
        _ => {}
    }
    policy
}
