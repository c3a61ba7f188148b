//! How far the other replicas have followed the active one: what the data plane needs to let sessions read their own
//! writes elsewhere.
//!
//! A heartbeat that was sent on the active replica and is heard on another one proves that every write answered before
//! it was sent is there too, in its cell. The oldest of the newest ones over all cells is the progress. It is told only
//! while a route splits reads off.

use std::time::Instant;

use tokio::sync::watch;

use crate::decision::{CellMap, Input, PassiveEvidence, RouteOrder};
use crate::replica::{CellId, ReplicaId};
use crate::route::Progress;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Follow {
    map: CellMap,
    write: Option<ReplicaId>,
    /// Reads go elsewhere than writes.
    split: bool,
    /// By replica and position of the cell: when the newest heartbeat heard there was sent.
    heard: Vec<Vec<Option<Instant>>>,
    progress: watch::Sender<Option<Progress>>,
}

impl Follow {
    /// Nothing is known yet of so many replicas.
    pub(super) fn new(replicas: usize, progress: watch::Sender<Option<Progress>>) -> Follow {
        let map = CellMap::single(replicas);
        Follow {
            heard: blank(&map),
            map,
            write: None,
            split: false,
            progress,
        }
    }

    /// Takes what it needs of the evidence.
    pub(super) fn observe(&mut self, input: &Input) {
        match *input {
            Input::Layout(ref map) => {
                self.heard = blank(map);
                self.map = map.clone();
            }
            Input::HeartbeatHeard {
                from, to, cell, sent, ..
            } if Some(from) == self.write => self.hear(to, cell, sent),
            // It may have lost what it had: what it hears from now on counts.
            Input::Subscribed { replica }
            | Input::Passive {
                replica,
                seen: PassiveEvidence::Broken | PassiveEvidence::Refused,
            } => {
                if let Some(cells) = self.heard.get_mut(replica.index()) {
                    cells.fill(None);
                }
            }
            _ => return,
        }
        self.tell();
    }

    fn hear(&mut self, to: ReplicaId, cell: CellId, sent: Instant) {
        let position = self.map.cells.iter().position(|(id, _)| *id == cell);
        if let Some(heard) = position.and_then(|at| self.heard.get_mut(to.index())?.get_mut(at)) {
            *heard = (*heard).max(Some(sent));
        }
    }

    /// A route is about to be published.
    pub(super) fn route(&mut self, order: &RouteOrder) {
        if self.write != Some(order.write) {
            self.write = Some(order.write);
            self.heard = blank(&self.map);
        }
        self.split = order.read.iter().any(|(replica, _)| *replica != order.write);
        self.tell();
    }

    fn tell(&self) {
        let Some(write) = self.write.filter(|_| self.split) else {
            return;
        };
        let followed = self.heard.iter().enumerate().map(|(replica, heard)| {
            // Where one of the two has no shard, there is nothing to follow.
            let common = |shards: &[Option<_>]| shards[write.index()].is_some() && shards[replica].is_some();
            let mut oldest = None;
            for ((_, shards), sent) in self.map.cells.iter().zip(heard) {
                if common(shards) {
                    let sent = (*sent)?;
                    oldest = Some(oldest.map_or(sent, |oldest: Instant| oldest.min(sent)));
                }
            }
            oldest
        });
        self.progress.send_replace(Some(Progress {
            write,
            followed: followed.collect(),
        }));
    }
}

fn blank(map: &CellMap) -> Vec<Vec<Option<Instant>>> {
    vec![vec![None; map.cells.len()]; map.shards.len()]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::replica::ShardId;

    const A: ReplicaId = ReplicaId(0);
    const B: ReplicaId = ReplicaId(1);

    struct World {
        follow: Follow,
        told: watch::Receiver<Option<Progress>>,
        began: Instant,
    }

    impl World {
        fn new() -> World {
            let (progress, told) = watch::channel(None);
            World {
                follow: Follow::new(2, progress),
                told,
                began: tokio::time::Instant::now().into_std(),
            }
        }

        fn route(&mut self, write: ReplicaId, read: ReplicaId) {
            self.follow.route(&RouteOrder {
                epoch: 1,
                write,
                read: vec![(read, 100)],
                read_your_writes: true,
                holding: false,
                abandon_others: false,
            });
        }

        fn hear(&mut self, from: ReplicaId, to: ReplicaId, cell: u32, ms: u64) {
            self.follow.observe(&Input::HeartbeatHeard {
                from,
                to,
                cell: CellId(cell),
                seq: ms,
                age: Duration::ZERO,
                sent: self.began + Duration::from_millis(ms),
            });
        }

        /// In milliseconds.
        fn followed(&self, replica: ReplicaId) -> Option<u128> {
            let progress = self.told.borrow().clone()?;
            let moment = progress.followed[replica.index()]?;
            Some((moment - self.began).as_millis())
        }
    }

    #[test]
    fn the_slowest_cell_counts() {
        let mut world = World::new();
        let both = vec![Some(ShardId(0)), Some(ShardId(0))];
        world.follow.observe(&Input::Layout(CellMap {
            shards: vec![2, 2],
            cells: vec![
                (CellId(7), both.clone()),
                (CellId(8), both),
                (CellId(9), vec![None, Some(ShardId(1))]),
            ],
        }));
        world.route(A, B);
        world.hear(A, B, 7, 100);
        assert_eq!(world.followed(B), None, "the other cell is not known");
        world.hear(A, B, 8, 50);
        assert_eq!(world.followed(B), Some(50));
        world.hear(A, B, 8, 120);
        world.hear(A, B, 8, 90);
        assert_eq!(world.followed(B), Some(100), "an old one takes nothing back");
        world.hear(B, B, 7, 900);
        assert_eq!(world.followed(B), Some(100), "only what the active says counts");
    }

    #[test]
    fn nothing_is_told_without_a_split() {
        let mut world = World::new();
        world.route(A, A);
        world.hear(A, B, 0, 10);
        assert_eq!(*world.told.borrow(), None);
        world.route(A, B);
        assert_eq!(world.followed(B), Some(10), "what was heard before counts");
    }

    #[test]
    fn what_a_replica_may_have_lost_is_not_counted() {
        let mut world = World::new();
        world.route(A, B);
        world.hear(A, B, 0, 10);
        world.follow.observe(&Input::Subscribed { replica: B });
        assert_eq!(world.followed(B), None);
        world.hear(A, B, 0, 20);
        let (replica, seen) = (B, PassiveEvidence::Broken);
        world.follow.observe(&Input::Passive { replica, seen });
        assert_eq!(world.followed(B), None);
        world.hear(A, B, 0, 30);
        world.route(B, A);
        assert_eq!(world.followed(A), None, "another one is followed now");
    }
}
