//! The monitor's half: heartbeats over the links, probes, and what the data plane sees.

use super::*;

impl Life<'_> {
    pub(super) fn jittered(&mut self, usual: Duration) -> Duration {
        let times = self.jitter[self.rng.below(self.jitter.len())];
        usual.mul_f32(times)
    }

    /// A round trip from the sidecar, with what TCP sends again.
    pub(super) fn round_trip(&mut self, node: u8) -> Duration {
        let usual = self.node(node).round_trip;
        let mut trip = self.jittered(usual);
        if self.node(node).state == State::Slow {
            trip += self.slower;
        }
        let distance = self.distances[0][usize::from(node)];
        if distance.spike_until > self.at {
            trip += distance.spike;
        }
        if node != 0 && self.rng.below(1_000_000) < distance.loss {
            trip += self.rng.between(MS * 200, MS * 400);
        }
        trip
    }

    pub(super) fn beat(&mut self, node: u8, cell: u8) {
        let interval = self.terms.policy.heartbeat_interval;
        let wait = self.rng.between(interval * 99 / 100, interval * 101 / 100);
        self.after(wait, What::Beat { node, cell });
        if !self.node(node).state.publishes() {
            return;
        }
        let seq = &mut self.nodes[usize::from(node)].seqs[usize::from(cell)];
        *seq += 1;
        let seq = *seq;
        let trip = self.round_trip(node);
        self.after(trip, What::Accepted { node, cell, seq });
        let sent = self.at;
        for to in 0..self.count() {
            self.tally.beats += 1;
            if self.rng.below(1_000_000) < self.distances[usize::from(node)][usize::from(to)].loss {
                self.tally.lost += 1;
            } else {
                self.carry(node, to, cell, Carried::Beat { seq, sent }, trip / 2);
            }
        }
    }

    /// Over the link and to the sidecar's socket; or into the backlog of a link that is cut.
    pub(super) fn carry(&mut self, from: u8, to: u8, cell: u8, carried: Carried, wait: Duration) {
        let distance = self.distances[usize::from(from)][usize::from(to)];
        let road = &mut self.roads[usize::from(from)][usize::from(to)][usize::from(cell)];
        if road.cut {
            if road.backlog.len() < BACKLOG {
                road.backlog.push(carried);
            }
            return;
        }
        let extra = road.extra;
        let mut lag = self.jittered(distance.usual);
        if distance.spike_until > self.at {
            lag += distance.spike;
        }
        let home = self.jittered(self.node(to).round_trip / 2);
        let road = &mut self.roads[usize::from(from)][usize::from(to)][usize::from(cell)];
        road.newest = road.newest.max(self.at + wait + lag + extra + home);
        let wait = road.newest - self.at;
        if wait > self.terms.policy.lag_tolerance {
            self.distances[usize::from(from)][usize::from(to)].over = Some(self.at + wait);
        }
        self.after(
            wait,
            What::Arrive {
                from,
                to,
                cell,
                carried,
            },
        );
    }

    pub(super) fn arrive(&mut self, from: u8, to: u8, cell: u8, carried: Carried) {
        let node = &mut self.nodes[usize::from(to)];
        if node.state == State::Hung {
            if node.stuck.len() < BACKLOG {
                node.stuck.push((from, cell, carried));
            }
            return;
        }
        if !node.state.delivers() || !node.subscribed {
            return;
        }
        let (to, cell) = (id(to), self.cell(cell));
        self.tell(match carried {
            Carried::Beat { seq, sent } => Input::HeartbeatHeard {
                from: id(from),
                to,
                cell,
                seq,
                age: self.at - sent,
                sent: self.base + sent,
            },
            Carried::Fence(fence) => Input::FenceHeard { id: fence, to, cell },
        });
    }

    pub(super) fn probe_start(&mut self, probe: u8) {
        let Probe { node, kind, .. } = self.probes[usize::from(probe)];
        let state = self.node(node).state;
        let write = kind == ProbeKind::Write;
        if write && matches!(state, State::Dead | State::Hung) {
            // Its connection is gone, and only a PING that is answered brings it back.
            self.after(self.terms.policy.probe_interval, What::ProbeStart(probe));
            return;
        }
        let trip = self.round_trip(node);
        let timeout = self.terms.answer_timeout;
        let end = match state {
            State::Dead => Some(End::Refused),
            State::Hung => None,
            State::Paused if write => None,
            State::Loading => Some(End::Rejected),
            State::Stale if write => Some(End::Rejected),
            _ => Some(End::Answered),
        };
        if trip >= timeout && state != State::Slow {
            self.nodes[usize::from(node)].overrun = Some(self.at + timeout);
        }
        let (end, wait) = match end.filter(|_| trip < timeout) {
            Some(end) => (end, trip),
            None => (End::TimedOut, timeout),
        };
        let at = &mut self.probes[usize::from(probe)];
        at.number += 1;
        at.start = self.at;
        let number = at.number;
        self.after(wait, What::ProbeEnd { probe, number, end });
    }

    pub(super) fn probe_end(&mut self, probe: u8, number: u32, end: End) {
        let Probe {
            node,
            shard,
            kind,
            number: newest,
            start,
            attempts,
        } = self.probes[usize::from(probe)];
        if newest != number {
            return;
        }
        let policy = self.terms.policy;
        let state = self.node(node).state;
        if end == End::Answered && state == State::Hung {
            // It stopped before it answered.
            let wait = (start + self.terms.answer_timeout).saturating_sub(self.at);
            let end = End::TimedOut;
            self.after(wait, What::ProbeEnd { probe, number, end });
            return;
        }
        let good = matches!(end, End::Answered | End::Rejected);
        let wait = if good {
            self.probes[usize::from(probe)].attempts = 0;
            (start + policy.probe_interval).saturating_sub(self.at)
        } else {
            self.probes[usize::from(probe)].attempts += 1;
            let step = BACKOFF
                .get(attempts)
                .map_or(BACKOFF_CAP, |&step| MS * step as u32);
            // To connect and to be let in takes two round trips more.
            let set_up = if state == State::Dead {
                Duration::ZERO
            } else {
                self.node(node).round_trip * 2
            };
            step.min(BACKOFF_CAP).min(policy.probe_interval) + set_up
        };
        self.after(wait, What::ProbeStart(probe));
        let outcome = match end {
            End::Answered => Ok(self.at - start),
            End::Rejected => Err(ProbeFailure::Rejected(
                if state == State::Loading {
                    "LOADING"
                } else {
                    "NOREPLICAS"
                }
                .to_owned(),
            )),
            End::Refused => Err(ProbeFailure::Refused),
            End::Broken => Err(ProbeFailure::Broken),
            End::TimedOut => Err(ProbeFailure::Timeout),
        };
        self.tell(Input::Probe {
            replica: id(node),
            shard: ShardId(shard),
            kind,
            outcome,
        });
    }

    /// Applications use the active replica.
    pub(super) fn alive(&mut self) {
        self.after(self.terms.policy.heartbeat_interval, What::Alive);
        let Some(replica) = self.active else { return };
        let seen = match self.node(replica.0).state {
            State::Hung => return,
            State::Dead => PassiveEvidence::Refused,
            _ => PassiveEvidence::Alive,
        };
        self.tell(Input::Passive { replica, seen });
    }
}
