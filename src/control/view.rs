//! The engine's snapshot in its published shape: names for ids, milliseconds since 1970 for moments.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::status::{FaultStatus, LinkStatus, ReplicaStatus, RestStatus, ShardStatus, Status, SwitchStatus};
use crate::decision::{Fault, ReplicaView, Snapshot, Switched};
use crate::replica::{Layout, ReplicaId, slot_words};

/// What the replicas are called.
#[derive(Clone, Debug)]
pub(super) struct Names(Vec<Arc<str>>);

impl Names {
    /// By [`ReplicaId`].
    pub(super) fn new(names: impl Iterator<Item = Arc<str>>) -> Names {
        Names(names.collect())
    }

    pub(super) fn of(&self, replica: ReplicaId) -> &str {
        self.0.get(replica.index()).map_or("?", |name| name)
    }

    pub(super) fn find(&self, name: &str) -> Option<ReplicaId> {
        let index = self.0.iter().position(|known| **known == *name)?;
        u8::try_from(index).ok().map(ReplicaId)
    }
}

/// One moment on both clocks, taken once per process: published times then never jump when the wall clock is set, and
/// order between them is the order of the events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Anchor {
    wall: Duration,
    monotonic: Instant,
}

impl Anchor {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one reading of the wall clock that published times rest on"
    )]
    pub(super) fn take(now: Instant) -> Anchor {
        Anchor {
            wall: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or(Duration::ZERO),
            monotonic: now,
        }
    }

    /// Milliseconds since 1970.
    pub(super) fn ms(self, at: Instant) -> u64 {
        let wall = match at.checked_duration_since(self.monotonic) {
            Some(after) => self.wall.saturating_add(after),
            None => self.wall.saturating_sub(self.monotonic.duration_since(at)),
        };
        u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Milliseconds, to the microsecond.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

/// `layouts`: by [`ReplicaId`].
pub(super) fn status(snapshot: &Snapshot, names: &Names, layouts: &[Layout], anchor: Anchor) -> Status {
    let name = |replica: ReplicaId| names.of(replica).to_owned();
    Status {
        epoch: snapshot.epoch,
        active: snapshot.active.map(name),
        read: snapshot
            .read
            .iter()
            .map(|(replica, percent)| (name(*replica), *percent))
            .collect(),
        holding: snapshot.holding,
        pinned: snapshot.pinned.map(name),
        tilt: snapshot.tilt,
        replicas: snapshot
            .replicas
            .iter()
            .map(|replica| replica_status(replica, names, layouts.get(replica.id.index()), anchor))
            .collect(),
        faults: snapshot
            .faults
            .iter()
            .map(|fault| fault_status(fault.fault, names, anchor.ms(fault.since), &fault.words))
            .collect(),
        last_switches: snapshot
            .last_switches
            .iter()
            .map(|(at, switched)| switch_status(switched, names, anchor.ms(*at)))
            .collect(),
    }
}

pub(super) fn fault_status(fault: Fault, names: &Names, since: u64, words: &str) -> FaultStatus {
    let (to, to_shard) = match fault {
        Fault::Link { to, to_shard, .. } => (Some(names.of(to).to_owned()), Some(to_shard.0)),
        _ => (None, None),
    };
    FaultStatus {
        kind: fault.kind().to_owned(),
        replica: names.of(fault.replica()).to_owned(),
        shard: fault.shard().0,
        to,
        to_shard,
        since,
        words: words.to_owned(),
    }
}

fn replica_status(
    view: &ReplicaView,
    names: &Names,
    layout: Option<&Layout>,
    anchor: Anchor,
) -> ReplicaStatus {
    ReplicaStatus {
        name: names.of(view.id).to_owned(),
        health: view.health.word().to_owned(),
        fitness: view.fitness.word().to_owned(),
        reason: view.reason.clone(),
        since: anchor.ms(view.since),
        rtt_ms: view.rtt.map(millis),
        rest: view.rest.as_ref().map(|rest| RestStatus {
            state: rest.state.word().to_owned(),
            words: rest.words.clone(),
            at: rest.at.map(|at| anchor.ms(at)),
        }),
        shards: view
            .shards
            .iter()
            .map(|shard| {
                let known = layout.and_then(|layout| layout.shard(shard.id));
                ShardStatus {
                    id: shard.id.0,
                    slots: known.map_or_else(String::new, |known| slot_words(&known.slots).to_string()),
                    node: known.and_then(|known| Some(known.node.as_ref()?.to_string())),
                    echo: shard.echo,
                    writable: shard.writable,
                }
            })
            .collect(),
        links: links(view, names, anchor),
    }
}

/// One entry for each pair of shards; where they have several cells in common, the worst of them.
fn links(view: &ReplicaView, names: &Names, anchor: Anchor) -> Vec<LinkStatus> {
    let mut links: Vec<LinkStatus> = Vec::with_capacity(view.links.len());
    for link in &view.links {
        let of_cell = LinkStatus {
            to: names.of(link.to).to_owned(),
            shard: link.shard.0,
            to_shard: link.to_shard.0,
            lag_ms: link.lag.map(millis),
            lag_p99_ms: link.usual_lag.map(millis),
            last_heard_ms: link.last_heard.map(|at| anchor.ms(at)),
            up: link.up,
        };
        let same = |other: &&mut LinkStatus| {
            (&other.to, other.shard, other.to_shard) == (&of_cell.to, of_cell.shard, of_cell.to_shard)
        };
        match links.iter_mut().find(same) {
            Some(known) => {
                known.up &= of_cell.up;
                known.last_heard_ms = known.last_heard_ms.min(of_cell.last_heard_ms);
                if known.lag_ms < of_cell.lag_ms {
                    known.lag_ms = of_cell.lag_ms;
                }
                if known.lag_p99_ms < of_cell.lag_p99_ms {
                    known.lag_p99_ms = of_cell.lag_p99_ms;
                }
            }
            None => links.push(of_cell),
        }
    }
    links
}

pub(super) fn switch_status(switched: &Switched, names: &Names, at: u64) -> SwitchStatus {
    SwitchStatus {
        epoch: switched.epoch,
        from: switched.from.map(|from| names.of(from).to_owned()),
        to: names.of(switched.to).to_owned(),
        reason: switched.reason.word().to_owned(),
        why: switched.why.clone(),
        at,
        detect_ms: millis(switched.detect),
        fence_ms: switched.fence.map(millis),
        switch_ms: millis(switched.switch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_keep_their_distance_on_both_sides_of_the_anchor() {
        let now = tokio::time::Instant::now().into_std();
        let before = now.checked_sub(Duration::from_millis(1500));
        let anchor = Anchor::take(now);
        let at = anchor.ms(now);
        assert!(at > 1_600_000_000_000, "{at} is after 2020");
        assert_eq!(anchor.ms(now + Duration::from_millis(2500)), at + 2500);
        if let Some(before) = before {
            assert!((1499..=1501).contains(&(at - anchor.ms(before))));
        }
    }

    #[test]
    fn milliseconds_to_the_microsecond() {
        assert_eq!(millis(Duration::from_nanos(1_234_567)), 1.235);
        assert_eq!(millis(Duration::ZERO), 0.0);
    }

    #[test]
    fn names_are_found_both_ways() {
        let names = Names::new(["local", "remote"].into_iter().map(Arc::from));
        assert_eq!(names.of(ReplicaId(1)), "remote");
        assert_eq!(names.of(ReplicaId(2)), "?");
        assert_eq!(names.find("remote"), Some(ReplicaId(1)));
        assert_eq!(names.find("elsewhere"), None);
    }
}
