//! Where the matrix says that replication is broken: which replica, which direction, which shard.
//!
//! | seen, in a shard | said |
//! |---|---|
//! | its own heartbeats are accepted and not heard | the shard fails |
//! | its write probes are refused | it takes no writes |
//! | heard by no live peer, of two at least | its outbound replication is broken |
//! | hears no live peer, of two at least | its inbound replication is broken |
//! | both | it is isolated |
//! | a link is down and none of these explains it | that link is broken |
//!
//! With a single live peer nobody can tell whose end of a link it is, so the link is named. Replicas that do not answer,
//! or whose own echo is gone, are no peers: a silent link with them says nothing of replication.

use std::collections::BTreeSet;

use super::engine::Engine;
use super::event::{Event, Health};
use super::links::{Link, Path};
use super::moment::Moment;
use crate::replica::{ReplicaId, ShardId};

/// One thing that is broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// The shard's own heartbeats are not heard.
    Echo {
        /// Whose shard.
        replica: ReplicaId,
        /// Which.
        shard: ShardId,
    },
    /// The shard refuses writes.
    Writes {
        /// Whose shard.
        replica: ReplicaId,
        /// Which.
        shard: ShardId,
    },
    /// It hears and is heard by no live peer.
    Isolated {
        /// Whose shard.
        replica: ReplicaId,
        /// Which.
        shard: ShardId,
    },
    /// It is heard by no live peer.
    Outbound {
        /// Whose shard.
        replica: ReplicaId,
        /// Which.
        shard: ShardId,
    },
    /// It hears no live peer.
    Inbound {
        /// Whose shard.
        replica: ReplicaId,
        /// Which.
        shard: ShardId,
    },
    /// Just this link.
    Link {
        /// Published there.
        from: ReplicaId,
        /// On this shard.
        shard: ShardId,
        /// Awaited here.
        to: ReplicaId,
        /// On this shard.
        to_shard: ShardId,
    },
}

impl Fault {
    /// The words for its kinds.
    pub const KINDS: &'static [&'static str] = &["echo", "writes", "isolated", "outbound", "inbound", "link"];

    /// Its kind, in one word of [`Fault::KINDS`].
    pub fn kind(self) -> &'static str {
        match self {
            Fault::Echo { .. } => "echo",
            Fault::Writes { .. } => "writes",
            Fault::Isolated { .. } => "isolated",
            Fault::Outbound { .. } => "outbound",
            Fault::Inbound { .. } => "inbound",
            Fault::Link { .. } => "link",
        }
    }

    /// The replica that it is held against; of a link the publishing one.
    pub fn replica(self) -> ReplicaId {
        match self {
            Fault::Echo { replica, .. }
            | Fault::Writes { replica, .. }
            | Fault::Isolated { replica, .. }
            | Fault::Outbound { replica, .. }
            | Fault::Inbound { replica, .. } => replica,
            Fault::Link { from, .. } => from,
        }
    }

    /// Its shard there.
    pub fn shard(self) -> ShardId {
        match self {
            Fault::Echo { shard, .. }
            | Fault::Writes { shard, .. }
            | Fault::Isolated { shard, .. }
            | Fault::Outbound { shard, .. }
            | Fault::Inbound { shard, .. }
            | Fault::Link { shard, .. } => shard,
        }
    }
}

impl Engine {
    /// Reads the faults anew and tells what changed.
    pub(super) fn refresh_faults(&mut self, now: Moment) {
        let found = self.find_faults(now);
        let ended: Vec<Fault> = self
            .faults
            .iter()
            .map(|(fault, _)| *fault)
            .filter(|fault| !found.contains(fault))
            .collect();
        self.faults.retain(|(fault, _)| found.contains(fault));
        for fault in ended {
            let words = self.fault_words(fault);
            self.tell(Event::Fault {
                fault,
                on: false,
                words,
            });
        }
        for fault in found {
            if self.faults.iter().all(|(known, _)| *known != fault) {
                self.faults.push((fault, now));
                let words = self.fault_words(fault);
                self.tell(Event::Fault {
                    fault,
                    on: true,
                    words,
                });
            }
        }
    }

