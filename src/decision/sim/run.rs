//! The run: one queue of happenings, the engine, and the oracle that watches every call.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::oracle::Oracle;
use super::rng::Rng;
use super::setup::Setup;
use super::sidecar::{End, Loop, Probing};
use super::subject::{Sabotage, Subject};
use super::world::{At, Message, State, Word, World};
use crate::decision::event::{Event, Input, Output, PassiveEvidence, Request, SwitchReason};
use crate::decision::policy::FailbackMode;
use crate::replica::{CellId, ReplicaId};

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
        cell: CellId,
    },
    BeatAccepted {
        node: ReplicaId,
        cell: CellId,
        seq: u64,
        generation: u32,
    },
    Arrive {
        from: ReplicaId,
        to: ReplicaId,
        cell: CellId,
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
    AskRest {
        node: ReplicaId,
        every: Duration,
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
        cell: CellId,
    },
    Fall {
        node: ReplicaId,
        lasting: Duration,
    },
    FallOfActive,
    MendRest {
        node: ReplicaId,
    },
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
                | Happening::MendRest { .. }
        )
    }
}

/// What becomes of the transcript. A world is the same whatever becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transcript {
    /// It is not written: that costs most of the time.
    None,
    /// Its end is kept for a failure's story.
    Kept,
    /// It goes to stderr.
    Loud,
}

/// What a run leaves behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    /// Of the whole transcript, when there is one.
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
    pub(super) stuck: Vec<Vec<(ReplicaId, CellId, Message)>>,
    pub(super) layout: Vec<u32>,
    pub(super) seqs: Vec<BTreeMap<CellId, u64>>,
    pub(super) started: bool,
    pub(super) number: u64,
    pub(super) chain: u64,
    pub(super) asked: u64,
    pub(super) calm: bool,
    pub(super) base: Instant,
    subject: Subject,
    oracle: Oracle,
    queue: BinaryHeap<Reverse<(At, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    order: u64,
    next_look: At,
    calls: u64,
    fingerprint: u64,
    tail: VecDeque<String>,
    transcript: Transcript,
    broken: Option<Box<Broken>>,
}

/// A promise broken: which, and how to see it again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Broken {
    /// The property, and what was seen.
    pub(super) property: String,
    pub(super) seed: u64,
    pub(super) step: u64,
    /// The end of the transcript, and the command that replays it.
    story: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Broken {
            property,
            seed,
            step,
            story,
        } = self;
        write!(f, "{story}\nBROKEN: {property}\nat seed {seed} step {step}\n")?;
        write!(
            f,
            "replay: PULSEGATE_SIM_SEED={seed} cargo nextest run --lib decision::sim --no-capture"
        )
    }
}

impl Sim {
    /// Runs `steps` calls of chaos and then calm until all is mended. Ends at the first property that breaks.
    pub(super) fn run(
        seed: u64,
        steps: u64,
        base: Instant,
        sabotage: Option<Sabotage>,
        transcript: Transcript,
    ) -> Result<Outcome, Box<Broken>> {
        let mut sim = Sim::new(seed, base, sabotage, transcript);
        let lived = catch_unwind(AssertUnwindSafe(|| sim.live(steps)));
        if let Err(panic) = lived {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
            sim.fail(&format!(
                "invariant: {}",
                words.unwrap_or("a panic without words")
            ));
        }
        match sim.broken {
            Some(broken) => Err(broken),
            None => Ok(Outcome {
                fingerprint: sim.fingerprint,
                reached: sim.oracle.reached().clone(),
                calls: sim.calls,
                lasted: sim.at,
            }),
        }
    }

    fn new(seed: u64, base: Instant, sabotage: Option<Sabotage>, transcript: Transcript) -> Sim {
        let mut rng = Rng::new(seed);
        let setup = Setup::draw(&mut rng);
        let n = setup.members.len();
        Sim {
            seed,
            subject: Subject::new(&setup, setup.pinned, sabotage, base),
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
            seqs: vec![BTreeMap::new(); n],
            started: false,
            number: 0,
            chain: 0,
            asked: 0,
            calm: false,
            base,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            order: 0,
            next_look: At::ZERO,
            calls: 0,
            fingerprint: 0xcbf2_9ce4_8422_2325,
            tail: VecDeque::new(),
            transcript,
            broken: None,
            setup,
        }
    }

