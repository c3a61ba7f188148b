//! One world's life: the engine, a monitor around it that publishes and probes at its pace, and a WAN between.
//!
//! Leaner than the worlds of chaos, since it has to last for ten thousand hours: no transcript, no books of what must
//! hold, one event for each probe. No heartbeat is skipped.

mod monitor;
mod trouble;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conditions::{self as given, Shape};
use super::count::{Alarm, Tally};
use super::fault::{Fault, Kind, Way};
use crate::decision::engine::{Engine, Member};
use crate::decision::event::{
    CellMap, Event, Fitness, Health, Input, Output, PassiveEvidence, ProbeFailure, ProbeKind, SwitchReason,
};
use crate::decision::policy::Policy;
use crate::decision::sim::rng::Rng;
use crate::decision::sim::world::State;
use crate::replica::{CellId, Layout, ReplicaId, ShardId, cells};

const MS: Duration = Duration::from_millis(1);
/// Waits before the attempts to connect again, as the monitor has them.
const BACKOFF: [u64; 7] = [0, 10, 20, 50, 100, 200, 500];
const BACKOFF_CAP: Duration = Duration::from_millis(250);
/// A cut link keeps so many heartbeats for later.
const BACKLOG: usize = 64;

/// Time since the world began.
type At = Duration;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    Beat {
        node: u8,
        cell: u8,
    },
    Accepted {
        node: u8,
        cell: u8,
        seq: u64,
    },
    Arrive {
        from: u8,
        to: u8,
        cell: u8,
        carried: Carried,
    },
    ProbeStart(u8),
    ProbeEnd {
        probe: u8,
        number: u32,
        end: End,
    },
    Alive,
    Resubscribe(u8),
    Drained(u64),
    Spike {
        from: u8,
        to: u8,
    },
    Hiccup(u8),
    Break,
    Mend,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Carried {
    Beat { seq: u64, sent: At },
    Fence(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    Answered,
    Rejected,
    Refused,
    Broken,
    TimedOut,
}

/// One probe loop.
#[derive(Clone, Copy, Debug)]
struct Probe {
    node: u8,
    shard: u16,
    kind: ProbeKind,
    /// Counts attempts: an end of an older one is void.
    number: u32,
    start: At,
    /// Attempts to connect that led to nothing.
    attempts: usize,
}

/// From one replica to another: what all cells have in common.
#[derive(Clone, Copy, Debug)]
struct Distance {
    /// Replication lag as it usually is.
    usual: Duration,
    /// Lost heartbeats in a million.
    loss: usize,
    spike: Duration,
    spike_until: At,
    /// Something was underway for longer than the tolerance: it arrived then.
    over: Option<At>,
}

/// One direction of one cell.
#[derive(Clone, Debug, Default)]
struct Road {
    cut: bool,
    extra: Duration,
    /// Messages do not overtake each other.
    newest: At,
    backlog: Vec<Carried>,
}

#[derive(Clone, Debug)]
struct Node {
    state: State,
    subscribed: bool,
    /// A round trip to it and back, as it usually is.
    round_trip: Duration,
    /// When an answer was last awaited in vain for the network alone.
    overrun: Option<At>,
    stuck: Vec<(u8, u8, Carried)>,
    seqs: Vec<u64>,
}

/// The conditions and the numbers under which a world lives.
pub(super) struct Terms<'a> {
    pub(super) policy: &'a Policy,
    /// How long the monitor waits for an answer.
    pub(super) answer_timeout: Duration,
}

pub(super) struct Life<'a> {
    terms: &'a Terms<'a>,
    shape: Shape,
    rng: Rng,
    jitter: &'a [f32],
    base: Instant,
    engine: Engine,
    at: At,
    frozen_until: At,
    queue: BinaryHeap<Reverse<(At, u32, What)>>,
    order: u32,
    nodes: Vec<Node>,
    probes: Vec<Probe>,
    /// `[from][to]`
    distances: Vec<Vec<Distance>>,
    /// `[from][to][cell]`
    roads: Vec<Vec<Vec<Road>>>,
    map: CellMap,
    active: Option<ReplicaId>,
    fault: Option<Fault>,
    /// What the slow replica adds to a round trip.
    slower: Duration,
    tally: Tally,
}

fn id(node: u8) -> ReplicaId {
    ReplicaId(node)
}

impl<'a> Life<'a> {
    /// Lives for `hours`; what was counted.
    pub(super) fn live(
        seed: u64,
        hours: Duration,
        terms: &'a Terms<'a>,
        jitter: &'a [f32],
        base: Instant,
    ) -> Tally {
        let mut life = Life::new(seed, terms, jitter, base);
        life.start();
        while life.at < hours {
            life.step();
        }
        life.close_fault();
        life.tally.lived = life.at;
        life.tally
    }

