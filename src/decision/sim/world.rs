//! The truth: what each replica and each link really is, since when, and what it was before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::setup::Setup;
use crate::replica::{CellId, ReplicaId};

/// Virtual time since the start of the world.
pub(super) type At = Duration;

/// What a replica really does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Up,
    /// Answers late, but within every window.
    Slow,
    /// Process gone: connects are refused.
    Dead,
    /// Stopped: connects work, nothing answers.
    Hung,
    /// Answers everything but PUBLISH and SUBSCRIBE with an error.
    Loading,
    /// Refuses writes.
    Stale,
    /// Writes never end (`CLIENT PAUSE WRITE`); PING answers, PUBLISH does not.
    Paused,
    /// Takes PUBLISH, delivers nothing.
    Mute,
}

impl State {
    /// An application gets answers that are not errors about the replica's state.
    pub(super) fn answers(self) -> bool {
        !matches!(self, State::Dead | State::Hung | State::Loading)
    }

    pub(super) fn writes(self) -> bool {
        matches!(self, State::Up | State::Slow | State::Mute)
    }

    pub(super) fn publishes(self) -> bool {
        matches!(
            self,
            State::Up | State::Slow | State::Loading | State::Stale | State::Mute
        )
    }

    pub(super) fn delivers(self) -> bool {
        matches!(self, State::Up | State::Slow | State::Loading | State::Stale)
    }

    pub(super) fn fit(self) -> bool {
        matches!(self, State::Up | State::Slow)
    }
}

/// What one direction of one cell's replication really does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Within tolerance.
    Open(Duration),
    /// Over the tolerance, or so late that nothing is fresh.
    Late(Duration),
    /// Nothing passes; a backlog waits.
    Cut,
}

/// What the REST API of a replica's cluster says of it: nothing of this world follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word {
    Available,
    Unavailable,
    Silence,
}

/// A value with the times at which it changed.
#[derive(Clone, Debug)]
pub(super) struct History<T> {
    /// Newest last.
    changes: Vec<(At, T)>,
}

impl<T: Copy + PartialEq> History<T> {
    pub(super) fn new(value: T) -> History<T> {
        History {
            changes: vec![(At::ZERO, value)],
        }
    }

    pub(super) fn now(&self) -> T {
        self.changes.last().expect("never empty").1
    }

    pub(super) fn set(&mut self, at: At, value: T) {
        if self.now() != value {
            self.changes.push((at, value));
        }
    }

    /// For how long `is` has held without a break until `at`; `None` when it does not hold now.
    pub(super) fn held(&self, at: At, is: impl Fn(T) -> bool) -> Option<Duration> {
        let mut since = None;
        for &(start, value) in self.changes.iter().rev() {
            if !is(value) {
                break;
            }
            since = Some(start);
        }
        since.map(|since| at.saturating_sub(since))
    }

    /// For how long `is` had held without a break when the value changed at `end`.
    pub(super) fn held_before(&self, end: At, is: impl Fn(T) -> bool) -> Duration {
        let mut since = end;
        for &(start, value) in self.changes.iter().rev().skip_while(|(start, _)| *start >= end) {
            if !is(value) {
                break;
            }
            since = start;
        }
        end.saturating_sub(since)
    }

    /// The end of the newest stretch of at least `least` in which `is` held, if there was one; `at` when it still lasts.
    pub(super) fn last_stretch(&self, at: At, least: Duration, is: impl Fn(T) -> bool) -> Option<At> {
        let mut newest = None;
        let mut began = None;
        for &(start, value) in &self.changes {
            if is(value) {
                began.get_or_insert(start);
            } else if let Some(from) = began.take()
                && start.saturating_sub(from) >= least
            {
                newest = Some(start);
            }
        }
        match began {
            Some(from) if at.saturating_sub(from) >= least => Some(at),
            _ => newest,
        }
    }

    /// Whether `is` held at any time since `from`.
    pub(super) fn any_since(&self, from: At, is: impl Fn(T) -> bool) -> bool {
        for &(start, value) in self.changes.iter().rev() {
            if is(value) {
                return true;
            }
            if start <= from {
                break;
            }
        }
        false
    }
}

/// A heartbeat or a fence in a cut link's backlog, or in a hung subscriber's socket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    Beat { seq: u64, sent: At },
    Fence { id: u64 },
}

/// Everything that is true.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) nodes: Vec<History<State>>,
    /// Counts falls and stops: an answer under way is lost with its generation.
    pub(super) generation: Vec<u32>,
    pub(super) subscribed: Vec<bool>,
    pub(super) rest: Vec<Word>,
    /// Something small went wrong on a well replica (a lost probe, a broken link): no time to be strict.
    pub(super) noise: Vec<At>,
    /// From, to, cell: where the newest heartbeat got lost, for no reason that lasts.
    pub(super) lost: BTreeSet<(ReplicaId, ReplicaId, CellId)>,
    /// `[from][to][cell]`, `from != to`.
    pub(super) ways: Vec<Vec<BTreeMap<CellId, History<Way>>>>,
    pub(super) backlog: Vec<Vec<BTreeMap<CellId, Vec<Message>>>>,
}

