//! The run: one queue of happenings, the engine, and the oracle that watches every call.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::oracle::Oracle;
use super::rng::Rng;
use super::setup::Setup;
use super::sidecar::{End, Loop, Probing, shard_id};
use super::world::{At, Message, State, World};
use crate::decision::engine::Engine;
use crate::decision::event::{Event, Input, Output, PassiveEvidence, Request};
use crate::decision::policy::FailbackMode;
use crate::replica::ReplicaId;

/// Lines of the transcript that a failure shows.
const TAIL: usize = 60;

/// What can happen next.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    // The sidecar's own doings: they wait while it stalls.
    ProbeStart(Loop),
    ProbeEnd {
        at: Loop,
        number: u64,
        end: End,
        generation: u32,
    },
    Beat {
        node: ReplicaId,
        shard: usize,
        layout: u32,
    },
    BeatAccepted {
        node: ReplicaId,
        shard: usize,
        seq: u64,
        generation: u32,
    },
    Arrive {
        from: ReplicaId,
        to: ReplicaId,
        shard: usize,
        message: Message,
    },
    AliveTick,
    LinkTrouble {
        node: ReplicaId,
        tries: u32,
        chain: u64,
    },
    Noise {
        node: ReplicaId,
        seen: PassiveEvidence,
    },
    Drained {
        epoch: u64,
    },
    Resubscribe {
        node: ReplicaId,
    },
    Operate,
    // The world's.
    Fault,
    Mend {
        node: ReplicaId,
        token: u64,
    },
    MendWay {
        from: ReplicaId,
        to: ReplicaId,
        shard: usize,
    },
    Fall {
        node: ReplicaId,
        lasting: Duration,
    },
    FallOfActive,
}

impl Happening {
    fn of_the_world(&self) -> bool {
        matches!(
            self,
            Happening::Fault
                | Happening::Mend { .. }
                | Happening::MendWay { .. }
                | Happening::Fall { .. }
                | Happening::FallOfActive
        )
    }
}

/// What a run leaves behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    /// Of the whole transcript.
    pub(super) fingerprint: u64,
    /// How often each thing worth reaching was reached.
    pub(super) reached: BTreeMap<&'static str, u64>,
    pub(super) calls: u64,
    pub(super) lasted: Duration,
}

/// One seed's world, running.
pub(super) struct Sim {
    pub(super) seed: u64,
    pub(super) setup: Setup,
    pub(super) rng: Rng,
    pub(super) world: World,
    pub(super) at: At,
    /// The sidecar stands still until then.
    pub(super) frozen_until: At,
    pub(super) active: Option<ReplicaId>,
    pub(super) fault_gap: Duration,
    /// The newest fault of each replica: an older one's mend is void.
    pub(super) tokens: Vec<u64>,
    pub(super) probing: Vec<[Vec<Option<Probing>>; 2]>,
    pub(super) quick_retries: Vec<u32>,
    pub(super) stuck: Vec<Vec<(ReplicaId, usize, Message)>>,
    pub(super) layout: Vec<u32>,
    pub(super) seqs: Vec<Vec<u64>>,
    pub(super) relayouted: At,
    pub(super) number: u64,
    pub(super) chain: u64,
    pub(super) asked: u64,
    calm: bool,
    base: Instant,
    engine: Engine,
    oracle: Oracle,
    queue: BinaryHeap<Reverse<(At, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    order: u64,
    next_look: At,
    calls: u64,
    fingerprint: u64,
    tail: VecDeque<String>,
    loud: bool,
}

impl Sim {
    /// Runs `steps` calls of chaos and then calm until all is mended; panics, with seed and step, when a property breaks.
    pub(super) fn run(seed: u64, steps: u64, base: Instant, loud: bool) -> Outcome {
        let mut rng = Rng::new(seed);
        let setup = Setup::draw(&mut rng);
        let n = setup.members.len();
        let engine = Engine::new(setup.policy.clone(), setup.members.clone(), setup.pinned, base);
        let mut sim = Sim {
            seed,
            world: World::new(&setup),
            oracle: Oracle::new(&setup),
            fault_gap: Duration::from_millis(rng.pick(&[500, 1500, 4000])),
            rng,
            at: At::ZERO,
            frozen_until: At::ZERO,
            active: None,
            tokens: vec![0; n],
            probing: vec![[Vec::new(), Vec::new()]; n],
            quick_retries: vec![0; n],
            stuck: vec![Vec::new(); n],
            layout: vec![0; n],
            seqs: vec![Vec::new(); n],
            relayouted: At::ZERO,
            number: 0,
            chain: 0,
            asked: 0,
            calm: false,
            base,
            engine,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            order: 0,
            next_look: At::ZERO,
            calls: 0,
            fingerprint: 0xcbf2_9ce4_8422_2325,
            tail: VecDeque::new(),
            loud,
            setup,
        };
        sim.note(|| String::from("begins"));
        let setup = format!("{:?}", sim.setup);
        sim.note(|| setup);
        if sim.rng.chance(250) {
            // Not everything is well at the start.
            sim.fault();
        } else {
            sim.after(sim.fault_gap, Happening::Fault);
        }
        if sim.setup.operators {
            sim.after(Duration::from_millis(700), Happening::Operate);
        }
        sim.start_sidecar();
        while sim.calls < steps {
            sim.step();
        }
        sim.calm_down();
        Outcome {
            fingerprint: sim.fingerprint,
            reached: sim.oracle.reached().clone(),
            calls: sim.calls,
            lasted: sim.at,
        }
    }

