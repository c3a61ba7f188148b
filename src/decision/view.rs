//! What the engine shows: the snapshot, and the words of its reasons.

use std::time::Instant;

use super::engine::Engine;
use super::event::Health;
use super::fitness::{Ground, GroundWords};
use super::health::Secs;
use super::links::Path;
use super::moment::Moment;
use super::snapshot::{FaultView, LinkView, ReplicaView, ShardView, Snapshot};
use super::windows::WRITES_IN_A_ROW;
use crate::replica::{ReplicaId, ShardId};

impl Engine {
    /// The whole view at `now`; changes nothing.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let now = self.clock.peek(now);
        Snapshot {
            epoch: self.epoch,
            active: self.active,
            read: self.read_split(),
            holding: self.holding,
            pinned: self.pinned,
            tilt: self.tilt.is_some(),
            replicas: self.ids().map(|id| self.view(id, now)).collect(),
            faults: self
                .faults
                .iter()
                .map(|&(fault, since)| FaultView {
                    fault,
                    since: since.real,
                    words: self.fault_words(fault),
                })
                .collect(),
            last_switches: self.switches.iter().cloned().collect(),
        }
    }

    fn view(&self, id: ReplicaId, now: Moment) -> ReplicaView {
        let state = &self.replicas[id.index()];
        let finding = &state.standing.finding;
        let reason = match state.standing.health {
            Health::Healthy => format!("{finding}; {}", self.fitness_words(id, now)),
            Health::Unknown | Health::Down => finding.to_string(),
            Health::Suspect | Health::Recovering => format!("{finding}; {}", self.fitness_words(id, now)),
        };
        let echo = |shard| {
            let mut echoes = self.links.between(id, id).filter(|(path, _)| path.shard == shard);
            echoes.all(|(_, echo)| echo.up == Some(true))
        };
        let shards = (0_u16..).map(ShardId).zip(&state.evidence.writes);
        let shards = shards.map(|(shard, writes)| ShardView {
            id: shard,
            echo: echo(shard),
            writable: writes.writable,
        });
        let links = self.ids().flat_map(|to| {
            self.links.between(id, to).map(move |(path, link)| LinkView {
                to,
                cell: self.map.cells[path.cell].0,
                shard: path.shard,
                to_shard: path.to_shard,
                lag: link.lag,
                usual_lag: link.usual_lag(),
                last_heard: link.heard.map(|heard| heard.real),
                up: link.up == Some(true),
            })
        });
        ReplicaView {
            id,
            health: state.standing.health,
            fitness: state.reading.fitness,
            reason,
            since: state.standing.since.real,
            rtt: state.evidence.rtt(),
            rest: self.rest_view(id, now),
            shards: shards.collect(),
            links: links.collect(),
        }
    }

    /// Why `id` is as fit as it is.
    pub(super) fn fitness_words(&self, id: ReplicaId, now: Moment) -> String {
        let state = &self.replicas[id.index()];
        let ground = state.reading.ground;
        let link = match ground {
            Ground::Link(path) => self.link_words(path, now),
            _ => String::new(),
        };
        let writes = self.writes_words(id, now);
        let name = |other| self.name(other);
        GroundWords {
            ground,
            name,
            writes: &writes,
            link: &link,
        }
        .to_string()
    }

    fn writes_words(&self, id: ReplicaId, now: Moment) -> String {
        let writes = &self.replicas[id.index()].evidence.writes;
        let refused = (0_u16..)
            .map(ShardId)
            .zip(writes)
            .find(|(_, writes)| writes.writable == Some(false));
        let Some((shard, writes)) = refused else {
            return String::new();
        };
        let mut words = match (writes.failures, writes.oks) {
            (0, 0) => format!("shard {shard}: a write probe waits for its answer"),
            (0, oks) => format!(
                "shard {shard}: {oks} of {WRITES_IN_A_ROW} write probes accepted since it failed ({})",
                writes.word
            ),
            (failures, _) => format!(
                "shard {shard}: {failures} write probes in a row failed ({})",
                writes.word
            ),
        };
        if let Some(ok) = writes.ok {
            words = format!("{words}, last accepted {} ago", Secs(now.since(ok)));
        }
        words
    }

    /// What one link shows.
    pub(super) fn link_words(&self, path: Path, now: Moment) -> String {
        let link = self.links.at(path);
        let limit = Secs(link.window(&self.windows));
        match (link.up, link.lag) {
            (Some(true), Some(lag)) if link.lagging => {
                format!(
                    "{} late (tolerance {})",
                    Secs(lag),
                    Secs(self.policy.lag_tolerance)
                )
            }
            (Some(true), Some(lag)) => format!("in time, {} old when heard", Secs(lag)),
            (Some(false), Some(lag)) if lag > self.windows.fresh_age => format!(
                "none in time for {} (limit {limit}); the newest was {} old when heard",
                Secs(link.quiet(now)),
                Secs(lag)
            ),
            (Some(false), _) => format!("none for {} (limit {limit})", Secs(link.quiet(now))),
            (None, _) | (Some(true), None) => "none yet".to_owned(),
        }
    }
}
