//! What goes wrong: faults of replicas and links, the sidecar's own stalls, and operators.

use std::collections::BTreeMap;
use std::time::Duration;

use super::run::{Happening, Sim};
use super::sidecar::{End, Loop};
use super::world::{State, Way, Word};
use crate::decision::event::{Input, PassiveEvidence, ProbeKind, Request};
use crate::replica::{CellId, ReplicaId};

const MS: Duration = Duration::from_millis(1);

impl Sim {
    fn any_node(&mut self) -> ReplicaId {
        match self.active {
            Some(active) if self.rng.chance(500) => active,
            _ => ReplicaId(u8::try_from(self.rng.below(self.setup.members.len())).unwrap_or(0)),
        }
    }

    fn lasting(&mut self) -> Duration {
        let window = self.setup.policy.heartbeat_timeout;
        let (low, high) = self.rng.pick(&[
            (window / 20, window / 4),
            (window / 2, window * 2),
            (window * 3, window * 9),
            (window * 3, window * 9),
        ]);
        self.rng.between(low, high)
    }

    /// A link may stay broken for long: nobody leaves because of it.
    fn lasting_link(&mut self) -> Duration {
        let window = self.setup.policy.heartbeat_timeout;
        if self.rng.chance(400) {
            self.rng.between(window * 9, window * 20)
        } else {
            self.lasting()
        }
    }

    /// One fault, and the time of the next.
    pub(super) fn fault(&mut self) {
        let gap = self.fault_gap;
        let wait = self.rng.between(gap / 4, gap * 2);
        self.after(wait, Happening::Fault);
        if self.setup.links_break {
            match self.rng.below(10) {
                0..=4 => self.link_fault(),
                5..=6 => self.isolate(),
                7 => self.stall(),
                _ => {
                    // Its return begins among broken links.
                    let lasting = self.setup.policy.heartbeat_timeout * 2;
                    self.fall(self.setup.preferred, lasting);
                }
            }
            return;
        }
        match self.rng.below(49) / 2 {
            0..=6 => self.node_fault(),
            7..=8 => self.link_fault(),
            9..=10 => self.isolate(),
            11..=12 => self.stall(),
            13 => self.outage(),
            14 => self.flap(),
            15 => self.kill_twice(),
            16 => self.blip(),
            17..=18 => self.broken_link(),
            19 => self.relayout(),
            20 => self.cluster_says_no(),
            21 => self.error_answers(),
            22 => self.repolicy(),
            23 => self.all_slow(),
            _ => self.restart(),
        }
    }

    fn node_fault(&mut self) {
        let node = self.any_node();
        let state = self.rng.pick(&[
            State::Dead,
            State::Dead,
            State::Hung,
            State::Hung,
            State::Loading,
            State::Stale,
            State::Stale,
            State::Paused,
            State::Mute,
            State::Slow,
        ]);
        let lasting = self.lasting();
        self.become_for(node, state, lasting);
    }

    fn become_for(&mut self, node: ReplicaId, state: State, lasting: Duration) {
        self.become_state(node, state);
        self.tokens[node.index()] += 1;
        let token = self.tokens[node.index()];
        self.after(lasting, Happening::Mend { node, token });
    }

    /// A dead replica may come back loading first; anything else comes back well.
    pub(super) fn mend(&mut self, node: ReplicaId, token: u64) {
        if self.tokens[node.index()] != token {
            return;
        }
        if self.world.state(node) == State::Dead && self.rng.chance(300) {
            let lasting = self.lasting();
            self.become_for(node, State::Loading, lasting);
        } else {
            self.become_state(node, State::Up);
        }
    }

    /// Changes the truth about one replica, with everything that follows from it at once.
    pub(super) fn become_state(&mut self, node: ReplicaId, state: State) {
        let i = node.index();
        let before = self.world.state(node);
        self.world.nodes[i].set(self.at, state);
        self.note(|| format!("TRUTH {node} {before:?} -> {state:?}"));
        if matches!(state, State::Dead | State::Hung) && before != state {
            self.world.generation[i] += 1;
        }
        if state == State::Dead {
            self.world.subscribed[i] = false;
            self.stuck[i].clear();
            let generation = self.world.generation[i];
            for (kind, slots) in [ProbeKind::Ping, ProbeKind::Write]
                .into_iter()
                .zip(self.probing[i].clone())
            {
                for (shard, number) in slots
                    .iter()
                    .enumerate()
                    .filter_map(|(s, slot)| Some((s, slot.as_ref()?.number())))
                {
                    let at = Loop {
                        node,
                        shard,
                        kind,
                        layout: self.layout[i],
                    };
                    self.after(
                        MS,
                        Happening::ProbeEnd {
                            at,
                            number,
                            end: End::Broken,
                            generation,
                        },
                    );
                }
            }
        } else if before == State::Dead {
            self.after(MS * 50, Happening::Resubscribe { node });
        }
        if before == State::Hung && state != State::Dead {
            for (from, cell, message) in std::mem::take(&mut self.stuck[i]) {
                self.after(
                    MS,
                    Happening::Arrive {
                        from,
                        to: node,
                        cell,
                        message,
                    },
                );
            }
        }
        self.start_trouble(node);
    }

