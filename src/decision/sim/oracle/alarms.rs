//! Alarms: whatever the engine warns of, something was wrong just there. A new layout, a policy, an error answer or a
//! cluster's word is nothing wrong.

use super::{MS, Oracle, Verdict};
use crate::decision::event::{Event, Fitness, Health};
use crate::decision::sim::setup::Setup;
use crate::decision::sim::world::{At, State, Way, World};
use crate::replica::{CellId, ReplicaId, ShardId};

impl Oracle {
    /// P5: each link that is called down, each replica that is called down or unfit, is accounted for by the truth.
    pub(super) fn accounted_for(&self, setup: &Setup, world: &World, event: &Event) -> Verdict {
        let since = self.at.saturating_sub(self.bounds.settle * 2 + self.bounds.write);
        if self.woke.is_some_and(|woke| woke > since) {
            return Ok(());
        }
        let ill = |id: ReplicaId| world.nodes[id.index()].any_since(since, |state| state != State::Up);
        match event {
            Event::Link {
                from,
                to,
                shard,
                to_shard,
                up: false,
                ..
            } => {
                let cells = setup.cells.iter().filter(|(_, cell)| {
                    (cell.shards[from.index()], cell.shards[to.index()]) == (Some(*shard), Some(*to_shard))
                });
                let mut cells = cells.map(|(cell, _)| *cell);
                if ill(*from)
                    || ill(*to)
                    || cells.any(|cell| self.link_was_bad(world, *from, *to, cell, since))
                {
                    return Ok(());
                }
                Err(format!(
                    "P5 link alarm: {from}->{to} ({}) is called down",
                    places(*shard, *to_shard)
                ))
            }
            Event::Health {
                replica,
                to: Health::Down,
                why,
                ..
            } if !ill(*replica) => Err(format!("P5 health alarm: {replica} is called down: {why}")),
            Event::Fitness {
                replica,
                to: to @ (Fitness::Lagging | Fitness::Isolated | Fitness::Stale),
                why,
                ..
            } => {
                let mut others = setup.ids().filter(|other| other != replica);
                let accounted = ill(*replica)
                    || *to != Fitness::Stale
                        && others.any(|other| {
                            let bad = |from, to| {
                                let mut cells = setup.cell_ids().into_iter();
                                cells.any(|cell| self.link_was_bad(world, from, to, cell, since))
                            };
                            ill(other) || bad(*replica, other) || bad(other, *replica)
                        });
                if accounted {
                    return Ok(());
                }
                Err(format!("P5 fitness alarm: {replica} is called {to}: {why}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the link was cut or late since then; what waited in it arrives a little later.
    fn link_was_bad(&self, world: &World, from: ReplicaId, to: ReplicaId, cell: CellId, since: At) -> bool {
        let since = since.saturating_sub(world.slowest(from, to, self.bounds.fresh) * 3 + MS * 300);
        from != to
            && world.ways[from.index()][to.index()]
                .get(&cell)
                .is_some_and(|way| way.any_since(since, |way| !matches!(way, Way::Open(_))))
    }
}

fn places(shard: ShardId, to_shard: ShardId) -> String {
    format!("shard {shard} to shard {to_shard}")
}