    fn new(seed: u64, terms: &'a Terms<'a>, jitter: &'a [f32], base: Instant) -> Life<'a> {
        let mut rng = Rng::new(seed);
        let shape = Shape::of(seed);
        let n = shape.shards.len();
        let layouts: Vec<Layout> = shape.shards.iter().map(|&count| Layout::even(count)).collect();
        let map = CellMap {
            shards: shape.shards.to_vec(),
            cells: (1_u32..)
                .map(CellId)
                .zip(cells(&layouts))
                .map(|(cell, it)| (cell, it.shards))
                .collect(),
        };
        let distances: Vec<Vec<Distance>> = (0..n)
            .map(|from| {
                (0..n)
                    .map(|to| Distance {
                        usual: if from == to {
                            Duration::ZERO
                        } else {
                            given::lag(&mut rng)
                        },
                        loss: given::loss(&mut rng),
                        spike: Duration::ZERO,
                        spike_until: At::ZERO,
                        over: None,
                    })
                    .collect()
            })
            .collect();
        let members = (0_u8..).take(n).map(|i| Member {
            id: id(i),
            name: Arc::from(format!("r{i}")),
            weight: 100 - u32::from(i),
            rest: None,
        });
        let nodes = (0..n).map(|i| Node {
            state: State::Up,
            subscribed: true,
            // The sidecar is beside the first one.
            round_trip: MS / 2 + distances[0][i].usual + distances[i][0].usual,
            overrun: None,
            stuck: Vec::new(),
            seqs: vec![0; map.cells.len()],
        });
        Life {
            engine: Engine::new(terms.policy.clone(), members.collect(), None, base),
            nodes: nodes.collect(),
            probes: Vec::new(),
            roads: vec![vec![vec![Road::default(); map.cells.len()]; n]; n],
            distances,
            map,
            terms,
            shape,
            rng,
            jitter,
            base,
            at: At::ZERO,
            frozen_until: At::ZERO,
            queue: BinaryHeap::new(),
            order: 0,
            active: None,
            fault: None,
            slower: Duration::ZERO,
            tally: Tally::default(),
        }
    }

    fn start(&mut self) {
        self.tell(Input::Layout(self.map.clone()));
        let policy = self.terms.policy;
        for node in 0..self.count() {
            self.tell(Input::Subscribed { replica: id(node) });
            for cell in 0..self.cells() {
                let phase = self.rng.between(Duration::ZERO, policy.heartbeat_interval);
                self.after(phase, What::Beat { node, cell });
            }
            let pings = [(0, ProbeKind::Ping)];
            let writes = (0..self.shape.shards[usize::from(node)]).map(|shard| (shard, ProbeKind::Write));
            for (shard, kind) in pings.into_iter().chain(writes) {
                let probe = u8::try_from(self.probes.len()).expect("few probes");
                self.probes.push(Probe {
                    node,
                    shard,
                    kind,
                    number: 0,
                    start: At::ZERO,
                    attempts: 0,
                });
                let phase = self.rng.between(Duration::ZERO, policy.probe_interval);
                self.after(phase, What::ProbeStart(probe));
            }
            for to in (0..self.count()).filter(|&to| to != node) {
                let wait = self.rng.exponential(given::SPIKE_EVERY);
                self.after(wait, What::Spike { from: node, to });
            }
        }
        for (kind, hiccup) in (0_u8..).zip(given::HICCUPS) {
            let wait = self.rng.exponential(hiccup.every);
            self.after(wait, What::Hiccup(kind));
        }
        if self.shape.traffic {
            self.after(policy.heartbeat_interval, What::Alive);
        }
        self.next_fault();
    }

    fn count(&self) -> u8 {
        u8::try_from(self.nodes.len()).expect("few replicas")
    }

    fn cells(&self) -> u8 {
        u8::try_from(self.map.cells.len()).expect("few cells")
    }

    fn after(&mut self, wait: Duration, what: What) {
        self.order = self.order.wrapping_add(1);
        self.queue.push(Reverse((self.at + wait, self.order, what)));
    }

    fn step(&mut self) {
        let due = self
            .engine
            .next_timer()
            .expect("the engine always asks to be called");
        let due = due.saturating_duration_since(self.base).max(self.frozen_until);
        match self.queue.peek() {
            Some(Reverse((at, ..))) if *at <= due => {
                let Some(Reverse((at, _, what))) = self.queue.pop() else {
                    return;
                };
                // What comes while the sidecar stands still waits in its sockets, in order.
                self.at = self.at.max(at);
                if !matches!(
                    what,
                    What::Break | What::Mend | What::Spike { .. } | What::Hiccup(_)
                ) {
                    self.at = self.at.max(self.frozen_until);
                }
                self.happen(what);
            }
            _ => {
                // As late as timers are.
                self.at = self.at.max(due) + Duration::from_micros(50);
                self.engine.on_timer(self.base + self.at);
                self.listen();
            }
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Beat { node, cell } => self.beat(node, cell),
            What::Accepted { node, cell, seq } => {
                if self.node(node).state.publishes() {
                    let (on, cell) = (id(node), self.cell(cell));
                    self.tell(Input::HeartbeatSent { on, cell, seq });
                }
            }
            What::Arrive {
                from,
                to,
                cell,
                carried,
            } => self.arrive(from, to, cell, carried),
            What::ProbeStart(probe) => self.probe_start(probe),
            What::ProbeEnd { probe, number, end } => self.probe_end(probe, number, end),
            What::Alive => self.alive(),
            What::Resubscribe(node) => {
                self.nodes[usize::from(node)].subscribed = true;
                self.tell(Input::Subscribed { replica: id(node) });
            }
            What::Drained(epoch) => self.tell(Input::Drained { epoch }),
            What::Spike { from, to } => self.spike(from, to),
            What::Hiccup(kind) => {
                let hiccup = given::HICCUPS[usize::from(kind)];
                let lasting = given::within(&mut self.rng, hiccup.from, hiccup.to);
                self.frozen_until = self.frozen_until.max(self.at + lasting);
                self.tally.stalls += u64::from(lasting > self.terms.policy.tilt_after);
                let wait = self.rng.exponential(hiccup.every);
                self.after(wait, What::Hiccup(kind));
            }
            What::Break => self.break_something(),
            What::Mend => self.mend(),
        }
    }

    fn node(&self, node: u8) -> &Node {
        &self.nodes[usize::from(node)]
    }

    fn cell(&self, cell: u8) -> CellId {
        self.map.cells[usize::from(cell)].0
    }

    fn tell(&mut self, input: Input) {
        self.tally.calls += 1;
        self.engine.observe(input, self.base + self.at);
        self.listen();
    }

    fn listen(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Route(route) => {
                    self.active = Some(route.write);
                    if route.holding && self.node(route.write.0).state.answers() {
                        let wait = self.rng.between(MS, MS * 15);
                        self.after(wait, What::Drained(route.epoch));
                    }
                }
                Output::PublishFence { id, on } => {
                    for to in 0..self.count() {
                        for cell in 0..self.cells() {
                            let wait = self.node(on.0).round_trip / 2;
                            self.carry(on.0, to, cell, Carried::Fence(id), wait);
                        }
                    }
                }
                Output::Event(event) => self.judge(&event),
                Output::Answer { .. } | Output::RememberPin(_) => {}
            }
        }
    }

    /// Holds against the truth what the engine says.
    fn judge(&mut self, event: &Event) {
        if let Some(fault) = &mut self.fault {
            fault.hear(event, self.at);
        }
        let Some(alarm) = alarm(event) else { return };
        let settle =
            self.terms.policy.heartbeat_timeout * 4 + self.terms.policy.probe_interval * 4 + MS * 2000;
        let explained = self.fault.as_ref().is_some_and(|fault| {
            let over = fault.end.is_some_and(|end| self.at > end + settle);
            !over && fault.explains(event, self.nodes.len())
        });
        if !explained && self.is_held_up(event, settle) {
            self.tally.held_up(alarm);
        } else if !explained {
            let fault = self.fault.as_ref();
            self.tally.false_alarm(alarm, || {
                let near = fault.map(|fault| (fault.kind, fault.node, fault.start, fault.end));
                format!("{:?}: {event:?}; the newest fault: {near:?}", self.at)
            });
        }
    }
}