    fn link_fault(&mut self) {
        let (a, b) = match self.active {
            Some(active) if self.rng.chance(400) => (self.setup.preferred, active),
            _ => (self.any_node(), self.any_node()),
        };
        if a == b {
            return;
        }
        let window = self.setup.policy.heartbeat_timeout;
        let way = self.rng.pick(&[
            Way::Cut,
            Way::Cut,
            Way::Late(self.setup.policy.lag_tolerance + MS * 200),
            Way::Late(self.setup.policy.lag_tolerance + MS * 200),
            Way::Late(window * 2),
        ]);
        let lasting = self.lasting_link();
        let cells = self.setup.cell_ids();
        let only = self.rng.chance(500).then(|| self.rng.pick(&cells));
        self.set_ways(&[(a, b)], only, way, lasting);
        if self.rng.chance(300) {
            self.set_ways(&[(b, a)], None, way, lasting);
        }
    }

    fn isolate(&mut self) {
        let node = match self.active {
            Some(active) if self.rng.chance(500) => active,
            _ => self.any_node(),
        };
        let others = self.setup.ids().filter(|&other| other != node);
        let pairs: Vec<_> = others.flat_map(|other| [(node, other), (other, node)]).collect();
        let lasting = self.lasting_link();
        self.set_ways(&pairs, None, Way::Cut, lasting);
    }

    fn set_ways(
        &mut self,
        pairs: &[(ReplicaId, ReplicaId)],
        only: Option<CellId>,
        way: Way,
        lasting: Duration,
    ) {
        for &(from, to) in pairs {
            for cell in self.setup.cell_ids() {
                if only.is_none_or(|only| only == cell)
                    && let Some(history) = self.world.ways[from.index()][to.index()].get_mut(&cell)
                {
                    history.set(self.at, way);
                    self.note(|| format!("TRUTH link {from}->{to} {cell:?} {way:?}"));
                    self.after(lasting, Happening::MendWay { from, to, cell });
                }
            }
        }
    }

    /// Opens a link; its backlog comes at once, and late.
    pub(super) fn mend_way(&mut self, from: ReplicaId, to: ReplicaId, cell: CellId) {
        let Some(history) = self.world.ways[from.index()][to.index()].get_mut(&cell) else {
            return;
        };
        history.set(self.at, Way::Open(self.setup.delay));
        self.note(|| format!("TRUTH link {from}->{to} {cell:?} open"));
        let backlog = self.world.backlog[from.index()][to.index()]
            .remove(&cell)
            .unwrap_or_default();
        for (i, message) in (1_u32..).zip(backlog) {
            self.after(
                MS * i / 4,
                Happening::Arrive {
                    from,
                    to,
                    cell,
                    message,
                },
            );
        }
    }

    /// The sidecar stands still; sometimes too short to matter.
    pub(super) fn stall(&mut self) {
        let limit = self.setup.policy.tilt_after;
        let window = self.setup.policy.heartbeat_timeout;
        let (low, high) = self.rng.pick(&[
            (limit / 4, limit / 2),
            (limit * 5 / 4, window * 2),
            (window, window * 6),
        ]);
        let lasting = self.rng.between(low, high);
        self.frozen_until = self.frozen_until.max(self.at + lasting);
        self.note(|| format!("TRUTH the sidecar stalls for {lasting:?}"));
        if self.rng.chance(300) {
            // A replica falls meanwhile.
            self.node_fault();
        }
    }

    fn outage(&mut self) {
        for node in self.setup.ids() {
            let state = self.rng.pick(&[State::Dead, State::Hung, State::Loading]);
            let lasting = self.lasting();
            self.become_for(node, state, lasting);
        }
    }

    fn flap(&mut self) {
        let node = self.any_node();
        let window = self.setup.policy.heartbeat_timeout;
        let mut wait = Duration::ZERO;
        for _ in 0..3 {
            self.after(
                wait,
                Happening::Fall {
                    node,
                    lasting: window / 2,
                },
            );
            wait += self.rng.between(window, window * 4);
        }
    }

    fn kill_twice(&mut self) {
        let Some(active) = self.active else { return };
        let window = self.setup.policy.heartbeat_timeout;
        self.become_for(active, State::Dead, window * 8);
        let wait = self.rng.between(window / 2, window * 3);
        self.after(wait, Happening::FallOfActive);
    }

    pub(super) fn fall(&mut self, node: ReplicaId, lasting: Duration) {
        self.become_for(node, State::Dead, lasting);
    }