impl World {
    pub(super) fn new(setup: &Setup) -> World {
        let n = setup.members.len();
        let mut world = World {
            nodes: vec![History::new(State::Up); n],
            generation: vec![0; n],
            subscribed: vec![true; n],
            rest: vec![Word::Available; n],
            noise: vec![At::ZERO; n],
            lost: BTreeSet::new(),
            ways: vec![vec![BTreeMap::new(); n]; n],
            backlog: vec![vec![BTreeMap::new(); n]; n],
        };
        world.relayout(setup);
        world
    }

    /// Links of cells that stay are as they were, those of new ones are open.
    pub(super) fn relayout(&mut self, setup: &Setup) {
        for way in self.ways.iter_mut().flatten() {
            way.retain(|cell, _| setup.has_cell(*cell));
            for cell in setup.cell_ids() {
                way.entry(cell)
                    .or_insert_with(|| History::new(Way::Open(setup.delay)));
            }
        }
        for waiting in self.backlog.iter_mut().flatten() {
            waiting.retain(|cell, _| setup.has_cell(*cell));
        }
    }

    pub(super) fn state(&self, id: ReplicaId) -> State {
        self.nodes[id.index()].now()
    }

    pub(super) fn way(&self, from: ReplicaId, to: ReplicaId, cell: CellId) -> Way {
        if from == to {
            Way::Open(Duration::ZERO)
        } else {
            self.ways[from.index()][to.index()][&cell].now()
        }
    }

    /// The longest delay that heartbeats between the two ever had, those of ended cuts (as far as they are `fresh`) among
    /// them: what a link is used to, it is not called down for.
    pub(super) fn slowest(&self, a: ReplicaId, b: ReplicaId, fresh: Duration) -> Duration {
        let ways = [(a, b), (b, a)]
            .into_iter()
            .flat_map(|(x, y)| self.ways[x.index()][y.index()].values());
        let delays = ways.flat_map(|way| {
            let ends = way.changes.iter().skip(1).map(|(at, _)| Some(*at)).chain([None]);
            way.changes.iter().zip(ends)
        });
        let delays = delays.map(|(&(from, way), end)| match (way, end) {
            (Way::Open(delay) | Way::Late(delay), _) => delay,
            (Way::Cut, Some(end)) => end.saturating_sub(from).min(fresh),
            (Way::Cut, None) => Duration::ZERO,
        });
        delays.max().unwrap_or_default()
    }

    /// For how long every direction and shard between the two has been open.
    pub(super) fn pair_open(&self, at: At, a: ReplicaId, b: ReplicaId) -> Option<Duration> {
        let ways = [(a, b), (b, a)]
            .into_iter()
            .flat_map(|(x, y)| self.ways[x.index()][y.index()].values());
        ways.map(|way| way.held(at, |way| matches!(way, Way::Open(_))))
            .min()
            .flatten()
    }

    /// For how long some direction of some shard between the two has been cut or late, at least.
    pub(super) fn pair_bad(&self, at: At, a: ReplicaId, b: ReplicaId) -> Duration {
        let ways = [(a, b), (b, a)]
            .into_iter()
            .flat_map(|(x, y)| self.ways[x.index()][y.index()].values());
        let bad = ways.map(|way| {
            way.held(at, |way| !matches!(way, Way::Open(_)))
                .unwrap_or_default()
        });
        bad.max().unwrap_or_default()
    }

    /// For how long nothing fresh has passed between the two, either way, on any shard; zero when something does.
    pub(super) fn pair_shut(&self, at: At, a: ReplicaId, b: ReplicaId) -> Duration {
        let ways = [(a, b), (b, a)]
            .into_iter()
            .flat_map(|(x, y)| self.ways[x.index()][y.index()].values());
        let shut = ways.map(|way| way.held(at, |way| way == Way::Cut).unwrap_or_default());
        shut.min().unwrap_or_default()
    }

    /// For how long `id` has been well: fit, and not slow for so long that it may be called so.
    pub(super) fn well(&self, at: At, id: ReplicaId) -> Option<Duration> {
        const LONG: Duration = Duration::from_secs(1);
        let state = &self.nodes[id.index()];
        let fit = state.held(at, State::fit)?;
        let slow = state.last_stretch(at, LONG, |state| state == State::Slow);
        let quick = slow.map_or(fit, |end| at.saturating_sub(end));
        let quiet = at.saturating_sub(self.noise[id.index()]);
        Some(fit.min(quick).min(quiet))
    }
}
