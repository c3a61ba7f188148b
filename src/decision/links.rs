//! The link matrix: for each (published on, heard on, cell), whether heartbeats pass in time.
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
//! the lag and proves nothing. What is young, and how long the window is, follows the link's own usual lag: a slow link is
//! not called down for being slow.

use std::fmt;
use std::time::Duration;

use super::event::CellMap;
use super::moment::Moment;
use super::recent::Recent;
use super::windows::{BEATS_IN_A_ROW, Windows};
use crate::replica::{CellId, ReplicaId, ShardId};

/// One link, in one cell.
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
    /// Ages of its heartbeats, as far as they are its own doing.
    ages: Recent,
    /// When it last went up or down.
    pub(super) changed: Moment,
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
            ages: Recent::default(),
            changed: now,
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

    /// Its lag as it usually is: the 99th percentile of the newest ones.
    pub(super) fn usual_lag(&self) -> Option<Duration> {
        self.ages.p99()
    }

    /// Without a fresh heartbeat for this long it is down.
    pub(super) fn window(&self, windows: &Windows) -> Duration {
        Windows::widened(windows.link, self.ages.p99())
    }

    /// A heartbeat of this age is fresh.
    fn fresh_age(&self, windows: &Windows) -> Duration {
        Windows::widened(windows.fresh_age, self.ages.p99())
    }

    /// Learns from a heartbeat's age when it came at the usual pace. An outage, however short, must not become what is
    /// usual: what was held back arrives in a burst, and the first of it after a gap.
    fn learn(&mut self, age: Duration, windows: &Windows, now: Moment) {
        let gap = self.heard.map_or(windows.beat, |heard| now.since(heard));
        if (windows.beat / 2..=windows.beat.saturating_mul(5) / 2).contains(&gap) {
            self.ages.take(age);
        }
    }

    /// Brings `up` in line with the evidence; the new value when it changed.
    fn update(&mut self, windows: &Windows, now: Moment) -> Option<bool> {
        let before = self.up;
        let (quiet, window) = (self.quiet(now), self.window(windows));
        let in_time =
            quiet < window || (now.since(self.excused) < window && quiet < window.saturating_mul(3));
        match self.up {
            Some(false) if in_time && self.fresh_in_a_row >= BEATS_IN_A_ROW => self.up = Some(true),
            None if self.fresh_in_a_row > 0 => self.up = Some(true),
            Some(false) if !in_time => self.fresh_in_a_row = 0,
            None | Some(true) if !in_time => {
                self.up = Some(false);
                self.fresh_in_a_row = 0;
            }
            _ => {}
        }
        let changed = self.up.filter(|_| self.up != before);
        if changed.is_some() {
            self.changed = now;
        }
        changed
    }

    /// Whether it is known that nothing passes.
    pub(super) fn is_shut(&self, windows: &Windows, now: Moment) -> bool {
        let listening = now.since(self.excused) >= self.window(windows);
        self.up == Some(false) && self.fresh_in_a_row == 0 && listening
    }
}

/// A heartbeat as heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) from: ReplicaId,
    pub(super) to: ReplicaId,
    pub(super) cell: CellId,
    pub(super) seq: u64,
    pub(super) age: Duration,
}

/// Which link: from a shard of one replica to a shard of another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Path {
    pub(super) from: ReplicaId,
    pub(super) shard: ShardId,
    pub(super) to: ReplicaId,
    pub(super) to_shard: ShardId,
    /// Position of its cell.
    pub(super) cell: usize,
}

impl Path {
    /// Where among the shards, in words.
    pub(super) fn place(self) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            write!(f, "shard {}", self.shard)?;
            if self.to_shard != self.shard {
                write!(f, " to shard {}", self.to_shard)?;
            }
            Ok(())
        })
    }
}

/// A link that went up or down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Change {
    pub(super) path: Path,
    pub(super) up: bool,
}