    fn live(&mut self, steps: u64) {
        self.note(|| String::from("begins"));
        let setup = format!("{:?}", self.setup);
        self.note(|| setup);
        if self.rng.chance(250) {
            // Not everything is well at the start.
            self.fault();
        } else {
            self.after(self.fault_gap, Happening::Fault);
        }
        if self.setup.operators {
            self.after(Duration::from_millis(700), Happening::Operate);
        }
        self.started = true;
        self.start_sidecar();
        while self.calls < steps && self.broken.is_none() {
            self.step();
        }
        if self.broken.is_none() {
            self.calm_down();
        }
    }

    /// A restart: the engine, its books and all that the sidecar had under way are gone.
    pub(super) fn forget_the_sidecar(&mut self) {
        self.happenings
            .retain(|_, happening| happening.of_the_world() || matches!(happening, Happening::Operate));
        self.frozen_until = self.at;
        self.active = None;
        self.chain += 1;
        let pinned = self.oracle.pinned();
        self.subject = self.subject.restarted(&self.setup, pinned, self.base + self.at);
        self.oracle.restarted(self.at, &self.setup);
    }

    /// Mends everything, and waits until the engine has noticed.
    fn calm_down(&mut self) {
        self.calm = true;
        self.note(|| String::from("CALM"));
        self.happenings
            .retain(|_, happening| !happening.of_the_world() && !matches!(happening, Happening::Operate));
        for node in self.setup.ids() {
            self.become_state(node, State::Up);
            self.world.rest[node.index()] = Word::Available;
            for to in self.setup.ids().filter(|&to| to != node) {
                for cell in self.setup.cell_ids() {
                    self.mend_way(node, to, cell);
                }
            }
        }
        while self.at < self.frozen_until && self.broken.is_none() {
            self.step();
        }
        self.ask(Request::Unpin);
        self.ask(Request::Resume);
        let began = self.at;
        let policy = &self.setup.policy;
        let patience = (policy.grace + policy.soak + policy.dwell) * 16 + Duration::from_secs(15);
        let manual = policy.failback == FailbackMode::Manual;
        let mut ask_again = self.at;
        while self.broken.is_none() {
            self.step();
            let snapshot = self.subject.snapshot(self.base + self.at);
            let Err(missing) = self.oracle.settled(&self.setup, &snapshot) else {
                break;
            };
            if self.at >= ask_again {
                ask_again = self.at + Duration::from_secs(2);
                // Also ends the effect of a switch that an operator had asked for before.
                self.ask(Request::Unpin);
                if manual {
                    self.ask(Request::Failback);
                }
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
            .subject
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
            Happening::Beat { node, cell } => self.beat(node, cell),
            Happening::BeatAccepted {
                node,
                cell,
                seq,
                generation,
            } => {
                if generation == self.world.generation[node.index()] {
                    self.input(Input::HeartbeatSent { on: node, cell, seq });
                }
            }
            Happening::Arrive {
                from,
                to,
                cell,
                message,
            } => self.arrive(from, to, cell, message),
            Happening::AliveTick => self.alive_tick(),
            Happening::LinkTrouble { node, tries, chain } => self.link_trouble(node, tries, chain),
            Happening::Noise { node, seen } => self.input(Input::Passive { replica: node, seen }),
            Happening::Drained { epoch } => self.input(Input::Drained { epoch }),
            Happening::Resubscribe { node } => self.resubscribe(node),
            Happening::AskRest { node, every } => self.ask_rest(node, every),
            Happening::MendRest { node } => self.world.rest[node.index()] = Word::Available,
            Happening::Operate => self.operate(),
            Happening::Fault => self.fault(),
            Happening::Mend { node, token } => self.mend(node, token),
            Happening::MendWay { from, to, cell } => self.mend_way(from, to, cell),
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

    /// Tells the engine the layouts as they are now.
    pub(super) fn tell_layout(&mut self) {
        self.oracle.relayout(self.at);
        self.input(Input::Layout(self.setup.map()));
    }

    /// The configuration is read again.
    pub(super) fn repolicy(&mut self) {
        if self.at < self.frozen_until {
            return;
        }
        self.setup.redraw_policy(&mut self.rng);
        let policy = format!("TRUTH the policy is {:?}", self.setup.policy);
        self.note(|| policy);
        self.calls += 1;
        self.oracle.before_call(self.at, None, &self.setup);
        self.oracle.repolicy(&self.setup);
        self.subject
            .set_policy(self.setup.policy.clone(), self.base + self.at);
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
                if self.transcript != Transcript::None {
                    let words = format!("IN {}", words(&input));
                    self.note(|| words);
                }
                self.subject.observe(input, now);
            }
            None => self.subject.on_timer(now),
        }
        self.after_call();
        if self.rng.chance(20) {
            self.subject.on_timer(self.base + self.at);
            self.after_call();
            self.subject.on_timer(self.base + self.at);
            if let Some(output) = self.subject.poll() {
                self.fail(&format!("a spurious timer call did something: {output:?}"));
            }
        }
    }

    fn after_call(&mut self) {
        while let Some(output) = self.subject.poll() {
            if self.transcript != Transcript::None {
                let words = format!("OUT {output:?}");
                self.note(|| words);
            }
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
                Output::Event(Event::Switched(switched)) if switched.reason == SwitchReason::Failback => {
                    self.returned(switched.to);
                }
                Output::Event(_) | Output::Answer { .. } | Output::RememberPin(_) => {}
            }
        }
        let looked = if self.at >= self.next_look {
            self.next_look = self.at + Duration::from_millis(100);
            let snapshot = self.subject.snapshot(self.base + self.at);
            self.oracle.look(&self.setup, &self.world, &snapshot)
        } else {
            Ok(())
        };
        let lively = self.oracle.after_call(&self.setup, &self.world);
        if let Err(broken) = looked.and(lively) {
            self.fail(&broken);
        }
    }

