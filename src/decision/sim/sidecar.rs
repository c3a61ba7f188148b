//! A model of everything around the engine within the sidecar: the monitor's probes and heartbeats, and the data plane
//! with the application behind it. It works only while the sidecar is awake; what arrives in a stall waits in sockets.

use std::time::Duration;

use super::run::{Happening, Sim};
use super::world::{At, Message, State, Way, Word};
use crate::decision::event::{Input, PassiveEvidence, ProbeFailure, ProbeKind, RestOutcome};
use crate::replica::{CellId, ReplicaId, ShardId};

const MS: Duration = Duration::from_millis(1);

/// A probe under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probing {
    number: u64,
    start: At,
}

/// How a probe ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Answered,
    Rejected,
    Refused,
    Broken,
    Deadline,
}

/// One probe loop: which replica, which shard, which kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Loop {
    pub(super) node: ReplicaId,
    pub(super) shard: usize,
    pub(super) kind: ProbeKind,
    /// A new layout ends the loops of the old one.
    pub(super) layout: u32,
}

impl Probing {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

/// Shard number as the engine calls it.
pub(super) fn shard_id(shard: usize) -> ShardId {
    ShardId(u16::try_from(shard).expect("few shards"))
}

impl Sim {
    fn round_trip(&mut self, state: State) -> Duration {
        match state {
            State::Slow => self.rng.between(MS * 50, MS * 200),
            _ => self.rng.between(MS / 5, MS * 2),
        }
    }

    /// Starts every loop, each at its own phase.
    pub(super) fn start_sidecar(&mut self) {
        self.tell_layout();
        for node in self.setup.ids() {
            self.start_probes(node);
            self.resubscribe(node);
        }
        self.start_beats(&self.setup.cell_ids());
        self.after(self.setup.policy.heartbeat_interval, Happening::AliveTick);
        for node in self.setup.ids() {
            if let Some(every) = self.setup.members[node.index()].rest {
                let phase = self.rng.between(Duration::ZERO, every);
                self.after(phase, Happening::AskRest { node, every });
            }
        }
    }

    /// Asks a cluster about its database.
    pub(super) fn ask_rest(&mut self, replica: ReplicaId, every: Duration) {
        let node = replica;
        self.after(every, Happening::AskRest { node, every });
        let outcome = match self.world.rest[node.index()] {
            Word::Available => RestOutcome::Available,
            Word::Unavailable => RestOutcome::Unavailable("503".to_owned()),
            Word::Silence => RestOutcome::Unknown("no answer".to_owned()),
        };
        self.input(Input::Rest { replica, outcome });
    }

    pub(super) fn start_probes(&mut self, node: ReplicaId) {
        let layout = self.layout[node.index()];
        let probe = self.setup.policy.probe_interval;
        let phase = self.rng.between(Duration::ZERO, probe);
        self.after(
            phase,
            Happening::ProbeStart(Loop {
                node,
                shard: 0,
                kind: ProbeKind::Ping,
                layout,
            }),
        );
        for shard in 0..self.setup.shards(node) {
            let phase = self.rng.between(Duration::ZERO, probe);
            self.after(
                phase,
                Happening::ProbeStart(Loop {
                    node,
                    shard,
                    kind: ProbeKind::Write,
                    layout,
                }),
            );
        }
    }

    pub(super) fn start_beats(&mut self, cells: &[CellId]) {
        for node in self.setup.ids() {
            for &cell in cells {
                let phase = self
                    .rng
                    .between(Duration::ZERO, self.setup.policy.heartbeat_interval);
                self.after(phase, Happening::Beat { node, cell });
            }
        }
    }

    fn slot(&mut self, at: Loop) -> &mut Option<Probing> {
        let kind = usize::from(at.kind == ProbeKind::Write);
        let slots = &mut self.probing[at.node.index()][kind];
        if slots.len() <= at.shard {
            slots.resize(at.shard + 1, None);
        }
        &mut slots[at.shard]
    }