impl Life<'_> {
    /// The network has held up what goes to or from the replica for longer than the tolerance, or answers for longer than
    /// they are waited for: then it does lag, or does not answer.
    fn is_held_up(&self, event: &Event, settle: Duration) -> bool {
        let lately = |at: Option<At>| at.is_some_and(|at| self.at < at + settle);
        let overrun = |replica: &ReplicaId| lately(self.nodes[replica.index()].overrun);
        match event {
            Event::Fitness {
                replica,
                to: Fitness::Lagging,
                ..
            } => {
                let i = replica.index();
                let others = 0..self.nodes.len();
                others
                    .flat_map(|other| [self.distances[i][other].over, self.distances[other][i].over])
                    .any(lately)
            }
            Event::Health { replica, .. } | Event::Fitness { replica, .. } => overrun(replica),
            Event::Fault { fault, .. } => overrun(&fault.replica()),
            Event::Switched(switched) => switched.from.as_ref().is_some_and(overrun),
            _ => false,
        }
    }
}

/// What `event` warns of, if it does.
fn alarm(event: &Event) -> Option<Alarm> {
    match event {
        Event::Health { to: Health::Down, .. } => Some(Alarm::Down),
        Event::Health {
            to: Health::Suspect, ..
        } => Some(Alarm::Suspect),
        Event::Link { up: false, .. } => Some(Alarm::Link),
        Event::Fault { on: true, .. } => Some(Alarm::Named),
        Event::Fitness {
            to: Fitness::Lagging | Fitness::Isolated | Fitness::Stale,
            ..
        } => Some(Alarm::Unfit),
        Event::Switched(switched) => {
            (!matches!(switched.reason, SwitchReason::Startup | SwitchReason::Failback))
                .then_some(Alarm::Switch)
        }
        _ => None,
    }
}
