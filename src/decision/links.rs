//! The link matrix: for each (published on, heard on, shard), whether heartbeats pass in time.
//!
//! ```text
//!             a fresh heartbeat                no fresh one for a window
//!   unknown ───────────────────▶ up ─────────────────────────────────────▶ down
//!      │                          ▲                                          │
//!      │                          └────── two fresh ones in a row ───────────┤
//!      └──────────────────── none for a window ─────────────────────────────▶┘
//! ```
//!
//! When a replica hears itself again, its links that are down are unknown again.
//!
//! A heartbeat is fresh when its number is new and it was young when heard. A late one (a backlog was replayed) raises
//! the lag and proves nothing.

use std::time::Duration;

use super::moment::Moment;
use super::windows::{BEATS_IN_A_ROW, Windows};
use crate::replica::{ReplicaId, ShardId};

/// One link of one shard.
#[derive(Clone, Debug)]
pub(super) struct Link {
    seq: Option<u64>,
    /// The newest fresh heartbeat.
    pub(super) fresh: Option<Moment>,
    /// The newest heartbeat, fresh or late.
    pub(super) heard: Option<Moment>,
    /// Its age when heard.
    pub(super) lag: Option<Duration>,
    /// `None` until the first window has passed or the first heartbeat came.
    pub(super) up: Option<bool>,
    /// Over the tolerance, with hysteresis.
    pub(super) lagging: bool,
    fresh_in_a_row: u32,
    other_side_in_a_row: u32,
    born: Moment,
    /// Misses before this are excused: the subscription was renewed.
    excused: Moment,
}

impl Link {
    fn new(now: Moment) -> Link {
        Link {
            seq: None,
            fresh: None,
            heard: None,
            lag: None,
            up: None,
            lagging: false,
            fresh_in_a_row: 0,
            other_side_in_a_row: 0,
            born: now,
            excused: now,
        }
    }

    /// How long no fresh heartbeat has come.
    pub(super) fn quiet(&self, now: Moment) -> Duration {
        now.since(self.fresh.map_or(self.born, |fresh| fresh.max(self.born)))
    }
}

/// A heartbeat as heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) from: ReplicaId,
    pub(super) to: ReplicaId,
    pub(super) shard: ShardId,
    pub(super) seq: u64,
    pub(super) age: Duration,
}

/// A link that went up or down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Change {
    pub(super) from: ReplicaId,
    pub(super) to: ReplicaId,
    pub(super) shard: ShardId,
    pub(super) up: bool,
}

/// How two replicas replicate, both ways and over all shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pair {
    /// Every link up and within tolerance.
    Good,
    /// Nothing against it, not every link known yet.
    Unknown,
    /// This link is down or over the tolerance.
    Bad {
        from: ReplicaId,
        to: ReplicaId,
        shard: ShardId,
    },
}

/// Every link.
#[derive(Clone, Debug)]
pub(super) struct Links {
    /// `[from][shard][to]`
    links: Vec<Vec<Vec<Link>>>,
    lag_tolerance: Duration,
}

impl Links {
    /// Lag is judged by this from the next heartbeat on.
    pub(super) fn set_tolerance(&mut self, lag_tolerance: Duration) {
        self.lag_tolerance = lag_tolerance;
    }

    pub(super) fn new(shards: &[usize], lag_tolerance: Duration, now: Moment) -> Links {
        let row = vec![Link::new(now); shards.len()];
        Links {
            links: shards.iter().map(|&count| vec![row.clone(); count]).collect(),
            lag_tolerance,
        }
    }

    /// A new layout of `from`: its links start again.
    pub(super) fn relayout(&mut self, from: ReplicaId, shards: usize, now: Moment) {
        let row = vec![Link::new(now); self.links.len()];
        self.links[from.index()] = vec![row; shards];
    }

    pub(super) fn get(&self, from: ReplicaId, to: ReplicaId, shard: usize) -> Option<&Link> {
        self.links.get(from.index())?.get(shard)?.get(to.index())
    }

    /// The links of every shard in one direction.
    pub(super) fn between(&self, from: ReplicaId, to: ReplicaId) -> impl Iterator<Item = (ShardId, &Link)> {
        let shards = self.links[from.index()].iter();
        shards
            .zip(0_u16..)
            .map(move |(row, shard)| (ShardId(shard), &row[to.index()]))
    }