    /// The traffic is back on `node`: sometimes that is too much for it.
    fn returned(&mut self, node: ReplicaId) {
        if self.calm || !self.rng.chance(300) {
            return;
        }
        let wait = self.rng.between(Duration::ZERO, self.setup.policy.grace);
        let lasting = self.setup.policy.heartbeat_timeout / 2;
        self.after(wait, Happening::Fall { node, lasting });
    }

    /// Adds a line to the transcript.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.transcript == Transcript::None {
            return;
        }
        let line = format!("{:>12?} {}", self.at, line());
        for byte in line.bytes() {
            self.fingerprint = (self.fingerprint ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.transcript == Transcript::Loud {
            eprintln!("{line}");
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// The first property that breaks ends the run.
    fn fail(&mut self, property: &str) {
        if self.broken.is_some() {
            return;
        }
        let mut story = String::new();
        for line in &self.tail {
            let _ = writeln!(story, "{line}");
        }
        for view in self.subject.snapshot(self.base + self.at).replicas {
            let _ = writeln!(
                story,
                "{} is {:?}, and called {}, {}: {}",
                view.id,
                self.world.state(view.id),
                view.health,
                view.fitness,
                view.reason
            );
        }
        let when = if self.calm { "in the calm" } else { "in the chaos" };
        let _ = write!(story, "({:?}, {when})", self.at);
        self.broken = Some(Box::new(Broken {
            property: property.to_owned(),
            seed: self.seed,
            step: self.calls,
            story,
        }));
    }
}

/// An input for the transcript: without a moment, which no other process would have again.
fn words(input: &Input) -> String {
    match input {
        Input::HeartbeatHeard {
            from,
            to,
            cell,
            seq,
            age,
            ..
        } => format!("HeartbeatHeard {from}→{to} {cell:?} {seq} {age:?}"),
        other => format!("{other:?}"),
    }
}
