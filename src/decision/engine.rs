//! The engine: takes evidence, keeps the verdicts in line with it, acts, and says when it wants to be called again.
//!
//! Each call runs the same four steps, so that a spurious one changes nothing: take the time (and notice an own stall),
//! take the input, read the evidence anew (`refresh`), act on what it says (`act`). All rules are functions of the
//! evidence and the moment; timers only say when to look.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::damping::Damping;
use super::event::{
    CellMap, Event, Fitness, Health, Input, Output, PassiveEvidence, ProbeKind, RouteOrder, SwitchReason,
    Switched,
};
use super::evidence::{Beat, Evidence};
use super::failback::Failback;
use super::faults::Fault;
use super::fitness::{Ground, Matrix, Reading};
use super::health::{Secs, Standing, judge, silent_at};
use super::links::{Change, Heard, Links};
use super::moment::{Clock, Moment};
use super::moves::Move;
use super::policy::Policy;
use super::reads::Nearest;
use super::rest::Rest;
use super::shards;
use super::tilt::Tilt;
use super::timer::{Timer, Timers};
use super::windows::Windows;
use crate::replica::{CellId, ReplicaId, ShardId};

/// Switches kept for the snapshot.
const SWITCHES_KEPT: usize = 16;

/// One replica, as the engine needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its position; `members[i].id == ReplicaId(i)`.
    pub id: ReplicaId,
    /// What the reasons call it.
    pub name: Arc<str>,
    /// The highest is preferred; equal weights go by position.
    pub weight: u32,
    /// How often its cluster's REST API is asked about it; `None`: never.
    pub rest: Option<Duration>,
}

/// All that is known of one replica.
#[derive(Clone, Debug)]
pub(super) struct ReplicaState {
    pub(super) evidence: Evidence,
    pub(super) standing: Standing,
    pub(super) reading: Reading,
    /// A link speaks against it since then, and is not held against it yet.
    pub(super) disputed: Option<Moment>,
    pub(super) damping: Damping,
    /// When a REST check is configured.
    pub(super) rest: Option<Rest>,
}

/// The pure decision engine. See the module `decision` for its rules.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) policy: Policy,
    pub(super) windows: Windows,
    pub(super) clock: Clock,
    pub(super) members: Vec<Member>,
    pub(super) preferred: ReplicaId,
    pub(super) born: Moment,
    pub(super) replicas: Vec<ReplicaState>,
    /// The layouts that evidence is kept by.
    pub(super) map: CellMap,
    pub(super) links: Links,
    /// What is broken, and since when, in the order in which it was noticed.
    pub(super) faults: Vec<(Fault, Moment)>,
    pub(super) tilt: Option<Tilt>,
    /// Of the newest route; 0 before the first.
    pub(super) epoch: u64,
    pub(super) active: Option<ReplicaId>,
    /// As in the newest route.
    pub(super) holding: bool,
    pub(super) operator_hold: bool,
    pub(super) pinned: Option<ReplicaId>,
    pub(super) moving: Option<Move>,
    /// Of the newest fence.
    pub(super) fence_id: u64,
    pub(super) failback: Failback,
    pub(super) nearest: Nearest,
    /// As in the newest route.
    pub(super) published_reads: Vec<(ReplicaId, u8)>,
    /// The active was taken as the best of a bad lot, and was never fit since.
    pub(super) makeshift: bool,
    pub(super) last_automatic: Option<Moment>,
    pub(super) timers: Timers,
    pub(super) outputs: VecDeque<Output>,
    pub(super) switches: VecDeque<(Instant, Switched)>,
}

/// A change of the active replica, as the rules order it.
pub(super) struct Taking {
    pub(super) to: ReplicaId,
    pub(super) reason: SwitchReason,
    pub(super) why: String,
    /// No operator asked for it.
    pub(super) automatic: bool,
    /// What was sent to the old one will not be answered.
    pub(super) abandon: bool,
    pub(super) detect: Duration,
    pub(super) fence: Option<Duration>,
    pub(super) switch: Duration,
}

