//! What can break, what it really touches, and by when it has to be called.

use std::time::Duration;

use crate::decision::event::{Event, Fitness, Health};
use crate::decision::faults::Fault as Named;
use crate::decision::policy::Policy;
use crate::decision::sim::world::State;
use crate::replica::{ReplicaId, ShardId};

const MS: Duration = Duration::from_millis(1);

/// What broke.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Killed,
    Hung,
    Loading,
    WritesRefused,
    WritesStall,
    Mute,
    Slow,
    LinkCut,
    CellCut,
    Outbound,
    Inbound,
    Isolated,
    Lagging,
}

impl Kind {
    pub(super) const ALL: &[Kind] = &[
        Kind::Killed,
        Kind::Hung,
        Kind::Loading,
        Kind::WritesRefused,
        Kind::WritesStall,
        Kind::Mute,
        Kind::Slow,
        Kind::LinkCut,
        Kind::CellCut,
        Kind::Outbound,
        Kind::Inbound,
        Kind::Isolated,
        Kind::Lagging,
    ];

    /// What breaks, and what counts as its being called.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::Killed => ("replica killed", "it is down"),
            Kind::Hung => ("replica hung", "it is down"),
            Kind::Loading => ("replica loading", "it is down"),
            Kind::WritesRefused => ("writes refused", "it is stale"),
            Kind::WritesStall => ("writes never end", "it is stale"),
            Kind::Mute => ("PUBLISH taken, nothing delivered", "it is down"),
            Kind::Slow => ("answers far later than usual", "it is suspect"),
            Kind::LinkCut => ("one direction of one link cut", "that link is down"),
            Kind::CellCut => (
                "one pair of shards, one direction, cut",
                "exactly that link is down",
            ),
            Kind::Outbound => ("one replica's outbound cut", "each of its outbound links is down"),
            Kind::Inbound => ("one replica's inbound cut", "each of its inbound links is down"),
            Kind::Isolated => ("one replica cut off, both ways", "it is isolated"),
            Kind::Lagging => ("one direction lags by a second", "an end of it is lagging"),
        }
    }

    /// The state that the replica is in meanwhile; `None`: it is links that break.
    pub(super) fn state(self) -> Option<State> {
        match self {
            Kind::Killed => Some(State::Dead),
            Kind::Hung => Some(State::Hung),
            Kind::Loading => Some(State::Loading),
            Kind::WritesRefused => Some(State::Stale),
            Kind::WritesStall => Some(State::Paused),
            Kind::Mute => Some(State::Mute),
            Kind::Slow => Some(State::Slow),
            _ => None,
        }
    }

    /// Whether the replica is down for it.
    pub(super) fn ends_the_replica(self) -> bool {
        matches!(self, Kind::Killed | Kind::Hung | Kind::Loading | Kind::Mute)
    }

    /// Whether the active replica has to be left for it.
    pub(super) fn moves(self) -> bool {
        self.state().is_some_and(|state| state != State::Slow)
    }

    /// When it lasts longer than this, it has to be called. `usual`: the longest usual lag of the links concerned.
    pub(super) fn bound(self, policy: &Policy, answer_timeout: Duration, usual: Duration) -> Duration {
        let probe = policy.probe_interval;
        let silence = policy.heartbeat_timeout.max(probe * 2);
        let link = policy.heartbeat_timeout.max(policy.heartbeat_interval * 3);
        // What is under way when it breaks still arrives; and the engine looks ten times a second.
        let slack = usual * 3 + MS * 300;
        slack
            + match self {
                Kind::Killed => probe * 2,
                Kind::Hung => silence * 3 / 2 + probe,
                Kind::Loading => probe * 5,
                Kind::WritesRefused => probe * 4,
                Kind::WritesStall => silence + probe * 3 + answer_timeout * 2,
                Kind::Mute => link + policy.heartbeat_interval * 2,
                Kind::Slow => probe * 24,
                Kind::Lagging => policy.heartbeat_interval * 4 + MS * 1500,
                Kind::LinkCut | Kind::CellCut | Kind::Outbound | Kind::Inbound | Kind::Isolated => {
                    link + policy.heartbeat_interval
                }
            }
    }
}

/// A link of one cell, as events name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub(super) from: ReplicaId,
    pub(super) shard: ShardId,
    pub(super) to: ReplicaId,
    pub(super) to_shard: ShardId,
    /// Position of its cell.
    pub(super) cell: usize,
}

/// One fault.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// The replica that it is about; of a link, the one that sends.
    pub(super) node: ReplicaId,
    /// The links that are broken; and whether each was called down.
    pub(super) ways: Vec<(Way, bool)>,
    pub(super) start: Duration,
    pub(super) end: Option<Duration>,
    /// Called by then, at the earliest.
    pub(super) called: Option<Duration>,
    /// The node took the writes when it began; and when they were elsewhere.
    pub(super) was_active: bool,
    pub(super) left: Option<Duration>,
    pub(super) bound: Duration,
}