    fn find_faults(&self, now: Moment) -> BTreeSet<Fault> {
        let mut found = BTreeSet::new();
        for id in self.ids().filter(|&id| self.is_live(id)) {
            self.find_own_faults(id, &mut found);
        }
        let broken: Vec<(Path, &Link)> = self
            .ids()
            .flat_map(|from| self.ids().map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .flat_map(|(from, to)| self.links.between(from, to))
            .filter(|(path, link)| link.up == Some(false) && self.is_told_of(*path))
            .collect();
        for (path, link) in broken {
            let outbound = self.is_cut_off(path.from, path.shard, true);
            let inbound = self.is_cut_off(path.to, path.to_shard, false);
            if outbound {
                let (replica, shard) = (path.from, path.shard);
                found.insert(if self.is_cut_off(replica, shard, false) {
                    Fault::Isolated { replica, shard }
                } else {
                    Fault::Outbound { replica, shard }
                });
            }
            if inbound {
                let (replica, shard) = (path.to, path.to_shard);
                found.insert(if self.is_cut_off(replica, shard, true) {
                    Fault::Isolated { replica, shard }
                } else {
                    Fault::Inbound { replica, shard }
                });
            }
            // The links of one broken end go down one after another, within half a heartbeat, and so do they come back.
            let alone = !outbound && !inbound && now.since(link.changed) >= self.windows.beat / 2;
            let fault = Fault::Link {
                from: path.from,
                shard: path.shard,
                to: path.to,
                to_shard: path.to_shard,
            };
            let known = || self.faults.iter().any(|(known, _)| *known == fault);
            if alone && (known() || !self.is_in_doubt(path, now)) {
                found.insert(fault);
            }
        }
        found
    }

    fn find_own_faults(&self, replica: ReplicaId, found: &mut BTreeSet<Fault>) {
        let evidence = &self.replicas[replica.index()].evidence;
        for (cell, beats) in evidence.beats.iter().enumerate() {
            if let Some(shard) = self.links.shard(replica, cell).filter(|_| beats.lost) {
                found.insert(Fault::Echo { replica, shard });
            }
        }
        for (shard, writes) in (0_u16..).map(ShardId).zip(&evidence.writes) {
            if writes.writable == Some(false) {
                found.insert(Fault::Writes { replica, shard });
            }
        }
    }

    fn is_live(&self, id: ReplicaId) -> bool {
        let standing = &self.replicas[id.index()].standing;
        // One that is down for its lost echo alone still answers.
        standing.answers() || matches!(standing.health, Health::Recovering)
    }

    /// Whether both ends of a link live and hear themselves there.
    fn is_told_of(&self, path: Path) -> bool {
        [path.from, path.to].into_iter().all(|end| {
            let echo = Path {
                from: end,
                to: end,
                ..path
            };
            self.is_live(end) && self.links.at(echo).up == Some(true)
        })
    }

    /// Whether no link of `shard` with any of two or more live peers is up, in one direction.
    fn is_cut_off(&self, replica: ReplicaId, shard: ShardId, outbound: bool) -> bool {
        let mut peers = 0;
        for peer in self.ids().filter(|&peer| peer != replica) {
            let (from, to) = if outbound {
                (replica, peer)
            } else {
                (peer, replica)
            };
            let mut told_of = false;
            for (path, link) in self.links.between(from, to) {
                let own = if outbound { path.shard } else { path.to_shard };
                if own == shard && self.is_told_of(path) {
                    if link.up != Some(false) {
                        return false;
                    }
                    told_of = true;
                }
            }
            peers += usize::from(told_of);
        }
        peers >= 2
    }

    /// Whether it may be more than the link: other links of the same end came up just now, and this one may have been
    /// broken with them; or an end has not heard itself just now, and its pub/sub may be what is broken.
    fn is_in_doubt(&self, path: Path, now: Moment) -> bool {
        let ends = self
            .ids()
            .flat_map(|other| [(path.from, other), (other, path.to)]);
        let links = ends.flat_map(|(from, to)| self.links.between(from, to));
        let mut links = links.filter(|(other, _)| {
            (other.from, other.shard) == (path.from, path.shard)
                || (other.to, other.to_shard) == (path.to, path.to_shard)
        });
        links.any(|(other, link)| match other.from == other.to {
            true => link.quiet(now) >= self.windows.dispute,
            false => link.up == Some(true) && now.since(link.changed) < self.windows.dispute,
        })
    }

    /// What is broken, in words.
    pub(super) fn fault_words(&self, fault: Fault) -> String {
        let name = self.name(fault.replica());
        let shard = fault.shard();
        match fault {
            Fault::Echo { .. } => format!("{name} (shard {shard}): its own heartbeats are not heard"),
            Fault::Writes { .. } => format!("{name} (shard {shard}) takes no writes"),
            Fault::Isolated { .. } => {
                format!("{name} (shard {shard}) hears no other replica and is heard by none")
            }
            Fault::Outbound { .. } => {
                format!("no other replica hears {name} (shard {shard}): its outbound replication is broken")
            }
            Fault::Inbound { .. } => {
                format!("{name} (shard {shard}) hears no other replica: its inbound replication is broken")
            }
            Fault::Link { to, to_shard, .. } => {
                let place = if to_shard == shard {
                    format!("shard {shard}")
                } else {
                    format!("shard {shard} to shard {to_shard}")
                };
                format!(
                    "heartbeats from {name} do not arrive on {} ({place})",
                    self.name(to)
                )
            }
        }
    }
}