impl Engine {
    /// An engine that knows nothing yet. `pinned` is what was remembered by [`Output::RememberPin`] before a restart;
    /// a replica that is no longer there is ignored.
    ///
    /// # Panics
    /// When `members` is empty, has more than 255 entries, or is not in the order of its ids: configuration rules it out.
    pub fn new(policy: Policy, members: Vec<Member>, pinned: Option<ReplicaId>, now: Instant) -> Engine {
        assert!(!members.is_empty() && members.len() < 256, "one to 255 replicas");
        assert!(
            members
                .iter()
                .enumerate()
                .all(|(i, member)| member.id.index() == i),
            "members in order of id"
        );
        let clock = Clock::new(now);
        let born = clock.last();
        let windows = Windows::new(&policy);
        let preferred = members
            .iter()
            .min_by_key(|member| (std::cmp::Reverse(member.weight), member.id))
            .map_or(ReplicaId(0), |member| member.id);
        let map = CellMap::single(members.len());
        let replicas = members.iter().map(|member| ReplicaState {
            evidence: Evidence::new(born),
            standing: Standing::new(born),
            reading: Reading {
                fitness: Fitness::Unknown,
                ground: Ground::NotAnswering,
            },
            disputed: None,
            damping: Damping::default(),
            rest: member.rest.map(Rest::new),
        });
        let mut engine = Engine {
            replicas: replicas.collect(),
            links: Links::new(&map, policy.lag_tolerance, born),
            map,
            faults: Vec::new(),
            pinned: pinned.filter(|pin| pin.index() < members.len()),
            policy,
            windows,
            clock,
            members,
            preferred,
            born,
            tilt: None,
            epoch: 0,
            active: None,
            holding: false,
            operator_hold: false,
            moving: None,
            fence_id: 0,
            failback: Failback::default(),
            nearest: Nearest::default(),
            published_reads: Vec::new(),
            makeshift: false,
            last_automatic: None,
            timers: Timers::default(),
            outputs: VecDeque::new(),
            switches: VecDeque::new(),
        };
        engine.keep_evidence_by_layout(born);
        engine.arm(born);
        engine
    }

    /// Takes one input. `now` never needs to be exact, but calls must come at least as often as [`Engine::next_timer`]
    /// asks, or the gap counts as a stall of the sidecar. A `now` before an earlier one counts as that one.
    pub fn observe(&mut self, input: Input, now: Instant) {
        let now = self.enter(now);
        let asked = self.take_evidence(input, now);
        self.refresh(now);
        if let Some(Input::Operator { id, request }) = asked {
            self.operator(id, request, now);
        }
        self.conclude(now);
    }

    /// To be called when [`Engine::next_timer`] is due. A spurious call is a no-op.
    pub fn on_timer(&mut self, now: Instant) {
        let now = self.enter(now);
        self.refresh(now);
        self.conclude(now);
    }