    /// Mends everything, and waits until the engine has noticed.
    fn calm_down(&mut self) {
        self.calm = true;
        self.note(|| String::from("CALM"));
        self.happenings
            .retain(|_, happening| !happening.of_the_world() && !matches!(happening, Happening::Operate));
        for node in self.setup.ids() {
            self.become_state(node, State::Up);
            for to in self.setup.ids().filter(|&to| to != node) {
                for shard in 0..self.setup.shards(node) {
                    self.mend_way(node, to, shard);
                }
            }
        }
        while self.at < self.frozen_until {
            self.step();
        }
        self.ask(Request::Unpin);
        self.ask(Request::Resume);
        let began = self.at;
        let policy = &self.setup.policy;
        let patience = (policy.grace + policy.dwell) * 16 + Duration::from_secs(15);
        let manual = policy.failback == FailbackMode::Manual;
        let mut ask_again = self.at;
        loop {
            self.step();
            let snapshot = self.engine.snapshot(self.base + self.at);
            let Err(missing) = self.oracle.settled(&self.setup, &snapshot) else {
                break;
            };
            if manual && self.at >= ask_again {
                ask_again = self.at + Duration::from_secs(2);
                self.ask(Request::Failback);
            }
            if self.at > began + patience {
                self.fail(&format!(
                    "L4 calm: {missing}, {patience:?} after everything was mended"
                ));
            }
        }
    }

