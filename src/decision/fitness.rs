//! Fitness: what a replica that answers may be used for.
//!
//! Reads the link matrix. A broken pair is held against the replica that is broken with everyone, when the matrix can
//! tell: that takes three live replicas. Two can only know that one direction, or both, does not pass; then neither is
//! in sync, neither is better, and there is nowhere to go.
//!
//! | seen | said |
//! |---|---|
//! | a shard refuses writes | `stale` |
//! | its own echo passes, but no heartbeat to or from anyone, on any shard | `isolated` |
//! | a link to or from a live peer is down or over the tolerance, and that peer is well with nobody else to blame | `lagging` |
//! | every link with every live peer up and within tolerance, writable | `in_sync` |

use std::fmt;

use super::event::{Fitness, Health};
use super::links::{Links, Pair, Path};
use super::moment::Moment;
use super::windows::Windows;
use crate::replica::ReplicaId;

/// Why a replica's fitness is what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ground {
    NotAnswering,
    Unwritable,
    Alone,
    NoPeers { writable: bool },
    Link(Path),
    LinkUnknown { peer: ReplicaId },
    WritesUnknown,
    Proved,
}

/// A fitness and its ground.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reading {
    pub(super) fitness: Fitness,
    pub(super) ground: Ground,
}

/// What fitness is read from.
pub(super) struct Matrix<'a> {
    /// By replica.
    pub(super) healths: &'a [Health],
    /// By replica.
    pub(super) writable: &'a [Option<bool>],
    pub(super) links: &'a Links,
    pub(super) windows: &'a Windows,
    pub(super) now: Moment,
}

impl Matrix<'_> {
    /// The live replicas other than `id` whose own echo passes: with one whose pub/sub is stuck, a silent link says
    /// nothing of `id`.
    fn peers(&self, id: ReplicaId) -> impl Iterator<Item = ReplicaId> {
        (0_u8..)
            .map(ReplicaId)
            .zip(self.healths)
            .filter(move |&(peer, health)| {
                peer != id && matches!(health, Health::Healthy | Health::Suspect | Health::Recovering)
            })
            .map(|(peer, _)| peer)
            .filter(|&peer| self.links.echoes(peer))
    }

    /// Whether the matrix says that it is `id` that replicates with no one properly.
    fn blamed(&self, id: ReplicaId) -> bool {
        self.peers(id).count() >= 2
            && self
                .peers(id)
                .all(|peer| matches!(self.links.pair(id, peer), Pair::Bad(_)))
    }

    /// Whether two replicas other than `id` replicate well: only then does isolation say something of `id`.
    pub(super) fn others_hear_each_other(&self, id: ReplicaId) -> bool {
        self.peers(id).any(|a| {
            self.peers(id)
                .any(|b| a < b && self.links.pair(a, b) == Pair::Good)
        })
    }

    /// Reads the fitness of `id`.
    pub(super) fn read(&self, id: ReplicaId) -> Reading {
        let (fitness, ground) = self.classify(id);
        Reading { fitness, ground }
    }

    fn classify(&self, id: ReplicaId) -> (Fitness, Ground) {
        if matches!(self.healths[id.index()], Health::Unknown | Health::Down) {
            return (Fitness::Unknown, Ground::NotAnswering);
        }
        let writable = self.writable[id.index()];
        if writable == Some(false) {
            return (Fitness::Stale, Ground::Unwritable);
        }
        if self.peers(id).next().is_none() {
            let fitness = if writable.is_some() {
                Fitness::InSync
            } else {
                Fitness::Unknown
            };
            return (
                fitness,
                Ground::NoPeers {
                    writable: writable.is_some(),
                },
            );
        }
        if self.links.echoes(id)
            && self
                .peers(id)
                .all(|peer| self.links.parted(id, peer, self.windows, self.now))
        {
            return (Fitness::Isolated, Ground::Alone);
        }
        let good_with_someone = self.peers(id).any(|peer| self.links.pair(id, peer) == Pair::Good);
        let mut unknown = None;
        for peer in self.peers(id) {
            match self.links.pair(id, peer) {
                Pair::Good => {}
                Pair::Unknown => unknown = Some(peer),
                Pair::Bad(_) if good_with_someone && self.blamed(peer) => {}
                Pair::Bad(path) => return (Fitness::Lagging, Ground::Link(path)),
            }
        }
        if let Some(peer) = unknown {
            return (Fitness::Unknown, Ground::LinkUnknown { peer });
        }
        if writable.is_none() {
            return (Fitness::Unknown, Ground::WritesUnknown);
        }
        (Fitness::InSync, Ground::Proved)
    }
}

/// Formats the replica by what the caller calls it.
pub(super) struct GroundWords<'a, N: Fn(ReplicaId) -> &'a str> {
    pub(super) ground: Ground,
    pub(super) name: N,
    /// The write probes, in words.
    pub(super) writes: &'a str,
    /// The link of [`Ground::Link`], in words.
    pub(super) link: &'a str,
}

impl<'a, N: Fn(ReplicaId) -> &'a str> fmt::Display for GroundWords<'a, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ground {
            Ground::NotAnswering => write!(f, "not answering"),
            Ground::Unwritable => write!(f, "writes refused: {}", self.writes),
            Ground::Alone => write!(f, "no heartbeat passes to or from any other live replica"),
            Ground::NoPeers { writable: true } => write!(f, "writable; no other replica is live"),
            Ground::NoPeers { writable: false } => {
                write!(f, "no other replica is live, and no write probe has ended yet")
            }
            Ground::Link(path) => write!(
                f,
                "heartbeats from {} to {} ({}): {}",
                (self.name)(path.from),
                (self.name)(path.to),
                path.place(),
                self.link
            ),
            Ground::LinkUnknown { peer } => {
                write!(f, "no heartbeat with {} on every shard yet", (self.name)(peer))
            }
            Ground::WritesUnknown => write!(f, "no write probe has succeeded on every shard yet"),
            Ground::Proved => write!(
                f,
                "writable, heartbeats both ways with every live replica in time"
            ),
        }
    }
}
