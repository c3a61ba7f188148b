//! The smallest world: some replicas, what each of them does, and time.

use std::time::{Duration, Instant};

use super::{A, BEAT, MS, policy};
use crate::decision::*;
use crate::replica::{CellId, ReplicaId, ShardId};

/// Replicas by name `a`, `b`, …, of equal weight.
pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) now: Instant,
    began: Instant,
    pub(super) seq: u64,
    pub(super) pings: Vec<bool>,
    /// How long each takes to answer.
    pub(super) rtts: Vec<Duration>,
    pub(super) writes: Vec<Option<bool>>,
    /// Heartbeats of the first are not heard on the second.
    pub(super) cut: Vec<(ReplicaId, ReplicaId)>,
    outputs: Vec<Output>,
}

impl World {
    /// Every replica has been well for two seconds, and `a` is active.
    pub(super) fn new(count: u8) -> World {
        World::bare(count).settled()
    }

    /// The same with a REST check of every replica, made at this interval; none has been answered.
    pub(super) fn checked(count: u8, interval: Duration) -> World {
        World::with_rest(count, Some(interval)).settled()
    }

    fn settled(mut self) -> World {
        self.pass(MS * 2000);
        assert_eq!(self.active(), Some(A));
        self.outputs.clear();
        self
    }

    /// Nothing is known yet.
    pub(super) fn bare(count: u8) -> World {
        World::with_rest(count, None)
    }

    #[expect(clippy::disallowed_methods, reason = "any moment will do to begin with")]
    fn with_rest(count: u8, rest: Option<Duration>) -> World {
        let members = (0..count).map(|i| Member {
            id: ReplicaId(i),
            name: char::from(b'a' + i).to_string().into(),
            weight: 100,
            rest,
        });
        let now = Instant::now();
        let mut world = World {
            engine: Engine::new(policy(), members.collect(), None, now),
            now,
            began: now,
            seq: 0,
            pings: vec![true; usize::from(count)],
            rtts: vec![MS; usize::from(count)],
            writes: vec![Some(true); usize::from(count)],
            cut: Vec::new(),
            outputs: Vec::new(),
        };
        for replica in world.ids() {
            world.tell(Input::Subscribed { replica });
        }
        world
    }

    pub(super) fn ids(&self) -> Vec<ReplicaId> {
        self.engine.ids().collect()
    }

    /// When the world began.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn active(&self) -> Option<ReplicaId> {
        self.engine.snapshot(self.now).active
    }

    pub(super) fn view(&self, id: ReplicaId) -> ReplicaView {
        self.engine.snapshot(self.now).replicas[id.index()].clone()
    }

    pub(super) fn tell(&mut self, input: Input) {
        self.engine.observe(input, self.now);
        self.outputs.extend(std::iter::from_fn(|| self.engine.poll()));
    }

    pub(super) fn probe(
        &mut self,
        replica: ReplicaId,
        kind: ProbeKind,
        outcome: Result<Duration, ProbeFailure>,
    ) {
        let shard = ShardId::ONLY;
        self.tell(Input::Probe {
            replica,
            shard,
            kind,
            outcome,
        });
    }

    pub(super) fn beat(&mut self) {
        self.seq += 1;
        let (seq, cell) = (self.seq, CellId::ONLY);
        for on in self.ids() {
            let rtt = self.rtts[on.index()];
            if self.pings[on.index()] {
                self.probe(on, ProbeKind::Ping, Ok(rtt));
            }
            match self.writes[on.index()] {
                Some(true) => self.probe(on, ProbeKind::Write, Ok(rtt)),
                Some(false) => {
                    let refused = ProbeFailure::Rejected("NOREPLICAS".to_owned());
                    self.probe(on, ProbeKind::Write, Err(refused));
                }
                None => continue,
            }
            self.tell(Input::HeartbeatSent { on, cell, seq });
            for to in self.ids() {
                if self.writes[to.index()].is_some() && !self.cut.contains(&(on, to)) {
                    let (from, age) = (on, MS);
                    self.tell(Input::HeartbeatHeard {
                        from,
                        to,
                        cell,
                        seq,
                        age,
                        sent: self.now,
                    });
                }
            }
        }
    }

    /// Lets time go by, with evidence at each beat and the engine's timers in between.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += BEAT / 2;
            self.engine.on_timer(self.now);
            self.now += BEAT / 2;
            self.beat();
        }
    }

    /// Nothing listens on `id` any more, and everybody notices.
    pub(super) fn kill(&mut self, id: ReplicaId) {
        self.pings[id.index()] = false;
        self.writes[id.index()] = None;
        for _ in 0..3 {
            self.probe(id, ProbeKind::Ping, Err(ProbeFailure::Refused));
        }
    }

    pub(super) fn revive(&mut self, id: ReplicaId) {
        self.pings[id.index()] = true;
        self.writes[id.index()] = Some(true);
    }

    pub(super) fn ask(&mut self, id: u64, request: Request) {
        self.tell(Input::Operator { id, request });
    }

    pub(super) fn switch(&mut self, id: u64, to: ReplicaId) {
        let reason = String::new();
        self.ask(id, Request::Switch { to, reason });
    }

    pub(super) fn answer(&self, wanted: u64) -> Option<&Result<String, String>> {
        self.outputs.iter().find_map(|output| match output {
            Output::Answer { id, result } if *id == wanted => Some(result),
            _ => None,
        })
    }

    pub(super) fn remembered(&self) -> Vec<Option<ReplicaId>> {
        self.outputs
            .iter()
            .filter_map(|output| match output {
                Output::RememberPin(pin) => Some(*pin),
                _ => None,
            })
            .collect()
    }

    pub(super) fn switches(&self) -> Vec<(ReplicaId, SwitchReason)> {
        self.outputs
            .iter()
            .filter_map(|output| match output {
                Output::Event(Event::Switched(switched)) => Some((switched.to, switched.reason)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn events(&self) -> impl Iterator<Item = &Event> {
        self.outputs.iter().filter_map(|output| match output {
            Output::Event(event) => Some(event),
            _ => None,
        })
    }

    pub(super) fn holding_epoch(&self) -> u64 {
        let snapshot = self.engine.snapshot(self.now);
        assert!(snapshot.holding, "a planned move holds");
        snapshot.epoch
    }

    /// Until `done`, for at most `patience`; how long it took.
    pub(super) fn until(&mut self, patience: Duration, done: impl Fn(&World) -> bool) -> Duration {
        let began = self.now;
        while !done(self) {
            assert!(
                self.now < began + patience,
                "not within {patience:?}: {:#?}",
                self.outputs.iter().rev().take(5).collect::<Vec<_>>()
            );
            self.pass(BEAT);
        }
        self.now - began
    }
}
