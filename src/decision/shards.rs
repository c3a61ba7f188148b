//! A replica of which one shard fails: its cluster may mend that by itself, so it is given time.
//!
//! While some shards fail and others do not, the replica is suspect, whatever the failing ones show; once that has
//! lasted for `detection.shard_grace`, or when all of them fail, it counts as a whole. `failover.on_shard_down = "stay"`
//! waits for ever. The same holds for shards that refuse writes.

use super::evidence::Evidence;
use super::health::{Judgement, Level, is_failing, is_refused};
use super::links::Links;
use super::moment::Moment;
use super::policy::{OnShardDown, Policy};
use super::windows::Windows;
use crate::replica::{ReplicaId, ShardId};

/// Since when some shards, but not all, are bad in one way.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Partly(Option<Moment>);

impl Partly {
    /// `bad` of `all` shards are.
    fn update(&mut self, bad: usize, all: usize, now: Moment) {
        if bad == 0 || bad == all {
            self.0 = None;
        } else {
            self.0.get_or_insert(now);
        }
    }

    /// Whether this is still to be waited for.
    pub(super) fn is_waited_for(self, policy: &Policy, now: Moment) -> bool {
        let waits =
            |since| policy.on_shard_down == OnShardDown::Stay || now.since(since) < policy.shard_grace;
        self.0.is_some_and(waits)
    }
}

/// Looks at the shards of `id` one by one.
pub(super) fn look(
    id: ReplicaId,
    evidence: &mut Evidence,
    links: &Links,
    policy: &Policy,
    windows: &Windows,
    now: Moment,
) {
    let all = evidence.writes.len();
    if all < 2 {
        return;
    }
    let fails = |shard: usize| {
        let ping = evidence.endpoint_of(shard);
        let silent = ping.probed && now.since(ping.ok.unwrap_or(evidence.laid_out)) >= windows.silence;
        let mute = evidence.beats.iter().enumerate().any(|(cell, beats)| {
            beats.lost
                && links
                    .shard(id, cell)
                    .is_some_and(|ShardId(own)| usize::from(own) == shard)
        });
        is_refused(ping, policy.connect_failures) || is_failing(ping, windows, now) || silent || mute
    };
    let failing = (0..all).filter(|&shard| fails(shard)).count();
    let refusing = evidence
        .writes
        .iter()
        .filter(|writes| writes.writable == Some(false));
    let refusing = refusing.count();
    evidence.failing_partly.update(failing, all, now);
    evidence.refusing_partly.update(refusing, all, now);
}

/// `judgement`, or a milder one while the cluster has time to mend itself.
pub(super) fn soften(judgement: Judgement, evidence: &Evidence, policy: &Policy, now: Moment) -> Judgement {
    let waits =
        matches!(judgement.level, Level::Past(_)) && evidence.failing_partly.is_waited_for(policy, now);
    Judgement {
        level: if waits { Level::Against } else { judgement.level },
        ..judgement
    }
}