    fn step(&mut self) {
        let timer = self
            .engine
            .next_timer()
            .map(|due| due.saturating_duration_since(self.base));
        let timer = timer
            .expect("the engine always asks to be called")
            .max(self.frozen_until);
        let next = self.queue.peek().map(|Reverse((at, _))| *at);
        if next.is_none_or(|next| timer < next) {
            self.at = self.at.max(timer) + Duration::from_micros(50);
            self.call(None);
            return;
        }
        let Some(Reverse((at, order))) = self.queue.pop() else {
            return;
        };
        let Some(happening) = self.happenings.remove(&order) else {
            return;
        };
        if at < self.frozen_until && !happening.of_the_world() {
            // It keeps its place among what waits.
            self.queue.push(Reverse((self.frozen_until, order)));
            self.happenings.insert(order, happening);
            return;
        }
        self.at = self.at.max(at);
        self.happen(&happening);
    }

    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::ProbeStart(at) => self.probe_start(at),
            Happening::ProbeEnd {
                at,
                number,
                end,
                generation,
            } => self.probe_end(at, number, end, generation),
            Happening::Beat { node, shard, layout } => self.beat(node, shard, layout),
            Happening::BeatAccepted {
                node,
                shard,
                seq,
                generation,
            } => {
                if generation == self.world.generation[node.index()] && shard < self.setup.shards(node) {
                    self.input(Input::HeartbeatSent {
                        on: node,
                        shard: shard_id(shard),
                        seq,
                    });
                }
            }
            Happening::Arrive {
                from,
                to,
                shard,
                message,
            } => self.arrive(from, to, shard, message),
            Happening::AliveTick => self.alive_tick(),
            Happening::LinkTrouble { node, tries, chain } => self.link_trouble(node, tries, chain),
            Happening::Noise { node, seen } => self.input(Input::Passive { replica: node, seen }),
            Happening::Drained { epoch } => self.input(Input::Drained { epoch }),
            Happening::Resubscribe { node } => self.resubscribe(node),
            Happening::Operate => self.operate(),
            Happening::Fault => self.fault(),
            Happening::Mend { node, token } => self.mend(node, token),
            Happening::MendWay { from, to, shard } => self.mend_way(from, to, shard),
            Happening::Fall { node, lasting } => self.fall(node, lasting),
            Happening::FallOfActive => {
                if let Some(active) = self.active {
                    self.fall(active, self.setup.policy.heartbeat_timeout * 8);
                }
            }
        }
    }

    pub(super) fn schedule(&mut self, at: At, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order)));
        self.happenings.insert(self.order, happening);
    }

    pub(super) fn after(&mut self, wait: Duration, happening: Happening) {
        self.schedule(self.at + wait, happening);
    }

    pub(super) fn input(&mut self, input: Input) {
        self.call(Some(input));
    }

    pub(super) fn relayout_engine(&mut self, node: ReplicaId) {
        self.engine
            .set_shards(node, self.setup.members[node.index()].shards);
        self.oracle.before_call(self.at, None, &self.setup);
        self.after_call();
    }

    fn call(&mut self, input: Option<Input>) {
        self.calls += 1;
        self.oracle.before_call(self.at, input.as_ref(), &self.setup);
        let mut now = self.base + self.at;
        if self.rng.chance(10) {
            // A clock that steps back a little.
            now = now.checked_sub(Duration::from_millis(2)).unwrap_or(now);
        }
        match input {
            Some(input) => {
                let words = format!("IN {input:?}");
                self.note(|| words);
                self.engine.observe(input, now);
            }
            None => self.engine.on_timer(now),
        }
        self.after_call();
        if self.rng.chance(20) {
            self.engine.on_timer(self.base + self.at);
            self.after_call();
            self.engine.on_timer(self.base + self.at);
            if let Some(output) = self.engine.poll() {
                self.fail(&format!("a spurious timer call did something: {output:?}"));
            }
        }
    }

    fn after_call(&mut self) {
        while let Some(output) = self.engine.poll() {
            let words = format!("OUT {output:?}");
            self.note(|| words);
            if let Err(broken) = self.oracle.output(&self.setup, &self.world, &output) {
                self.fail(&broken);
            }
            match output {
                Output::Route(route) => {
                    let before = self.active.replace(route.write);
                    if route.holding {
                        self.drain(route.epoch);
                    }
                    if before != self.active {
                        self.start_trouble(route.write);
                    }
                }
                Output::PublishFence { id, on } => self.publish_fence(id, on),
                Output::Event(Event::Switched(_) | Event::Tilt { .. } | _)
                | Output::Answer { .. }
                | Output::RememberPin(_) => {}
            }
        }
        let looked = if self.at >= self.next_look {
            self.next_look = self.at + Duration::from_millis(100);
            let snapshot = self.engine.snapshot(self.base + self.at);
            self.oracle
                .look(&self.setup, &self.world, &snapshot, self.relayouted)
        } else {
            Ok(())
        };
        let lively = self.oracle.liveness(&self.setup, &self.world, self.relayouted);
        if let Err(broken) = looked.and(lively) {
            self.fail(&broken);
        }
    }

    /// Adds a line to the transcript.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>12?} {}", self.at, line());
        for byte in line.bytes() {
            self.fingerprint = (self.fingerprint ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.loud {
            eprintln!("{line}");
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn fail(&self, broken: &str) -> ! {
        let mut words = String::new();
        for line in &self.tail {
            let _ = writeln!(words, "{line}");
        }
        panic!(
            "{words}\nBROKEN: {broken}\nat seed {} step {} ({:?}), {}\nreplay: PULSEGATE_SIM_SEED={} cargo nextest run \
             decision::sim --no-capture",
            self.seed,
            self.calls,
            self.at,
            if self.calm { "in the calm" } else { "in the chaos" },
            self.seed
        );
    }
}