/// How two replicas replicate, both ways and in all cells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pair {
    /// Every link up and within tolerance.
    Good,
    /// Nothing against it, not every link known yet.
    Unknown,
    /// This link is down or over the tolerance.
    Bad(Path),
}

/// The links of one cell.
#[derive(Clone, Debug)]
struct Row {
    id: CellId,
    /// By replica.
    shards: Vec<Option<ShardId>>,
    /// `[from][to]`; those of replicas without a shard here are never read.
    links: Vec<Vec<Link>>,
}

/// Every link.
#[derive(Clone, Debug)]
pub(super) struct Links {
    rows: Vec<Row>,
    lag_tolerance: Duration,
    /// At the newest [`Links::update`] every link was up and within the tolerance.
    all_well: bool,
}

impl Links {
    /// Lag is judged by this from the next heartbeat on.
    pub(super) fn set_tolerance(&mut self, lag_tolerance: Duration) {
        self.lag_tolerance = lag_tolerance;
    }

    pub(super) fn new(map: &CellMap, lag_tolerance: Duration, now: Moment) -> Links {
        let mut links = Links {
            rows: Vec::new(),
            lag_tolerance,
            all_well: false,
        };
        links.relayout(map, now);
        links
    }

    /// New layouts: cells that stay keep their evidence, the others begin.
    pub(super) fn relayout(&mut self, map: &CellMap, now: Moment) {
        let replicas = map.shards.len();
        let mut old = std::mem::take(&mut self.rows);
        let rows = map.cells.iter().map(|(id, shards)| {
            let kept = old.iter().position(|row| row.id == *id);
            match kept {
                Some(kept) => Row {
                    shards: shards.clone(),
                    ..old.swap_remove(kept)
                },
                None => Row {
                    id: *id,
                    shards: shards.clone(),
                    links: vec![vec![Link::new(now); replicas]; replicas],
                },
            }
        });
        self.rows = rows.collect();
    }

    /// Position of a cell; `None`: it is of another layout.
    pub(super) fn position(&self, cell: CellId) -> Option<usize> {
        self.rows.iter().position(|row| row.id == cell)
    }

    /// How many cells there are.
    pub(super) fn cells(&self) -> usize {
        self.rows.len()
    }

    /// The shard of `replica` in the cell at `cell`.
    pub(super) fn shard(&self, replica: ReplicaId, cell: usize) -> Option<ShardId> {
        *self.rows.get(cell)?.shards.get(replica.index())?
    }

    /// The link of `path`.
    pub(super) fn at(&self, path: Path) -> &Link {
        &self.rows[path.cell].links[path.from.index()][path.to.index()]
    }

    /// The window of the own link of `id` in the cell at `cell`.
    pub(super) fn echo_window(&self, id: ReplicaId, cell: usize, windows: &Windows) -> Duration {
        let echo = &self.rows[cell].links[id.index()][id.index()];
        echo.window(windows)
    }

    fn path(&self, from: ReplicaId, to: ReplicaId, cell: usize) -> Option<Path> {
        Some(Path {
            from,
            shard: self.shard(from, cell)?,
            to,
            to_shard: self.shard(to, cell)?,
            cell,
        })
    }

    /// The links of every cell in one direction.
    pub(super) fn between(&self, from: ReplicaId, to: ReplicaId) -> impl Iterator<Item = (Path, &Link)> {
        let paths = (0..self.rows.len()).filter_map(move |cell| self.path(from, to, cell));
        paths.map(|path| (path, self.at(path)))
    }

