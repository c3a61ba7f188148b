//! What goes wrong, and how it is mended.

use super::*;

impl Life<'_> {
    pub(super) fn spike(&mut self, from: u8, to: u8) {
        let (extra, lasting) = given::spike(&mut self.rng);
        let distance = &mut self.distances[usize::from(from)][usize::from(to)];
        distance.spike = extra;
        distance.spike_until = self.at + lasting;
        let wait = self.rng.exponential(given::SPIKE_EVERY);
        self.after(wait, What::Spike { from, to });
    }

    pub(super) fn next_fault(&mut self) {
        let wait = given::QUIET_AT_LEAST + self.rng.exponential(given::QUIET_THEN);
        self.after(wait, What::Break);
    }

    pub(super) fn way(&self, from: u8, to: u8, cell: usize) -> Option<(Way, bool)> {
        let shards = &self.map.cells[cell].1;
        let way = Way {
            from: id(from),
            shard: shards[usize::from(from)]?,
            to: id(to),
            to_shard: shards[usize::from(to)]?,
            cell,
        };
        Some((way, false))
    }

    pub(super) fn break_something(&mut self) {
        let node = u8::try_from(self.rng.below(self.nodes.len())).expect("few replicas");
        let others: Vec<u8> = (0..self.count()).filter(|&other| other != node).collect();
        let (slower, is_slow) = given::slower(&mut self.rng, self.terms.answer_timeout, node == 0);
        self.slower = slower;
        let can_be_slow = is_slow > self.node(node).round_trip * 8;
        let kinds: Vec<Kind> = Kind::ALL
            .iter()
            .copied()
            .filter(|kind| match kind {
                // Between two replicas it is the same as a cut link.
                Kind::Outbound | Kind::Inbound => others.len() > 1,
                Kind::CellCut => self.cells() > 1,
                Kind::Slow => can_be_slow,
                _ => true,
            })
            .collect();
        let kind = self.rng.pick(&kinds);
        let peer = self.rng.pick(&others);
        let cells: Vec<usize> = (0..self.map.cells.len()).collect();
        let pairs: Vec<(u8, u8)> = match kind {
            Kind::LinkCut | Kind::CellCut | Kind::Lagging => vec![(node, peer)],
            Kind::Outbound => others.iter().map(|&other| (node, other)).collect(),
            Kind::Inbound => others.iter().map(|&other| (other, node)).collect(),
            Kind::Isolated => others
                .iter()
                .flat_map(|&other| [(node, other), (other, node)])
                .collect(),
            _ => Vec::new(),
        };
        let cells = if kind == Kind::CellCut {
            vec![self.rng.pick(&cells)]
        } else {
            cells
        };
        let ways: Vec<(Way, bool)> = pairs
            .iter()
            .flat_map(|&(from, to)| cells.iter().map(move |&cell| (from, to, cell)))
            .filter_map(|(from, to, cell)| self.way(from, to, cell))
            .collect();
        let usual = (0..self.nodes.len()).flat_map(|a| (0..self.nodes.len()).map(move |b| (a, b)));
        let usual = usual
            .map(|(a, b)| {
                self.distances[a][b].usual + self.nodes[a].round_trip / 2 + self.nodes[b].round_trip / 2
            })
            .max()
            .unwrap_or_default();
        for (way, _) in &ways {
            let road = &mut self.roads[way.from.index()][way.to.index()][way.cell];
            match kind {
                Kind::Lagging => road.extra = given::LAGS_BY,
                _ => road.cut = true,
            }
        }
        if let Some(state) = kind.state() {
            self.become_state(node, state);
        }
        // A spike may have made it lag, or kept its answers for too long, already: then nothing new can be said.
        let said = |id: ReplicaId| &self.engine.replicas[id.index()];
        let lags = |id| said(id).reading.fitness == Fitness::Lagging;
        let told = match kind {
            Kind::Lagging => lags(id(node)) || lags(id(peer)),
            _ => kind.ends_the_replica() && said(id(node)).standing.health == Health::Down,
        };
        self.fault = Some(Fault {
            kind,
            node: id(node),
            ways,
            start: self.at,
            end: None,
            called: told.then_some(self.at),
            was_active: self.active == Some(id(node)),
            left: None,
            bound: kind.bound(self.terms.policy, self.terms.answer_timeout, usual),
        });
        let lasting = given::REPAIR_AT_LEAST + self.rng.exponential(given::REPAIR_THEN);
        self.after(lasting, What::Mend);
    }

    pub(super) fn become_state(&mut self, node: u8, state: State) {
        let before = std::mem::replace(&mut self.nodes[usize::from(node)].state, state);
        let far = self.node(node).round_trip / 2 + MS;
        if state == State::Dead {
            self.nodes[usize::from(node)].subscribed = false;
            for (probe, at) in (0_u8..).zip(self.probes.clone()) {
                if at.node == node {
                    // Its connection is reset, asked or not.
                    let number = at.number + 1;
                    self.probes[usize::from(probe)].number = number;
                    let end = End::Broken;
                    self.after(far, What::ProbeEnd { probe, number, end });
                }
            }
        } else if before == State::Dead {
            let wait = self.rng.between(MS * 50, MS * 300);
            self.after(wait, What::Resubscribe(node));
        }
        if before == State::Hung {
            for (from, cell, carried) in std::mem::take(&mut self.nodes[usize::from(node)].stuck) {
                let to = node;
                self.after(
                    far,
                    What::Arrive {
                        from,
                        to,
                        cell,
                        carried,
                    },
                );
            }
        }
    }

    pub(super) fn mend(&mut self) {
        let Some(fault) = &mut self.fault else { return };
        fault.end = Some(self.at);
        let (node, kind, ways) = (fault.node.0, fault.kind, fault.ways.clone());
        for (way, _) in &ways {
            let (from, to) = (way.from.index(), way.to.index());
            let road = &mut self.roads[from][to][way.cell];
            road.cut = false;
            road.extra = Duration::ZERO;
            let cell = u8::try_from(way.cell).expect("few cells");
            for carried in std::mem::take(&mut road.backlog) {
                self.carry(way.from.0, way.to.0, cell, carried, Duration::ZERO);
            }
        }
        if kind.state().is_some() {
            self.become_state(node, State::Up);
        }
        self.close_fault();
        self.next_fault();
    }

    pub(super) fn close_fault(&mut self) {
        if let Some(fault) = self.fault.as_ref().filter(|fault| fault.end.is_some()) {
            self.tally.close(fault, self.terms.policy.dwell);
        }
    }
}