    /// Takes a heartbeat; true when it is fresh. `tilt`: the sidecar's own stall explains its age.
    pub(super) fn hear(&mut self, heard: Heard, windows: &Windows, now: Moment, tilt: bool) -> bool {
        let tolerance = self.lag_tolerance;
        let link = self
            .links
            .get_mut(heard.from.index())
            .and_then(|shards| shards.get_mut(usize::from(heard.shard.0)))
            .and_then(|row| row.get_mut(heard.to.index()));
        let Some(link) = link else { return false };
        if link.seq >= Some(heard.seq) {
            return false;
        }
        link.seq = Some(heard.seq);
        let fresh = heard.age <= windows.fresh_age;
        if !fresh && tilt {
            return false;
        }
        link.heard = Some(now);
        link.lag = Some(heard.age);
        let late = heard.age > tolerance;
        if link.up != Some(true) && link.fresh_in_a_row == 0 {
            // The first one after a break: there is nothing to be steady about.
            link.lagging = late;
            link.other_side_in_a_row = 0;
        } else if late == link.lagging {
            link.other_side_in_a_row = 0;
        } else {
            link.other_side_in_a_row += 1;
            if link.other_side_in_a_row >= BEATS_IN_A_ROW {
                link.lagging = !link.lagging;
                link.other_side_in_a_row = 0;
            }
        }
        if fresh {
            if link.quiet(now) >= windows.link {
                link.fresh_in_a_row = 0;
            }
            link.fresh = Some(now);
            link.fresh_in_a_row = link.fresh_in_a_row.saturating_add(1);
        } else {
            link.fresh_in_a_row = 0;
        }
        fresh
    }

    /// The subscription on `to` stands again: misses on its inbound links are counted from now.
    pub(super) fn subscribed(&mut self, to: ReplicaId, now: Moment) {
        for row in self.links.iter_mut().flatten() {
            row[to.index()].excused = now;
        }
    }

    /// `id` hears itself again: what its links did meanwhile says nothing of replication, so those that are down are
    /// unknown again, and have a whole window to show themselves.
    pub(super) fn returned(&mut self, id: ReplicaId, now: Moment) {
        for (from, shards) in (0_u8..).map(ReplicaId).zip(&mut self.links) {
            for (to, link) in shards.iter_mut().flat_map(|row| (0_u8..).map(ReplicaId).zip(row)) {
                if (from == id || to == id) && link.up == Some(false) {
                    link.up = None;
                    link.born = now;
                    link.fresh_in_a_row = 0;
                }
            }
        }
    }

    /// Whether the own heartbeats of `id` come back on some shard: without them its links say nothing of replication.
    pub(super) fn echoes(&self, id: ReplicaId) -> bool {
        self.between(id, id).any(|(_, link)| link.up == Some(true))
    }

    /// Brings `up` in line with the evidence; returns what changed.
    pub(super) fn update(&mut self, windows: &Windows, now: Moment) -> Vec<Change> {
        let mut changes = Vec::new();
        for (from, shards) in (0_u8..).map(ReplicaId).zip(&mut self.links) {
            for (shard, row) in (0_u16..).map(ShardId).zip(shards) {
                for (to, link) in (0_u8..).map(ReplicaId).zip(row) {
                    let before = link.up;
                    let quiet = link.quiet(now);
                    let in_time = quiet < windows.link
                        || (now.since(link.excused) < windows.link && quiet < windows.link.saturating_mul(3));
                    match link.up {
                        Some(false) if in_time && link.fresh_in_a_row >= BEATS_IN_A_ROW => {
                            link.up = Some(true);
                        }
                        None if link.fresh_in_a_row > 0 => link.up = Some(true),
                        Some(false) if !in_time => link.fresh_in_a_row = 0,
                        None | Some(true) if !in_time => {
                            link.up = Some(false);
                            link.fresh_in_a_row = 0;
                        }
                        _ => {}
                    }
                    if let Some(up) = link.up.filter(|_| link.up != before) {
                        changes.push(Change { from, to, shard, up });
                    }
                }
            }
        }
        changes
    }

    /// How `a` and `b` replicate.
    pub(super) fn pair(&self, a: ReplicaId, b: ReplicaId) -> Pair {
        let mut unknown = false;
        for (from, to) in [(a, b), (b, a)] {
            for (shard, link) in self.between(from, to) {
                match link.up {
                    Some(true) if !link.lagging => {}
                    None => unknown = true,
                    _ => return Pair::Bad { from, to, shard },
                }
            }
        }
        if unknown { Pair::Unknown } else { Pair::Good }
    }

    /// Whether no heartbeat at all passes between `a` and `b`, on any shard, either way. One in time is one that passes,
    /// even where it takes two to call the link up again; and one that is missing proves nothing until a subscription
    /// has stood for a whole window.
    pub(super) fn parted(&self, a: ReplicaId, b: ReplicaId, windows: &Windows, now: Moment) -> bool {
        let silent = |from, to| {
            self.between(from, to).all(|(_, link)| {
                let listening = now.since(link.excused) >= windows.link;
                link.up == Some(false) && link.fresh_in_a_row == 0 && listening
            })
        };
        silent(a, b) && silent(b, a)
    }
}