    /// Takes a heartbeat; its cell's position when it is fresh. `own`: so much of its age may be the sidecar's own doing,
    /// and is not held against the link. `tilt`: all of it may.
    pub(super) fn hear(
        &mut self,
        heard: Heard,
        own: Duration,
        windows: &Windows,
        now: Moment,
        tilt: bool,
    ) -> Option<usize> {
        let tolerance = self.lag_tolerance;
        let cell = self.position(heard.cell)?;
        let path = self.path(heard.from, heard.to, cell)?;
        let link = &mut self.rows[cell].links[path.from.index()][path.to.index()];
        if link.seq >= Some(heard.seq) {
            return None;
        }
        link.seq = Some(heard.seq);
        let fresh = heard.age <= link.fresh_age(windows);
        if !fresh && tilt {
            return None;
        }
        if !tilt {
            link.learn(heard.age - own, windows, now);
        }
        link.heard = Some(now);
        link.lag = Some(heard.age);
        let late = heard.age - own > tolerance;
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
            if link.quiet(now) >= link.window(windows) {
                link.fresh_in_a_row = 0;
            }
            link.fresh = Some(now);
            link.fresh_in_a_row = link.fresh_in_a_row.saturating_add(1);
        } else {
            link.fresh_in_a_row = 0;
        }
        fresh.then_some(cell)
    }

    /// The subscription on `to` stands again: misses on its inbound links are counted from now.
    pub(super) fn subscribed(&mut self, to: ReplicaId, now: Moment) {
        for links in self.rows.iter_mut().flat_map(|row| &mut row.links) {
            links[to.index()].excused = now;
        }
    }

    /// `id` hears itself again: what its links did meanwhile says nothing of replication, so those that are down are
    /// unknown again, and have a whole window to show themselves.
    pub(super) fn returned(&mut self, id: ReplicaId, now: Moment) {
        for row in &mut self.rows {
            for (from, links) in row.links.iter_mut().enumerate() {
                for (to, link) in links.iter_mut().enumerate() {
                    if (from == id.index() || to == id.index()) && link.up == Some(false) {
                        link.up = None;
                        link.born = now;
                        link.fresh_in_a_row = 0;
                    }
                }
            }
        }
    }

    /// Whether the own heartbeats of `id` come back in some cell: without them its links say nothing of replication.
    pub(super) fn echoes(&self, id: ReplicaId) -> bool {
        self.between(id, id).any(|(_, link)| link.up == Some(true))
    }

    /// Brings `up` in line with the evidence; returns what changed.
    pub(super) fn update(&mut self, windows: &Windows, now: Moment) -> Vec<Change> {
        let mut changes = Vec::new();
        self.all_well = true;
        for (cell, row) in self.rows.iter_mut().enumerate() {
            for (from, links) in (0_u8..).map(ReplicaId).zip(&mut row.links) {
                for (to, link) in (0_u8..).map(ReplicaId).zip(links) {
                    let (Some(shard), Some(to_shard)) = (row.shards[from.index()], row.shards[to.index()])
                    else {
                        continue;
                    };
                    if let Some(up) = link.update(windows, now) {
                        let path = Path {
                            from,
                            shard,
                            to,
                            to_shard,
                            cell,
                        };
                        changes.push(Change { path, up });
                    }
                    self.all_well &= link.up == Some(true) && !link.lagging;
                }
            }
        }
        changes
    }

    /// Whether every link is up and within the tolerance, as of the newest update.
    pub(super) fn all_well(&self) -> bool {
        self.all_well
    }

    /// How `a` and `b` replicate.
    pub(super) fn pair(&self, a: ReplicaId, b: ReplicaId) -> Pair {
        let mut unknown = false;
        for (path, link) in self.between(a, b).chain(self.between(b, a)) {
            match link.up {
                Some(true) if !link.lagging => {}
                None => unknown = true,
                _ => return Pair::Bad(path),
            }
        }
        if unknown { Pair::Unknown } else { Pair::Good }
    }

    /// Whether no heartbeat at all passes between `a` and `b`, in any cell, either way. One in time is one that passes,
    /// even where it takes two to call the link up again; and one that is missing proves nothing until a subscription
    /// has stood for a whole window.
    pub(super) fn parted(&self, a: ReplicaId, b: ReplicaId, windows: &Windows, now: Moment) -> bool {
        let mut links = self.between(a, b).chain(self.between(b, a));
        links.all(|(_, link)| link.is_shut(windows, now))
    }
}