    /// When to call [`Engine::on_timer`] next, on the caller's clock.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.next().map(|due| self.clock.on_the_wall(due))
    }

    /// The next output, in the order of the decisions.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Goes on under `policy`. Evidence keeps its age, so windows that shrink below the pace at which it came make it
    /// look old: the caller widens them before evidence comes slower, and narrows them only once it comes faster.
    pub fn set_policy(&mut self, policy: Policy, now: Instant) {
        let now = self.enter(now);
        self.windows = Windows::new(&policy);
        self.links.set_tolerance(policy.lag_tolerance);
        self.policy = policy;
        self.refresh(now);
        self.conclude(now);
    }

    /// New layouts: evidence of what stays is kept, and nothing is an alarm. A fence that was crossing the old ones is
    /// called off.
    fn relayout(&mut self, map: CellMap, now: Moment) {
        if map == self.map || !map.fits(self.members.len()) {
            return;
        }
        self.map = map;
        self.links.relayout(&self.map, now);
        self.keep_evidence_by_layout(now);
        if self.moving.as_ref().is_some_and(Move::fencing) {
            self.call_off("the layout of the shards changed: the fence no longer covers it");
        }
    }

    fn keep_evidence_by_layout(&mut self, now: Moment) {
        for (state, &shards) in self.replicas.iter_mut().zip(&self.map.shards) {
            let cells = self.map.cells.iter().map(|(id, _)| *id);
            state.evidence.relayout(usize::from(shards.max(1)), cells, now);
        }
    }

    fn enter(&mut self, now: Instant) -> Moment {
        let (now, stall) = self.clock.advance(now, self.policy.tilt_after, self.windows.tick);
        if let Some(stalled) = stall {
            self.tilt_on(stalled, now);
        }
        now
    }

    /// Files evidence where it belongs; hands an operator's request back, which wants the evidence read first.
    fn take_evidence(&mut self, input: Input, now: Moment) -> Option<Input> {
        let tilt = self.tilt.is_some();
        match input {
            Input::Layout(map) => self.relayout(map, now),
            Input::HeartbeatSent { on, cell, seq } => {
                let cell = self.links.position(cell)?;
                let shard = self.links.shard(on, cell)?;
                let beat = Beat { cell, shard, seq };
                self.replicas[on.index()]
                    .evidence
                    .beat_sent(beat, &self.windows, now);
            }
            Input::HeartbeatHeard {
                from,
                to,
                cell,
                seq,
                age,
                ..
            } => {
                let heard = Heard {
                    from,
                    to,
                    cell,
                    seq,
                    age,
                };
                let own = self.clock.own_part(age);
                let fresh = self.links.hear(heard, own, &self.windows, now, tilt);
                if let Some(cell) = fresh.filter(|_| from == to) {
                    self.replicas[from.index()].evidence.echo_heard(cell, seq);
                    if let Some(tilt) = self.tilt.as_mut().filter(|_| self.active == Some(from)) {
                        tilt.active_heard(age, now);
                    }
                }
            }
            Input::Probe {
                replica,
                shard,
                kind,
                outcome,
            } => {
                let own = |rtt: &Duration| !self.clock.own_part(*rtt).is_zero();
                let tilt = tilt || outcome.as_ref().is_ok_and(own);
                let state = self.replicas.get_mut(replica.index())?;
                let shard = usize::from(shard.0);
                match kind {
                    ProbeKind::Ping => state.evidence.ping(shard, &outcome, now, tilt),
                    ProbeKind::Write => {
                        state.evidence.write(shard, &outcome, &self.windows, now, tilt);
                    }
                }
                if let Some(tilt) = self.tilt.as_mut().filter(|_| self.active == Some(replica))
                    && kind == ProbeKind::Ping
                    && let Ok(rtt) = outcome
                {
                    tilt.active_answered(rtt, now);
                }
            }
            Input::Subscribed { replica } => {
                if let Some(state) = self.replicas.get_mut(replica.index()) {
                    state.evidence.subscribed(now);
                    self.links.subscribed(replica, now);
                }
            }
            Input::Rest { replica, outcome } => self.rest_outcome(replica, outcome, now),
            Input::Passive { replica, seen } => self.passive(replica, seen, now),
            Input::Drained { epoch } => self.drained(epoch, now),
            Input::FenceHeard { id, to, cell } => self.fence_heard(id, to, cell, now),
            Input::Operator { .. } => return Some(input),
        }
        None
    }

    fn passive(&mut self, replica: ReplicaId, seen: PassiveEvidence, now: Moment) {
        let tilt = self.tilt.is_some();
        if let Some(state) = self.replicas.get_mut(replica.index()) {
            state.evidence.passive(seen, now, tilt);
        }
    }

    /// Reads all evidence anew and tells what changed.
    fn refresh(&mut self, now: Moment) {
        for id in self.ids() {
            let answers = self.freshly_answers(id, now);
            let evidence = &mut self.replicas[id.index()].evidence;
            let window = |cell| self.links.echo_window(id, cell, &self.windows);
            evidence.age_echoes(window, &self.windows, now);
            evidence.age_writes(answers, &self.windows, now);
        }
        self.compare_round_trips();
        let changes = self.links.update(&self.windows, now);
        for change in changes
            .iter()
            .filter(|change| change.up && change.path.from == change.path.to)
        {
            self.links.returned(change.path.from, now);
        }
        for id in self.ids() {
            self.refresh_health(id, now);
        }
        for change in changes {
            self.tell_link(change, now);
        }
        if !self.all_is_well() {
            self.refresh_fitness(now);
            self.refresh_faults(now);
        }
        self.refresh_rest(now);
    }

    /// A replica is slow when another one is not: if all are, it is the sidecar's own machine.
    fn compare_round_trips(&mut self) {
        let lives = |state: &ReplicaState| state.standing.answers();
        let slow = |state: &ReplicaState| state.evidence.round_trips.is_slow();
        if !self
            .replicas
            .iter()
            .any(|state| slow(state) || state.evidence.slow)
        {
            return;
        }
        let live = || self.replicas.iter().filter(|state| lives(state));
        let all = live().count() > 1 && live().all(|state| state.evidence.round_trips.is_doubtful());
        for state in &mut self.replicas {
            state.evidence.slow = slow(state) && !all;
        }
    }

    fn refresh_health(&mut self, id: ReplicaId, now: Moment) {
        let state = &mut self.replicas[id.index()];
        let failures = self.policy.connect_failures;
        shards::look(
            id,
            &mut state.evidence,
            &self.links,
            &self.policy,
            &self.windows,
            now,
        );
        let judgement = judge(id, &state.evidence, &self.links, failures, &self.windows, now);
        let judgement = shards::soften(judgement, &state.evidence, &self.policy, now);
        let changed = state
            .standing
            .update(judgement, &state.evidence, &self.windows, now);
        if state.standing.health == Health::Down && !state.standing.answers() {
            // Also when it is down for another cause before that and took writes all the while.
            state.evidence.forget_writes();
        }
        let Some(from) = changed else { return };
        let to = state.standing.health;
        if to == Health::Down {
            if from != Health::Unknown {
                state.damping.strike(&self.windows, now);
            }
        } else if from == Health::Down {
            state.damping.returned(now);
        }
        let why = match to {
            Health::Recovering => "it answers again".to_owned(),
            _ => self.replicas[id.index()].standing.finding.to_string(),
        };
        self.tell(Event::Health {
            replica: id,
            from,
            to,
            why,
        });
    }

    /// Everything is as it should be, and was read as such: as nearly always, and then there is nothing to read.
    fn all_is_well(&self) -> bool {
        self.faults.is_empty()
            && self.links.all_well()
            && self.replicas.iter().all(|state| {
                state.standing.health == Health::Healthy
                    && state.evidence.writable() == Some(true)
                    && state.reading.ground == Ground::Proved
                    && state.disputed.is_none()
            })
    }

    fn refresh_fitness(&mut self, now: Moment) {
        let readings: Vec<Reading> =
            self.with_matrix(|matrix| self.ids().map(|id| matrix.read(id)).collect());
        let telling = self.members.len() > 2;
        for (id, reading) in self.ids().zip(readings) {
            let state = &mut self.replicas[id.index()];
            let before = state.reading.fitness;
            if telling
                && reading.fitness == Fitness::Lagging
                && matches!(before, Fitness::InSync | Fitness::Unknown)
            {
                let since = *state.disputed.get_or_insert(now);
                if now.since(since) < self.windows.dispute {
                    continue;
                }
            }
            state.disputed = None;
            let before = std::mem::replace(&mut self.replicas[id.index()].reading, reading);
            if before.fitness != reading.fitness {
                let why = self.fitness_words(id, now);
                self.tell(Event::Fitness {
                    replica: id,
                    from: before.fitness,
                    to: reading.fitness,
                    why,
                });
            }
        }
    }

    /// Runs `read` on the link matrix as it stands.
    pub(super) fn with_matrix<T>(&self, read: impl FnOnce(&Matrix<'_>) -> T) -> T {
        let healths: Vec<Health> = self.replicas.iter().map(|state| state.standing.health).collect();
        let writable: Vec<Option<bool>> = self
            .replicas
            .iter()
            .map(|state| state.evidence.writable())
            .collect();
        read(&Matrix {
            healths: &healths,
            writable: &writable,
            links: &self.links,
            windows: &self.windows,
            now: self.clock.last(),
        })
    }

    fn tell_link(&mut self, change: Change, now: Moment) {
        let Change { path, up } = change;
        let mut why = self.link_words(path, now);
        for end in [path.from, path.to] {
            if !up && self.replicas[end.index()].standing.health == Health::Down && !why.ends_with("is down")
            {
                why = format!("{why}; {} is down", self.name(end));
            }
        }
        self.tell(Event::Link {
            from: path.from,
            to: path.to,
            shard: path.shard,
            to_shard: path.to_shard,
            up,
            why,
        });
    }

    /// Acts on what the evidence says, and sets the timers.
    fn conclude(&mut self, now: Moment) {
        self.settle_tilt(now);
        self.consider_start(now);
        self.consider_failover(now);
        if self.moving.is_some() {
            self.progress_move(now);
            // One that was called off no longer stands in the way.
            self.consider_failover(now);
        }
        self.consider_failback(now);
        self.consider_reads(now);
        self.publish_reads();
        self.arm(now);
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    fn tilt_on(&mut self, stalled: Duration, now: Moment) {
        self.tilt = Some(Tilt::new(stalled, now));
        let why = format!(
            "the sidecar itself stood still for {} (limit {}): nothing is decided until evidence is fresh",
            Secs(stalled),
            Secs(self.policy.tilt_after)
        );
        self.tell(Event::Tilt { on: true, why });
        if self.moving.as_ref().is_some_and(|moving| moving.asked.is_none()) {
            self.call_off("the sidecar itself stood still");
        }
    }

    fn settle_tilt(&mut self, now: Moment) {
        let Some(tilt) = self.tilt.filter(|tilt| tilt.settled(&self.windows, now)) else {
            return;
        };
        self.tilt = None;
        let why = format!(
            "evidence is fresh again, {} after a stall of {}",
            Secs(now.since(tilt.since)),
            Secs(tilt.stalled)
        );
        self.tell(Event::Tilt { on: false, why });
    }

    fn arm(&mut self, now: Moment) {
        let silence = self
            .replicas
            .iter()
            .filter(|state| state.standing.health != Health::Down);
        let silence = silence.map(|state| silent_at(&state.evidence, &self.windows));
        self.timers.set(Timer::Tick, Some(now.plus(self.windows.tick)));
        self.timers
            .set(Timer::Silence, silence.filter(|&due| due > now.awake).min());
        let startup = self
            .active
            .is_none()
            .then(|| self.born.plus(self.windows.startup));
        self.timers.set(Timer::Startup, startup);
        self.timers
            .set(Timer::Move, self.moving.as_ref().map(Move::deadline));
        self.timers
            .set(Timer::Dwell, self.dwell_ends().filter(|&due| due > now.awake));
        self.timers.set(
            Timer::Failback,
            self.failback_due().filter(|&due| due > now.awake),
        );
        self.timers.set(
            Timer::Settle,
            self.tilt.map(|tilt| tilt.settles_at(&self.windows)),
        );
    }

    /// When dwell lets the next unforced switch happen.
    pub(super) fn dwell_ends(&self) -> Option<Instant> {
        self.last_automatic.map(|last| last.plus(self.policy.dwell))
    }

    /// Publishes a route to the active replica as things stand.
    pub(super) fn publish(&mut self, holding: bool, abandon_others: bool) {
        let Some(write) = self.active else { return };
        self.epoch += 1;
        self.holding = holding;
        self.published_reads = self.read_split();
        self.outputs.push_back(Output::Route(RouteOrder {
            epoch: self.epoch,
            write,
            read: self.published_reads.clone(),
            read_your_writes: self.policy.read_your_writes,
            holding,
            abandon_others,
        }));
    }

    /// Changes the active replica: route, event and bookkeeping.
    pub(super) fn take(&mut self, taking: Taking, now: Moment) {
        let from = self.active.replace(taking.to);
        self.failback.end_trial();
        self.nearest = Nearest::default();
        if let Some(tilt) = &mut self.tilt {
            tilt.active_changed();
        }
        self.publish(self.operator_hold, taking.abandon);
        if taking.automatic && taking.reason != SwitchReason::Startup {
            self.last_automatic = Some(now);
        }
        self.makeshift = taking.reason == SwitchReason::LastSurvivor;
        self.failback_after_switch(from, &taking, now);
        let switched = Switched {
            epoch: self.epoch,
            from,
            to: taking.to,
            reason: taking.reason,
            why: taking.why,
            detect: taking.detect,
            fence: taking.fence,
            switch: taking.switch,
        };
        if self.switches.len() == SWITCHES_KEPT {
            self.switches.pop_front();
        }
        self.switches.push_back((now.real, switched.clone()));
        self.tell(Event::Switched(switched));
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    pub(super) fn answer(&mut self, asked: Option<u64>, result: Result<String, String>) {
        if let Some(id) = asked {
            self.outputs.push_back(Output::Answer { id, result });
        }
    }

    /// The shard of `replica` in `cell`, in the layouts as they are now.
    pub fn shard(&self, replica: ReplicaId, cell: CellId) -> Option<ShardId> {
        self.links.shard(replica, self.links.position(cell)?)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        (0_u8..).map(ReplicaId).take(self.members.len())
    }

    pub(super) fn name(&self, id: ReplicaId) -> &str {
        self.members.get(id.index()).map_or("?", |member| &member.name)
    }
}