    pub(super) fn probe_start(&mut self, at: Loop) {
        if at.layout != self.layout[at.node.index()] || self.slot(at).is_some() {
            return;
        }
        self.number += 1;
        let number = self.number;
        *self.slot(at) = Some(Probing {
            number,
            start: self.at,
        });
        let state = self.world.state(at.node);
        let write = at.kind == ProbeKind::Write;
        let generation = self.world.generation[at.node.index()];
        let end = match state {
            State::Dead => Some(End::Refused),
            State::Hung => None,
            State::Paused if write => None,
            State::Loading => Some(End::Rejected),
            State::Stale if write => Some(End::Rejected),
            _ => Some(End::Answered),
        };
        // One at a time: two in a row are a fault of their own.
        let quiet = self.at.saturating_sub(self.world.noise[at.node.index()]) > self.setup.probe_timeout * 4;
        let lost = state != State::Dead && quiet && !self.calm && self.rng.chance(4);
        if lost {
            self.world.noise[at.node.index()] = self.at + self.setup.probe_timeout;
        }
        if let Some(end) = end.filter(|_| !lost) {
            let wait = if end == End::Refused {
                MS
            } else {
                self.round_trip(state)
            };
            self.after(
                wait,
                Happening::ProbeEnd {
                    at,
                    number,
                    end,
                    generation,
                },
            );
        }
        let deadline = self.setup.probe_timeout;
        self.after(
            deadline,
            Happening::ProbeEnd {
                at,
                number,
                end: End::Deadline,
                generation,
            },
        );
    }

    pub(super) fn probe_end(&mut self, at: Loop, number: u64, end: End, generation: u32) {
        let Some(probing) = (*self.slot(at)).filter(|probing| probing.number == number) else {
            return;
        };
        let same = generation == self.world.generation[at.node.index()];
        let answer = matches!(end, End::Answered | End::Rejected);
        let end = match self.world.state(at.node) {
            State::Dead if answer && !same => End::Broken,
            _ if answer && !same => return,
            _ => end,
        };
        *self.slot(at) = None;
        let rtt = self.at.saturating_sub(probing.start);
        let interval = self.setup.policy.probe_interval;
        let misses = &mut self.quick_retries[at.node.index()];
        let mut next = (probing.start + interval).max(self.at + MS);
        if matches!(end, End::Refused | End::Broken) {
            next = self.at + interval.min(MS * 20 * 2_u32.pow((*misses).min(4)));
            *misses += 1;
        } else {
            *misses = 0;
        }
        self.schedule(next, Happening::ProbeStart(at));
        let outcome = match end {
            End::Answered => Ok(rtt),
            End::Rejected if self.world.state(at.node) == State::Loading => {
                Err(ProbeFailure::Rejected("LOADING".to_owned()))
            }
            End::Rejected => Err(ProbeFailure::Rejected("NOREPLICAS".to_owned())),
            End::Refused => Err(ProbeFailure::Refused),
            End::Broken => Err(ProbeFailure::Broken),
            End::Deadline => Err(ProbeFailure::Timeout),
        };
        self.input(Input::Probe {
            replica: at.node,
            shard: shard_id(at.shard),
            kind: at.kind,
            outcome,
        });
    }

    /// Publishes one heartbeat.
    pub(super) fn beat(&mut self, node: ReplicaId, cell: CellId) {
        if !self.setup.has_cell(cell) {
            return;
        }
        let interval = self.setup.policy.heartbeat_interval;
        let wait = self.rng.between(interval * 95 / 100, interval * 105 / 100);
        self.after(wait, Happening::Beat { node, cell });
        let seq = self.seqs[node.index()].entry(cell).or_insert(0);
        *seq += 1;
        let seq = *seq;
        let state = self.world.state(node);
        if !state.publishes() {
            return;
        }
        let rtt = self.round_trip(state);
        let generation = self.world.generation[node.index()];
        self.after(
            rtt,
            Happening::BeatAccepted {
                node,
                cell,
                seq,
                generation,
            },
        );
        let sent = self.at;
        for to in self.setup.ids() {
            let at = (node, to, cell);
            // One at a time: two in a row are a fault of their own.
            if !self.world.lost.remove(&at) && !self.calm && self.rng.chance(3) {
                self.world.lost.insert(at);
            } else {
                self.carry(node, to, cell, Message::Beat { seq, sent }, rtt / 2);
            }
        }
    }

    /// Sends a message over a link, or leaves it in the link's backlog.
    pub(super) fn carry(
        &mut self,
        from: ReplicaId,
        to: ReplicaId,
        cell: CellId,
        message: Message,
        wait: Duration,
    ) {
        match self.world.way(from, to, cell) {
            Way::Open(delay) | Way::Late(delay) => {
                self.after(
                    wait + delay,
                    Happening::Arrive {
                        from,
                        to,
                        cell,
                        message,
                    },
                );
            }
            Way::Cut => {
                let backlog = self.world.backlog[from.index()][to.index()]
                    .entry(cell)
                    .or_default();
                if backlog.len() < 60 {
                    backlog.push(message);
                }
            }
        }
    }