impl Fault {
    /// Takes what the engine says at `at` while the fault lasts.
    pub(super) fn hear(&mut self, event: &Event, at: Duration) {
        if self.end.is_some() {
            return;
        }
        match event {
            Event::Switched(switched) if switched.from == Some(self.node) && self.was_active => {
                self.left.get_or_insert(at);
            }
            Event::Link {
                from,
                to,
                shard,
                to_shard,
                up: false,
                ..
            } => {
                for (way, called) in &mut self.ways {
                    *called |= (way.from, way.to, way.shard, way.to_shard) == (*from, *to, *shard, *to_shard);
                }
            }
            Event::Health {
                replica,
                from: Health::Down,
                ..
            } if *replica == self.node && self.called == Some(self.start) => {
                // What was said before it began is taken back, so it has to be said again.
                self.called = None;
            }
            _ => {}
        }
        let all_ways = !self.ways.is_empty() && self.ways.iter().all(|(_, called)| *called);
        let called = match self.kind {
            Kind::Killed | Kind::Hung | Kind::Loading | Kind::Mute => {
                matches!(event, Event::Health { replica, to: Health::Down, .. } if *replica == self.node)
            }
            Kind::WritesRefused | Kind::WritesStall => self.unfit(event, Fitness::Stale),
            Kind::Slow => {
                matches!(event, Event::Health { replica, to: Health::Suspect, why, .. }
                    if *replica == self.node && why.ends_with("is usual"))
            }
            Kind::LinkCut | Kind::CellCut | Kind::Outbound | Kind::Inbound => all_ways,
            Kind::Isolated => self.unfit(event, Fitness::Isolated),
            Kind::Lagging => matches!(event, Event::Fitness { replica, to: Fitness::Lagging, .. }
                    if self.ends(*replica)),
        };
        if called {
            self.called.get_or_insert(at);
        }
    }

    fn unfit(&self, event: &Event, as_what: Fitness) -> bool {
        matches!(event, Event::Fitness { replica, to, .. } if *replica == self.node && *to == as_what)
    }

    fn ends(&self, replica: ReplicaId) -> bool {
        self.ways
            .iter()
            .any(|(way, _)| way.from == replica || way.to == replica)
    }

    /// Whether the fault accounts for what the engine says, among `replicas`.
    pub(super) fn explains(&self, event: &Event, replicas: usize) -> bool {
        let of_a_replica = self.kind.state().is_some();
        match event {
            Event::Health { replica, .. } => of_a_replica && *replica == self.node,
            Event::Link {
                from,
                to,
                shard,
                to_shard,
                ..
            } => {
                let path = (*from, *to, *shard, *to_shard);
                if of_a_replica {
                    *from == self.node || *to == self.node
                } else {
                    self.ways
                        .iter()
                        .any(|(way, _)| (way.from, way.to, way.shard, way.to_shard) == path)
                }
            }
            // Two replicas cannot tell which of them it is: neither is in sync.
            Event::Fitness { replica, .. } => match self.kind {
                Kind::LinkCut | Kind::CellCut | Kind::Lagging => self.ends(*replica),
                _ => *replica == self.node || replicas == 2,
            },
            Event::Fault { fault, .. } => match (self.kind, *fault) {
                // Where others are there to compare with, the end is named that breaks all its links.
                (Kind::Outbound, Named::Outbound { replica, .. })
                | (Kind::Inbound, Named::Inbound { replica, .. }) => replica == self.node,
                (
                    Kind::Isolated,
                    Named::Isolated { replica, .. }
                    | Named::Outbound { replica, .. }
                    | Named::Inbound { replica, .. },
                ) => replica == self.node,
                (
                    Kind::Outbound
                    | Kind::Inbound
                    | Kind::LinkCut
                    | Kind::CellCut
                    | Kind::Lagging
                    | Kind::Isolated,
                    Named::Link {
                        from,
                        shard,
                        to,
                        to_shard,
                    },
                ) => self.ways.iter().any(|(way, _)| {
                    (way.from, way.to, way.shard, way.to_shard) == (from, to, shard, to_shard)
                }),
                // Once it is over, links come back one after another.
                (_, Named::Link { from, to, .. }) => {
                    let touches = from == self.node || to == self.node;
                    of_a_replica && touches && (replicas == 2 || self.end.is_some())
                }
                (_, named) => of_a_replica && named.replica() == self.node,
            },
            Event::Switched(switched) => of_a_replica && switched.from == Some(self.node),
            _ => true,
        }
    }
}