    /// The monitor's subscription breaks and comes back.
    fn blip(&mut self) {
        let node = self.any_node();
        if self.world.state(node) == State::Dead {
            return;
        }
        self.world.subscribed[node.index()] = false;
        let wait = self.rng.between(MS * 20, MS * 200);
        self.world.noise[node.index()] = self.at + wait;
        self.after(wait, Happening::Resubscribe { node });
    }

    /// The sidecar dies and is started again: a new incarnation that remembers the pin and hears no old heartbeat.
    fn restart(&mut self) {
        if !self.started {
            return;
        }
        self.note(|| String::from("TRUTH the sidecar is restarted"));
        self.forget_the_sidecar();
        for i in 0..self.setup.members.len() {
            self.probing[i] = [Vec::new(), Vec::new()];
            self.quick_retries[i] = 0;
            self.stuck[i].clear();
            self.seqs[i].clear();
            self.layout[i] += 1;
            self.world.subscribed[i] = false;
            self.world.noise[i] = self.at;
            self.world.backlog[i].iter_mut().for_each(BTreeMap::clear);
        }
        self.start_sidecar();
    }

    pub(super) fn resubscribe(&mut self, node: ReplicaId) {
        match self.world.state(node) {
            State::Dead => {}
            State::Hung => self.after(MS * 100, Happening::Resubscribe { node }),
            _ => {
                self.world.subscribed[node.index()] = true;
                self.input(Input::Subscribed { replica: node });
            }
        }
    }

    /// A connection breaks while the replica is well.
    fn broken_link(&mut self) {
        let node = self.any_node();
        self.world.noise[node.index()] = self.at;
        for _ in 0..=self.rng.below(4) {
            let seen = self.rng.pick(&[
                PassiveEvidence::Broken,
                PassiveEvidence::ResponseTimeout,
                PassiveEvidence::ConnectTimeout,
                PassiveEvidence::Rejected,
            ]);
            self.after(MS, Happening::Noise { node, seen });
        }
    }

    /// Applications are answered with errors that tell of the replica's state, though its probes find nothing.
    fn error_answers(&mut self) {
        let node = self.any_node();
        self.world.noise[node.index()] = self.at;
        let seen = self
            .rng
            .pick(&[PassiveEvidence::Unready, PassiveEvidence::Unwritable]);
        for n in 0..self.rng.below(8) {
            self.after(MS * 20 * n as u32, Happening::Noise { node, seen });
        }
    }

    fn cluster_says_no(&mut self) {
        let node = if self.rng.chance(600) {
            self.setup.preferred
        } else {
            self.any_node()
        };
        self.world.rest[node.index()] = self
            .rng
            .pick(&[Word::Unavailable, Word::Unavailable, Word::Silence]);
        let lasting = self.lasting_link();
        self.after(lasting, Happening::MendRest { node });
    }

    /// The network or the sidecar's machine is slow, so every replica seems to be.
    fn all_slow(&mut self) {
        let lasting = self.setup.policy.heartbeat_timeout * 20;
        for node in self.setup.ids() {
            if self.world.state(node) == State::Up {
                self.become_for(node, State::Slow, lasting);
            }
        }
    }

    fn relayout(&mut self) {
        let frozen = self.at < self.frozen_until;
        if frozen || self.setup.shards.iter().all(|&count| count == 1) {
            return;
        }
        let node = self.any_node();
        let count = self.rng.pick(&[1_u16, 2, 3]);
        let i = node.index();
        let before = self.setup.cell_ids();
        let mut shards = self.setup.shards.clone();
        shards[i] = count;
        self.setup.relayout(shards);
        self.world.relayout(&self.setup);
        for other in self.setup.ids() {
            self.world.noise[other.index()] = self.at;
        }
        self.probing[i] = [Vec::new(), Vec::new()];
        self.tell_layout();
        self.layout[i] += 1;
        self.start_probes(node);
        let mut new = self.setup.cell_ids();
        new.retain(|cell| !before.contains(cell));
        self.start_beats(&new);
        self.note(|| format!("TRUTH {node} has {count} shards from now"));
    }

    /// One operator's request, and the time of the next.
    pub(super) fn operate(&mut self) {
        let wait = self.rng.between(MS * 200, MS * 8000);
        self.after(wait, Happening::Operate);
        let to = ReplicaId(u8::try_from(self.rng.below(self.setup.members.len() + 1)).unwrap_or(0));
        let request = match self.rng.below(12) {
            0..=3 => Request::Switch {
                to,
                reason: "a drill".to_owned(),
            },
            4 => Request::Pin { replica: to },
            5..=6 => Request::Unpin,
            7..=8 => Request::Failback,
            9 => Request::Hold,
            _ => Request::Resume,
        };
        self.ask(request);
    }

    pub(super) fn ask(&mut self, request: Request) {
        self.asked += 1;
        let id = self.asked;
        self.input(Input::Operator { id, request });
    }
}