    /// A message reaches the subscriber's socket on `to`.
    pub(super) fn arrive(&mut self, from: ReplicaId, to: ReplicaId, cell: CellId, message: Message) {
        let state = self.world.state(to);
        if state == State::Hung {
            self.stuck[to.index()].push((from, cell, message));
            return;
        }
        if !state.delivers() || !self.world.subscribed[to.index()] || !self.setup.has_cell(cell) {
            return;
        }
        let input = match message {
            Message::Beat { seq, sent } => {
                let age = self.at.saturating_sub(sent);
                Input::HeartbeatHeard {
                    from,
                    to,
                    cell,
                    seq,
                    age,
                    sent: self.base + sent,
                }
            }
            Message::Fence { id } => Input::FenceHeard { id, to, cell },
        };
        self.input(input);
    }

    /// What the application's traffic shows of the active replica.
    pub(super) fn alive_tick(&mut self) {
        self.after(self.setup.policy.heartbeat_interval, Happening::AliveTick);
        let Some(active) = self.active.filter(|_| self.setup.traffic) else {
            return;
        };
        let state = self.world.state(active);
        if state.answers() || state == State::Loading {
            self.input(Input::Passive {
                replica: active,
                seen: PassiveEvidence::Alive,
            });
        }
    }

    /// The truth about `node` changed, or the route did: its links notice, when it is the active.
    pub(super) fn start_trouble(&mut self, node: ReplicaId) {
        if self.active != Some(node) {
            return;
        }
        self.chain += 1;
        self.after(
            MS,
            Happening::LinkTrouble {
                node,
                tries: 0,
                chain: self.chain,
            },
        );
    }

    /// The links of a dead or hung active replica keep trying.
    pub(super) fn link_trouble(&mut self, node: ReplicaId, tries: u32, chain: u64) {
        if chain != self.chain {
            return;
        }
        if self.active != Some(node) || !self.setup.traffic {
            return;
        }
        let (seen, wait) = match self.world.state(node) {
            State::Dead if tries == 0 => (PassiveEvidence::Broken, MS * 2),
            State::Dead => (PassiveEvidence::Refused, MS * 10 * tries.min(5)),
            State::Hung if tries == 0 => {
                self.after(
                    Duration::from_secs(2),
                    Happening::LinkTrouble {
                        node,
                        tries: 1,
                        chain,
                    },
                );
                return;
            }
            State::Hung => (PassiveEvidence::ResponseTimeout, MS * 500),
            _ => return,
        };
        self.after(
            wait,
            Happening::LinkTrouble {
                node,
                tries: tries + 1,
                chain,
            },
        );
        self.input(Input::Passive { replica: node, seen });
    }

    /// The data plane's answer to a holding route.
    pub(super) fn drain(&mut self, epoch: u64) {
        let Some(active) = self.active else { return };
        if !self.calm && self.rng.chance(60) {
            self.stall();
        }
        if self.rng.chance(200) {
            // Left over from an earlier route.
            let old = epoch - 1;
            self.after(MS, Happening::Drained { epoch: old });
        }
        let wait = match self.world.state(active) {
            State::Hung | State::Paused => return,
            _ if !self.calm && self.rng.chance(30) => self.setup.policy.fence * 3 / 2 + MS * 200,
            _ => self.rng.between(MS, MS * 15),
        };
        self.after(wait, Happening::Drained { epoch });
    }

    /// The monitor publishes a fence.
    pub(super) fn publish_fence(&mut self, id: u64, on: ReplicaId) {
        if self.rng.chance(250) {
            // A late one of an earlier move, everywhere.
            for to in self.setup.ids() {
                for cell in self.setup.cell_ids() {
                    let message = Message::Fence { id: id - 1 };
                    self.after(
                        MS / 2,
                        Happening::Arrive {
                            from: on,
                            to,
                            cell,
                            message,
                        },
                    );
                }
            }
        }
        if !self.world.state(on).publishes() {
            return;
        }
        for to in self.setup.ids() {
            for cell in self.setup.cell_ids() {
                self.carry(on, to, cell, Message::Fence { id }, MS);
            }
        }
    }
}
